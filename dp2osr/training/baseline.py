"""Training of the baseline ControlNet, the reference of DP²O: noise (or velocity) regression on LR–GT pairs.

The full-size recipe is the paper's (batch 256, lr 2e-4, 35 k steps, frozen backbone); the tiny preset trains the UNet and the text encoder
along with it (`--train_backbone`), from random weights.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dp2osr.backbones import load_backbone, model_source
from dp2osr.backbones.loading import find_model_index
from dp2osr.data.crops import CropSource, to_tensor
from dp2osr.data.degradation import degrade, image_rng
from dp2osr.data.degradation_settings import load_degradation
from dp2osr.device import compute_device, usable_precision
from dp2osr.divergence import Divergence
from dp2osr.errors import UserError, listed
from dp2osr.files import save_model, write_text
from dp2osr.prompts.source import read_tags
from dp2osr.training.checkpoints import restore_checkpoint, save_checkpoint
from dp2osr.training.folder import check_folder, check_length, clear_parts, keep_run_settings
from dp2osr.training.log import TrainingLog
from dp2osr.training.options import check_schedule
from dp2osr.training.settings import STEADY_SCHEDULES

WRITTEN = ("controlnet", "model", "train_log.jsonl", "checkpoint-*.pt")
CONTROLNET_FLAGS = ("conditioning_channels", "num_double_layers", "num_single_layers")  # each kind of backbone takes its own


class PairPool:
    """A pool of (GT latents, control image, prompt), degraded and encoded once, from which every batch is drawn.

    `resolution` is the side of the degraded crop; a batch takes sub-windows of it, so that a small training window still
    sees LR statistics of a whole image. Entry i depends on (seed, i) alone.
    """

    def __init__(self, backbone, source, degradation, prompts, size, seed):
        self.backbone = backbone
        self.prompts, self.latents, self.blurred, self.controls = [], [], [], []
        for index in tqdm(range(size), desc="degrade and encode", unit="pair", mininterval=5):
            [(stem, gt)] = source.draw(index, 1)
            lr = degrade(gt.astype(np.float32) / 255, degradation, image_rng(seed, f"{stem}/{index}"))
            control = upsample(lr, gt.shape[0])
            self.prompts.append(prompts.get(stem, ""))
            self.controls.append(control)
            latents = backbone.encode_images(torch.cat([to_tensor([gt]), to_tensor([control])])).half().cpu()
            self.latents.append(latents[0])
            self.blurred.append(latents[1])

    def draw(self, step, batch_size, window, seed, negative_share=0.0, drop_share=0.0, negative_prompt=""):
        """Batch of step `step`: latents (B, C, w, w), control (B, 3, s·w, s·w) in [0, 1], prompts.

        `drop_share` of the prompts are empty; for `negative_share` the target is the degraded image itself under the
        negative prompt, so that guidance away from it means something.
        """
        rng = np.random.default_rng((seed, 1, step))
        latents, controls, prompts = [], [], []
        for index in rng.integers(len(self.latents), size=batch_size):
            scale = self.controls[index].shape[0] // self.latents[index].shape[-1]
            top, left = rng.integers(self.latents[index].shape[-1] - window + 1, size=2)
            kind = rng.random()
            chosen = self.blurred if kind < negative_share else self.latents
            latents.append(chosen[index][:, top : top + window, left : left + window])
            controls.append(self.controls[index][scale * top : scale * (top + window), scale * left : scale * (left + window)])
            prompts.append(negative_prompt if kind < negative_share else "" if kind < negative_share + drop_share else self.prompts[index])
        return torch.stack(latents).float(), to_tensor(controls), prompts


def upsample(lr, side):
    """(h, w, 3) float LR in [0, 1] → (side, side, 3) uint8, bicubic."""
    image = Image.fromarray((lr * 255).round().astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def train_baseline(args):
    """Train a ControlNet (and, for tiny models, the backbone) on degraded photographs; resumable; diffusers layout out."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, broadcast
    from diffusers.optimization import get_scheduler

    check_baseline(args)
    device = compute_device()
    precision = usable_precision(args.mixed_precision, device)
    accelerator = Accelerator(
        cpu=device == "cpu",  # told, or several processes on a CPU take themselves for one each
        mixed_precision=precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        # a model may have parameters without a gradient, as those of text that leaves its last block and is read by nobody
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    output = Path(args.output_dir)
    torch.manual_seed(args.seed)
    backbone = load_backbone(model_source(args), accelerator.device, kind=args.backbone)
    if args.controlnet_model_name_or_path:
        controlnet = backbone.load_controlnet(args.controlnet_model_name_or_path)
    else:
        controlnet = backbone.new_controlnet(**{name: getattr(args, name) for name in CONTROLNET_FLAGS})
    degradation = load_degradation(args.degradation)
    check_sizes(args, backbone)
    if args.train_backbone:
        find_model_index(args.pretrained_model_name_or_path, args.revision)  # which is saved beside the parts
    source = CropSource(args.train_dir, args.resolution, args.seed + accelerator.process_index)
    prompts = read_prompts(args.prompt_file, source.stems) if args.prompt_file else {}
    if accelerator.is_main_process:
        used = {"mixed_precision": accelerator.mixed_precision, "num_processes": accelerator.num_processes}
        steady = args.lr_scheduler in STEADY_SCHEDULES and args.full_window_share in (0, 1)
        keep_run_settings(output, {**vars(args), **used}, ("config", "checkpointing_steps", "output_dir"), steady)
        clear_parts(output)
    accelerator.wait_for_everyone()
    pool = PairPool(backbone, source, degradation, prompts, args.pool_size, args.seed)
    modules = torch.nn.ModuleDict({"controlnet": controlnet})
    if args.train_backbone:
        modules.update(backbone.trained_parts())
    modules.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=args.weight_decay, fused=True
    )
    scheduler = get_scheduler(args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps)
    first_latents = torch.stack(pool.latents[:16]).float()
    metric = broadcast(image_metric(backbone, first_latents, args.image_weight))  # each process has crops of its own
    step = Step(backbone, controlnet, modules, metric, args.timestep_options(), args.guidance_range)
    step, optimizer = accelerator.prepare(step, optimizer)
    parts = {"modules": modules, "optimizer": optimizer, "scheduler": scheduler}
    first = restore_checkpoint(output, parts)
    started = time.time()
    log = TrainingLog(output / "train_log.jsonl", first) if accelerator.is_main_process else None
    bar = tqdm(
        range(first, args.max_train_steps),
        initial=first,
        total=args.max_train_steps,
        unit="step",
        mininterval=5,
        disable=not accelerator.is_main_process,
    )
    smoothed, divergence = None, Divergence(output)
    for index in bar:
        last_phase = index >= args.max_train_steps * (1 - args.full_window_share)
        window = args.resolution // backbone.vae_scale if last_phase else args.window
        batch_size = max(1, args.train_batch_size * args.window**2 // window**2)
        for micro in range(args.gradient_accumulation_steps):
            position = (index * args.gradient_accumulation_steps + micro) * accelerator.num_processes + accelerator.process_index
            batch = pool.draw(position, batch_size, window, args.seed, args.negative_share, args.drop_share, args.negative_prompt)
            with accelerator.accumulate(step):
                loss = step(*batch, position)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(modules.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        divergence.see(index + 1, math.isfinite(loss.item()))
        smoothed = loss.item() if smoothed is None else 0.98 * smoothed + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smoothed:.4f}", refresh=False)
        due = (index + 1) % args.checkpointing_steps == 0 or index + 1 == args.max_train_steps
        if due and accelerator.is_main_process:
            log.write({"step": index + 1, "seconds": round(time.time() - started), "loss": smoothed})
            save_checkpoint(output, index + 1, parts, keep=2)
            save_models(output, backbone, controlnet, args)
    if first == args.max_train_steps and accelerator.is_main_process:  # a stop between its checkpoint and its models
        save_models(output, backbone, controlnet, args)


def check_baseline(args):
    """Raise `UserError` for flags that do not go together, or an output folder that is no place for a baseline."""
    low, high = args.guidance_range
    if low > high:
        raise UserError(f"--guidance_range {low:g} {high:g}: LOW is above HIGH; swap them")
    if args.negative_share + args.drop_share > 1:
        raise UserError(f"--negative_share {args.negative_share:g} --drop_share {args.drop_share:g}: are above 1 together; lower one")
    check_schedule(args)
    names = ("controlnet_model_name_or_path", "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "train_dir")
    check_folder(args.output_dir, {f"--{name}": getattr(args, name) for name in names}, WRITTEN)
    check_length(args.output_dir, args.max_train_steps)


def check_sizes(args, backbone):
    """Raise `UserError` unless crops and windows have an even number of latent pixels a side, and windows lie in crops."""
    scale, whole = backbone.vae_scale, args.resolution // backbone.vae_scale
    if args.resolution % (2 * scale):
        near = max(1, round(args.resolution / (2 * scale))) * 2 * scale
        raise UserError(f"--resolution {args.resolution}: a crop of this model has a multiple of {2 * scale} pixels a side; take {near}")
    if args.window > whole:
        raise UserError(
            f"--window {args.window}: a crop of --resolution {args.resolution} has {whole} latent pixels a side; take at most those"
        )
    if args.window % 2:
        raise UserError(f"--window {args.window}: a window has an even number of latent pixels a side; take {args.window + 1}")


def read_prompts(path, stems):
    """{stem: tags} of a prompt file; those that it lacks are said, and where it has none it is refused (`UserError`)."""
    prompts = read_tags(path)
    missing = [stem for stem in stems if stem not in prompts]
    if len(missing) == len(stems):
        raise UserError(
            f"--prompt_file {path}: names none of the {len(stems)} photographs, as {listed(stems, 3)}; its keys are their stems"
        )
    if missing:
        print(f"warning: --prompt_file {path}: lacks {len(missing)} of {len(stems)} photographs ({listed(missing)})", file=sys.stderr)
    return prompts


class Step(torch.nn.Module):
    """One regression step as a module, so that accelerate can wrap it."""

    def __init__(self, backbone, controlnet, modules, metric, density, guidance_range):
        super().__init__()
        self.density, self.guidance_range = density, guidance_range
        self.trained, self.controlnet = modules, controlnet
        self.backbone, self.metric = backbone, metric

    def forward(self, latents, controls, prompts, position):
        """Mean squared error of the prediction under `metric`; noise, timesteps and guidance follow from `position` alone."""
        generator = torch.Generator().manual_seed(position)
        backbone, latents = self.backbone, latents.to(self.backbone.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        timesteps = backbone.draw_timesteps(len(latents), generator, **self.density)
        low, high = self.guidance_range
        backbone.guidance = low + (high - low) * torch.rand((), generator=generator).item()
        noisy = backbone.add_noise(latents, noise, timesteps)
        prompt, control = backbone.embed_prompts(prompts), backbone.prepare_control(controls)
        [prediction] = backbone.predict([self.controlnet], noisy, timesteps, prompt, control)
        error = prediction.float() - backbone.target(latents, noise, timesteps).float()
        return torch.einsum("bchw,cd,bdhw->", error, self.metric, error) / error.numel()


@torch.no_grad()
def image_metric(backbone, latents, weight, size=0.05):
    """(C, C) matrix A, its mean eigenvalue 1: eᵀ A e is the squared error e of a latent, a share `weight` of it as the image feels it.

    That share is Jᵀ J of the decoder J, from its answers to small white noise of `size` in one channel of the (B, C, h, w) latents
    at a time. Latents may be whitened: then the finest detail, which nobody can predict, has most of the plain error and next to nothing
    of the image's, while the image's colours ask for errors that the plain loss no longer sees.
    """
    channels = latents.shape[1]
    if not weight:
        return torch.eye(channels, device=backbone.device)
    latents = latents.to(backbone.device)
    noise = size * torch.randn((len(latents), 1, *latents.shape[2:]), generator=torch.Generator().manual_seed(0)).to(latents)
    image = backbone.decode_latents(latents)
    units = torch.eye(channels, device=backbone.device).view(channels, 1, channels, 1, 1)
    answers = torch.stack([backbone.decode_latents(latents + unit * noise) - image for unit in units]).flatten(1)
    gram = answers @ answers.T
    return weight * gram * channels / gram.trace() + (1 - weight) * torch.eye(channels, device=backbone.device)


def save_models(output, backbone, controlnet, args):
    """The ControlNet in `output/controlnet` and, if it was trained, the whole pipeline in `output/model`; fp16 if asked."""
    from copy import deepcopy

    def stored(module):
        return deepcopy(module).half() if args.save_fp16 else module

    save_model(stored(controlnet), output / "controlnet")
    if args.train_backbone:
        for name, part in backbone.saved_parts().items():
            save_model(stored(part) if isinstance(part, torch.nn.Module) else part, output / "model" / name)
        index = Path(find_model_index(args.pretrained_model_name_or_path, args.revision))
        write_text(output / "model" / "model_index.json", index.read_text(encoding="utf-8"))
