"""The training of `studies/tune_decoder.py`."""

import json
import math
import time
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from dp2osr.data.collection import open_collection
from dp2osr.data.degradation_settings import load_degradation
from dp2osr.data.stream import BatchPlan, PairStream, StreamSettings, pair_batches
from dp2osr.device import compute_device, set_tf32
from dp2osr.files import save_model, write_text
from dp2osr.outputs import check_output
from dp2osr.rewards.perceptual import dists_form, lpips_form
from studies.settings import DecoderSettings

REPORT = 10.0  # seconds between two lines
WARM_UP = 100  # steps


def patch_discriminator(width: int = 48) -> nn.Sequential:
    """(B, 3, H, W) → (B, 1, H/8, W/8): whether each patch is real (Isola et al. 2017), normalised spectrally."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.utils.parametrizations.spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, 1)), nn.LeakyReLU(0.2)]

    layers = [*block(3, width, 2), *block(width, 2 * width, 2), *block(2 * width, 4 * width, 2), *block(4 * width, 4 * width, 1)]
    return nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 4, 1, 1))


def read_crops(args: DecoderSettings) -> torch.Tensor:
    """(pool_size, 3, s, s) uint8 crops."""
    settings = StreamSettings(load_degradation("bicubic"), args.resolution, 4, args.seed, crops_per_photograph=4)
    side = args.resolution
    plan = BatchPlan(16, 1, 1, side, side, -(-args.pool_size // 16), 0)
    stream = PairStream(open_collection(args.train_dir), settings)
    crops = [pixels[0] for _, pixels, _, _ in pair_batches(stream, plan, 0, 0, args.dataloader_num_workers)]
    return torch.cat(crops)[: args.pool_size].permute(0, 3, 1, 2).contiguous()


class DecoderTrainer:
    """The decoder alone is trained, so that it fits other whitenings of the same latents too."""

    def __init__(self, args: DecoderSettings) -> None:
        from diffusers import AutoencoderKL
        from diffusers.training_utils import EMAModel

        self.args, self.device, self.output = args, compute_device(), Path(args.output_dir)
        set_tf32(self.device, False)
        torch.backends.cudnn.benchmark = True  # the shapes stay
        torch.manual_seed(args.seed)
        self.vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).to(self.device).requires_grad_(False)
        self.crops = read_crops(args).to(self.device)
        self.parameters = list(self.vae.decoder.requires_grad_(True).parameters())
        self.mean = EMAModel(self.parameters, decay=args.ema_decay, foreach=True)
        self.judges = {"lpips": (args.perceptual_weight, lpips_form()), "dists": (args.texture_weight, dists_form())}
        for _, judge in self.judges.values():
            judge.to(self.device).requires_grad_(False)
        self.critic = patch_discriminator().to(self.device)
        trained = (self.parameters, self.critic.parameters())
        self.optimizers = [torch.optim.AdamW(some, args.learning_rate, betas=(0.5, 0.99), weight_decay=0) for some in trained]
        self.spread = latent_spread(self.vae, self.crops)

    def train(self) -> None:
        """Train for `minutes`, write the models and the log."""
        args, started, step, said, lines = self.args, time.time(), 0, 0.0, []
        sums: dict[str, torch.Tensor] = {}
        while (share := (time.time() - started) / (60 * args.minutes)) < 1:
            rate = args.learning_rate * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * share))
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = rate
            adversarial = args.discriminator_weight > 0 and share >= args.discriminator_from
            if adversarial and "fooled" not in sums:
                self.save("vae_without_discriminator")
            weight = min(1.0, (share - args.discriminator_from) / 0.1) * args.discriminator_weight if adversarial else 0.0
            parts = self.step(weight, adversarial)
            self.mean.step(self.parameters)
            for name, part in parts.items():
                sums[name] = 0.95 * sums.get(name, part.detach()) + 0.05 * part.detach()
            step += 1
            if time.time() - started > said + REPORT:
                said = time.time() - started
                lines.append({"seconds": round(said, 1), "step": step, **{name: round(float(value), 4) for name, value in sums.items()}})
                print(json.dumps(lines[-1]), flush=True)
        self.save("vae")
        write_text(self.output / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def step(self, weight: float, adversarial: bool) -> dict[str, torch.Tensor]:
        """One step of the decoder, and of the discriminator where there is one; returns the parts of the losses."""
        of_decoder, of_critic = self.optimizers
        real = self.crops[torch.randint(len(self.crops), (self.args.train_batch_size,), device=self.device)].float() / 255
        with torch.no_grad():
            latents = self.vae.encode(real * 2 - 1).latent_dist.mode()
            noise = torch.rand(len(latents), 1, 1, 1, device=self.device) * self.args.latent_noise * self.spread
            latents += noise * torch.randn_like(latents)
        image = self.vae.decode(latents).sample / 2 + 0.5
        parts = {"l1": F.l1_loss(image, real)}
        parts |= {name: judge(image.clamp(0, 1), real).mean() for name, (_, judge) in self.judges.items()}
        loss = parts["l1"] + sum(share * parts[name] for name, (share, _) in self.judges.items())
        if adversarial:
            parts["fooled"] = -self.critic(image).mean()
            last = self.vae.decoder.conv_out.weight
            ours, theirs = (torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (loss, parts["fooled"]))
            loss = loss + weight * (ours / (theirs + 1e-6)).clamp(max=10.0) * parts["fooled"]
        of_decoder.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        of_decoder.step()
        if adversarial:
            parts["critic"] = F.relu(1 - self.critic(real)).mean() + F.relu(1 + self.critic(image.detach())).mean()
            of_critic.zero_grad(set_to_none=True)
            parts["critic"].backward()
            of_critic.step()
        return parts

    def save(self, name: str) -> None:
        """The autoencoder in fp16, with the mean of its decoder's weights."""
        self.mean.store(self.parameters)
        self.mean.copy_to(self.parameters)
        save_model(deepcopy(self.vae).half(), self.output / name)
        self.mean.restore(self.parameters)


def tune_decoder(args: DecoderSettings) -> None:
    """Train a decoder; its autoencoder lies in `vae/` then."""
    check_output(args.output_dir, "--output_dir")
    DecoderTrainer(args).train()


@torch.no_grad()
def latent_spread(vae: nn.Module, crops: torch.Tensor) -> torch.Tensor:
    """(1, C, 1, 1) standard deviations of the latents' channels."""
    return vae.encode(crops[:64].float() / 127.5 - 1).latent_dist.mode().std((0, 2, 3), keepdim=True)
