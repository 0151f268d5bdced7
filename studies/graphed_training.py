"""The loop of `studies/train_on_gpu.py`."""

import json
import math
import time
from collections.abc import Callable, Iterator

import torch

from dp2osr.errors import UserError
from dp2osr.files import write_text
from dp2osr.training.baseline import BaselineTrainer
from dp2osr.training.pool import Batch, LatentPool, encode_pool
from studies.perceptual_regression import PerceptualRegression
from studies.settings import GpuTrainingSettings

TIMESTEPS = 2**18  # drawn once; a step takes some of them
REPORT = 10.0  # seconds between two lines


class Embeddings:
    """Every prompt's embedding on the device; stands for a `PromptBook`."""

    def __init__(self, trainer: BaselineTrainer) -> None:
        book, backbone = trainer.prompts, trainer.backbone
        with torch.no_grad():
            parts = [backbone.encode_prompts(book.texts[start : start + 64]) for start in range(0, len(book.texts), 64)]
        self.tables = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def embed(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: table[numbers] for name, table in self.tables.items()}


class GraphedTrainer:
    """Networks, pool and optimizer of a run.

    Attributes:
        rate: the learning rate, a tensor on the device, so that a captured step reads what it is at the time.
        total: (sum of the losses, steps) since it was last read.
    """

    def __init__(self, args: GpuTrainingSettings) -> None:
        self.trainer = BaselineTrainer(args)
        self.args, self.backbone, self.plan = args, self.trainer.backbone, self.trainer.plan
        torch.backends.cudnn.benchmark = True  # the shapes stay
        self.trainer.modules.requires_grad_(False).eval()
        self.device, self.crops = self.backbone.device, self.new_crops()
        self.pool = self.filled_pool()
        modules = self.modules = torch.nn.ModuleDict({"controlnet": self.trainer.controlnet, "denoiser": self.backbone.denoiser})
        self.parameters = list(modules.requires_grad_(True).train().parameters())
        self.regression = PerceptualRegression(
            self.backbone, self.trainer.controlnet, modules, Embeddings(self.trainer), self.trainer.error_metric(),
            perceptual=args.perceptual_weight, texture=args.texture_weight,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(args.seed)
        self.timesteps = self.backbone.draw_timesteps(TIMESTEPS, generator, **args.timestep_options())
        self.rate = torch.zeros((), device=self.device)
        graphed = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, betas=(args.adam_beta1, args.adam_beta2), weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon, fused=graphed, capturable=graphed,
        )  # fmt: skip
        self.mean = [parameter.detach().clone() for parameter in self.parameters]
        self.total = torch.zeros(2, device=self.device)
        torch.manual_seed(args.seed)

    # -- data ------------------------------------------------------------------------------------------------------------

    def new_crops(self) -> Iterator[Batch]:
        """Whole crops without end, `fresh` at a time."""
        plan = self.plan.of_pool(10**9, self.args.fresh)
        return self.trainer.encoded(plan, 0)

    def filled_pool(self) -> LatentPool:
        count = -(-self.args.pool_size // self.args.fresh)
        tensors = encode_pool((next(self.crops) for _ in range(count)), self.trainer.accelerator)
        pool = LatentPool(self.backbone, self.args.seed, tensors)
        self.prompts = torch.tensor(pool.prompts, device=self.device)
        self.oldest = 0
        return pool

    def refresh(self) -> None:
        """Put new crops in place of the oldest."""
        _, latents, control, prompts = next(self.crops)
        stop = self.oldest + len(latents)
        self.pool.latents[self.oldest : stop], self.pool.control[self.oldest : stop] = latents.half(), control.half()
        self.prompts[self.oldest : stop] = torch.tensor(prompts, device=self.device)
        self.oldest = stop % len(self.pool.latents)

    # -- a step ----------------------------------------------------------------------------------------------------------

    def step(self, small: bool) -> None:
        """Draw windows, go down the gradient of their loss, follow with the mean; nothing waits for the host."""
        args, side = self.args, self.pool.latents.shape[-1]
        step = 0 if small else self.plan.steps - 1
        count, window = self.plan.micro_batch_of(step), self.plan.window_of(step) * side // self.plan.whole

        def draw(limit: int) -> torch.Tensor:
            return torch.randint(limit, (count,), device=self.device)

        crops, top, left = draw(len(self.prompts)), 2 * draw((side - window) // 2 + 1), 2 * draw((side - window) // 2 + 1)
        latents, control = self.pool.windows(crops, top, left, window)
        low, high = args.guidance_range
        guidance = low + (high - low) * torch.rand(count, device=self.device)
        noise = torch.randn_like(latents)
        loss = self.regression(latents, control, self.prompts[crops], noise, self.timesteps[draw(TIMESTEPS)], guidance)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, args.max_grad_norm, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, self.parameters, 1 - args.ema_decay)
            self.total += torch.stack([loss.detach(), torch.ones_like(loss)])

    def captured(self, small: bool) -> Callable[[], None]:
        """The step as one CUDA graph; on a CPU as it is."""

        def eager() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self.step(small)

        if self.device.type != "cuda":
            return eager
        self.rate.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                eager()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.step(small)
        self.total.zero_()
        return graph.replay

    # -- the loop --------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        args, seconds = self.args, 60 * self.args.minutes
        phases = [(True, 1 - args.full_window_share), (False, 1.0)]
        steps = {small: self.captured(small) for small, end in phases if end}
        started, number, said, kept, lines = time.time(), 0, 0.0, 0, []
        for small, end in phases:
            while (passed := time.time() - started) < end * seconds:
                self.rate.fill_(self.rate_at(passed / seconds, number))
                steps[small]()
                number += 1
                if number % args.refresh_every == 0:
                    self.refresh()
                if passed > said + REPORT:
                    loss, count = self.total.tolist()
                    self.total.zero_()
                    samples = number * args.train_batch_size  # of whole crops so many as they have windows' pixels
                    lines.append({"seconds": round(passed, 1), "step": number, "samples": samples, "loss": loss / count})
                    print(json.dumps(lines[-1]), flush=True)
                    said = passed
                    if not math.isfinite(loss):
                        raise UserError(f"{self.trainer.output}: no finite loss at step {number}; lower --learning_rate")
                if args.snapshots and passed > (kept + 1) * seconds / (args.snapshots + 1) and kept < args.snapshots:
                    kept += 1
                    self.save(f"snapshots/{kept}")
        lines.append({"seconds": round(time.time() - started, 1), "step": number})
        write_text(self.trainer.output / "train_log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        self.save("")

    def rate_at(self, share: float, number: int) -> float:
        """Warm-up by steps, then a cosine over the time."""
        warm = min(1.0, (number + 1) / max(1, self.args.lr_warmup_steps))
        return self.args.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def save(self, folder: str) -> None:
        """The mean's weights as models in the output folder, or a folder of it."""
        trained = [parameter.detach().clone() for parameter in self.parameters]
        output = self.trainer.output
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.mean)
            self.trainer.output, self.trainer.mean = output / folder, None
            self.trainer.save_models()
            torch._foreach_copy_(self.parameters, trained)
        self.trainer.output = output
        self.modules.train()


def train(args: GpuTrainingSettings) -> None:
    """Train, keep snapshots, write `controlnet/` and `model/`.

    Raises:
        UserError: flags that this loop does not do, those of `BaselineTrainer`, or a loss that is not finite.
    """
    if not args.train_backbone:
        raise UserError("this program trains the denoiser with its ControlNet: give --train_backbone, or take scripts/train_controlnet.py")
    if not args.pool_size:
        raise UserError("--pool_size 0: the windows are drawn from a pool of crops on the GPU; give a number of crops, say 12000")
    if args.mixed_precision not in (None, "no"):
        raise UserError(
            f"--mixed_precision {args.mixed_precision}: this loop computes in float32 (TF32 where the GPU has it); leave it out"
        )
    GraphedTrainer(args).train()
