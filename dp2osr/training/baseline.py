"""Training of the baseline ControlNet, the reference of DP²O: noise (or velocity) regression on LR–GT pairs, degraded on the fly.

The full-size recipes are the paper's (frozen backbone; C-SD2 batch 256, lr 2e-4, 35 k steps; C-FLUX batch 32, lr 1e-4, 45 k); the tiny
presets train the denoiser and the text encoders along with it (`--train_backbone`), from random weights. What a step sees follows from
(seed, sample number) alone, so a resumed run needs weights, optimizer, schedule, scaler, mean of the weights and the step's number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from dp2osr.backbones import load_backbone, model_source, set_text_length
from dp2osr.backbones.loading import cast, find_model_index
from dp2osr.data.collection import open_collection
from dp2osr.data.degradation_settings import load_degradation
from dp2osr.data.stream import BatchPlan, PairStream, StreamSettings, pair_batches
from dp2osr.device import DTYPES, compute_device, set_tf32, usable_precision, without_cudnn_attention
from dp2osr.divergence import Divergence
from dp2osr.errors import UserError, memory_advice
from dp2osr.files import save_model, write_text
from dp2osr.hub.settings import without_hub
from dp2osr.sharing import STALL, Launch
from dp2osr.training.baseline_checks import ELSEWHERE, FREE_SETTINGS, POOL, baseline_memory_flags, check_baseline, check_sizes
from dp2osr.training.checkpoints import check_agreement, restore_checkpoint, save_checkpoint
from dp2osr.training.folder import clear_parts, keep_run_settings
from dp2osr.training.log import TrainingLog, start_tracker
from dp2osr.training.optimizers import adamw
from dp2osr.training.pool import made_pool
from dp2osr.training.publication import Publication
from dp2osr.training.regression import Regression, draw_noise, image_metric
from dp2osr.training.settings import STEADY_SCHEDULES
from dp2osr.training.signals import end_early, noted_signals
from dp2osr.training.skipped import Skipped, check_photographs, take_tags
from dp2osr.training.text import PromptBook
from dp2osr.training.validation_pictures import Pictures, read_validation

if TYPE_CHECKING:
    from dp2osr.training.baseline_settings import BaselineSettings
    from dp2osr.training.pool import Batch
    from dp2osr.training.signals import StopRequest

CONTROLNET_FLAGS = ("conditioning_channels", "num_double_layers", "num_single_layers")  # each kind of backbone takes its own
METRIC_CROPS = 16  # from which `image_metric` learns how an image feels a latent's error


class BaselineTrainer:
    """Networks, data and optimizer of one run.

    Args:
        args: `BaselineSettings`.

    Raises:
        UserError: flags that do not go together, photographs or models that cannot be used, an output folder of another run.
    """

    def __init__(self, args: BaselineSettings) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        check_baseline(args)
        self.args, self.output, device, self.launch = args, Path(args.output_dir), compute_device(), Launch()
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",  # told, or several processes on a CPU take themselves for one each
            mixed_precision=usable_precision(args.mixed_precision, device),
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=None if args.report_to == "none" else args.report_to,
            project_dir=args.output_dir,
            # a model may have parameters without a gradient, as those of text that leaves its last block and is read by nobody
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=args.train_backbone),
                InitProcessGroupKwargs(timeout=STALL),
            ],
        )
        self.main = self.accelerator.is_main_process
        set_tf32(device, args.disable_tf32)
        validation = read_validation(args.validation_image, args.validation_prompt)
        self.load_networks()
        self.open_data()
        self.keep_settings()
        self.prompts = self.embed_prompts([prompt for _, _, prompt in validation])
        self.pictures = None
        if validation and self.main:
            self.pictures = Pictures(args, self.backbone, validation, self.prompts, self.stream.settings.degradation.scale)
        self.make_optimizer()

    # -- what a run is made of -----------------------------------------------------------------------------------------

    def load_networks(self) -> None:
        """The backbone, frozen parts in the run's precision, and the ControlNet in fp32."""
        args = self.args
        torch.manual_seed(args.seed)
        dtype = torch.float32 if args.train_backbone else DTYPES[self.accelerator.mixed_precision]
        self.backbone = load_backbone(model_source(args), self.accelerator.device, dtype, kind=args.backbone)
        check_sizes(args, self.backbone)
        set_text_length(self.backbone, args.max_sequence_length)
        if args.train_backbone:
            find_model_index(args.pretrained_model_name_or_path, args.revision)  # which is saved beside the parts
        if args.controlnet_model_name_or_path:
            controlnet = self.backbone.load_controlnet(args.controlnet_model_name_or_path, torch.float32)
        else:
            controlnet = cast(self.backbone.new_controlnet(**{name: getattr(args, name) for name in CONTROLNET_FLAGS}), torch.float32)
        self.controlnet, self.modules = controlnet, torch.nn.ModuleDict({"controlnet": controlnet})
        if args.train_backbone:
            self.modules.update(self.backbone.trained_parts())
        self.modules.requires_grad_(True).train()
        if args.gradient_checkpointing:
            controlnet.enable_gradient_checkpointing()
            self.backbone.denoiser.enable_gradient_checkpointing()

    def open_data(self) -> None:
        """The photographs, and the plan of which samples are whose."""
        args, scale = self.args, self.backbone.vae_scale
        degradation = load_degradation(args.degradation)
        if args.resolution % degradation.scale:
            raise UserError(f"--resolution {args.resolution}: must be a multiple of the degradation's scale {degradation.scale}")
        with self.launch.first("photographs"):  # the others find the shards' index remembered
            collection = open_collection(args.train_dir, args.recursive)
        self.skipped = Skipped(args.train_dir, args.strict)
        check_photographs(collection, args, self.main)
        if args.prompt_file:
            take_tags(collection, args.prompt_file, self.main)
        settings = StreamSettings(
            degradation, args.resolution, scale, args.seed, args.crops_per_photograph, args.drop_share, args.negative_share
        )
        self.stream = PairStream(collection, settings)
        window = args.resolution if args.window is None else args.window * scale
        small = args.max_train_steps - round(args.max_train_steps * args.full_window_share) if window < args.resolution else 0
        self.plan = BatchPlan(
            args.train_batch_size, args.gradient_accumulation_steps, self.accelerator.num_processes,
            window, args.resolution, args.max_train_steps, small,
        )  # fmt: skip

    def keep_settings(self) -> None:
        """Write the run's settings, or compare them with those that are there, on all ranks with the first one's.

        Raises:
            UserError: a rank with other flags, photographs or code; settings of another run.
        """
        args, plan = self.args, self.plan
        used = {
            "mixed_precision": self.accelerator.mixed_precision,
            "num_processes": self.accelerator.num_processes,
            "samples_per_step": sorted({plan.step_size(0), plan.step_size(plan.steps - 1)}),
            "photographs": self.stream.collection.fingerprint(),
        }
        self.launch.agree("training", {**{name: value for name, value in without_hub(args).items() if name not in ELSEWHERE}, **used})
        if self.main:
            steady = args.lr_scheduler in STEADY_SCHEDULES and args.full_window_share in (0, 1)
            keep_run_settings(self.output, {**without_hub(args), **used}, FREE_SETTINGS, steady)
            clear_parts(self.output)
        self.accelerator.wait_for_everyone()

    def embed_prompts(self, more: Iterable[str]) -> PromptBook:
        """The `PromptBook`: none, the negative prompt, those of the photographs in order, then `more`."""
        texts = ["", self.args.negative_prompt, *self.stream.collection.prompts]
        texts += [text for text in dict.fromkeys(more) if text not in texts]
        return PromptBook(self.backbone, texts, self.args.train_backbone, self.args.text_cache_gb * 1e9, quiet=not self.main)

    def make_optimizer(self) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        args, accelerator = self.args, self.accelerator
        self.parameters = list(self.modules.parameters())
        optimizer = adam(args, self.parameters)
        self.schedule = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps,
            num_cycles=args.lr_num_cycles, power=args.lr_power,
        )  # fmt: skip
        regression = Regression(self.backbone, self.controlnet, self.modules, self.prompts, self.error_metric())
        self.regression, self.optimizer = accelerator.prepare(regression, optimizer)
        self.parts = {"modules": self.modules, "optimizer": self.optimizer, "scheduler": self.schedule}
        if accelerator.scaler:
            self.parts["scaler"] = accelerator.scaler
        self.mean = None
        if args.use_ema:
            self.mean = self.parts["ema"] = EMAModel(self.parameters, decay=args.ema_decay, foreach=True)

    def error_metric(self) -> torch.Tensor:
        """The (C, C) metric of errors; where the image counts, by the crops of the first photographs."""
        if not self.args.image_weight:
            return torch.eye(self.backbone.latent_channels, device=self.backbone.device)
        from accelerate.utils import broadcast

        side, crops = self.args.resolution, self.stream.settings.crops_per_photograph
        items = [self.stream[number * crops, 1, side] for number in range(METRIC_CROPS)]
        pixels = torch.cat([torch.from_numpy(item["pixels"][0]) for item in items if not item.get("failed")])
        return broadcast(image_metric(self.backbone, self.backbone.encode_images(as_images(pixels)), self.args.image_weight))

    # -- the loop --------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Go on from the newest checkpoint to the last step, or to the end of the step in which a signal comes."""
        args, accelerator = self.args, self.accelerator
        first = self.step = restore_checkpoint(self.output, self.parts)
        if self.mean:
            self.mean.to(self.backbone.device)
        check_agreement(first, accelerator, self.parameters)
        log = TrainingLog(self.output / "train_log.jsonl", first) if self.main else None
        start_tracker(self.accelerator, self.args, "dp2osr-baseline")
        started, divergence, smoothed = time.time(), Divergence(self.output), None
        batches = self.batches(first)
        bar = tqdm(
            range(first, args.max_train_steps), initial=first, total=args.max_train_steps, unit="step", mininterval=5, disable=not self.main
        )
        with noted_signals() as request:
            for step in bar:
                loss, stopping = self.train_step(step, batches, request)
                self.step = step + 1
                divergence.see(self.step, math.isfinite(loss))
                smoothed = loss if smoothed is None else 0.98 * smoothed + 0.02 * loss
                bar.set_postfix(loss=f"{smoothed:.4f}", refresh=False)
                accelerator.log({"loss": loss, "lr": self.schedule.get_last_lr()[0]}, step=self.step)
                if self.step % args.checkpointing_steps == 0 or self.step == args.max_train_steps or stopping:
                    self.save(log, {"step": self.step, "seconds": round(time.time() - started), "loss": smoothed})
                if self.pictures and (self.step % args.validation_steps == 0 or self.step == args.max_train_steps):
                    with self.saved_weights():
                        self.pictures(self.controlnet, self.output / "samples" / f"{self.step:06d}.png")
                if stopping and self.step < args.max_train_steps:
                    end_early(accelerator, self.output, request.signal, self.step, args.max_train_steps)
        if first == args.max_train_steps and self.main:  # a stop between its checkpoint and its models
            self.save_models()
        accelerator.end_training()
        if self.main:
            self.skipped.sum_up(self.output)

    @without_cudnn_attention()
    def train_step(self, step: int, batches: Iterator[Batch], request: StopRequest) -> tuple[float, bool]:
        """One optimizer step over all micro-batches: (the mean loss of the whole batch, whether a signal has come to any process)."""
        args, accelerator = self.args, self.accelerator
        total = torch.zeros(2, device=accelerator.device)
        for _ in range(self.plan.accumulation):
            numbers, latents, control, prompts = next(batches)
            noise = draw_noise(self.backbone, numbers, latents.shape[1:], args.seed, args.timestep_options(), args.guidance_range)
            torch.manual_seed(numbers[0])  # of what dropout there is
            with accelerator.accumulate(self.regression):
                loss = self.regression(latents, control, prompts, *noise)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.parameters, args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            total[0] += loss.detach() / self.plan.accumulation
        self.schedule.step()
        if self.mean:
            self.mean.step(self.parameters)
        total[1] = bool(request.signal)
        loss, stopping = (accelerator.reduce(total, "sum") / self.plan.processes).tolist()
        return loss, stopping > 0

    def batches(self, first: int) -> Iterator[Batch]:
        """Yield this process's micro-batches from step `first` on: (numbers, latents, control, prompts), of the pool if there is one."""
        if self.args.pool_size:
            size = self.args.pool_size
            shares = partial(self.encoded, self.plan.of_pool(size), 0)
            pool = made_pool(self.output / POOL, self.backbone, self.args.seed, size, shares, self.accelerator)
            return pool.batches(self.plan, self.accelerator.process_index, first)
        return self.encoded(self.plan, first)

    def encoded(self, plan: BatchPlan, first: int) -> Iterator[Batch]:
        """The same, degraded and encoded anew."""
        args = self.args
        loaded = pair_batches(
            self.stream, plan, self.accelerator.process_index, first, args.dataloader_num_workers, args.dataloader_prefetch_factor
        )
        for numbers, pixels, prompts, problems in loaded:
            self.skipped.note(problems)
            yield numbers, *self.encode(pixels), prompts

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(2, B, w, w, 3) uint8 GT and upsampled LR → (latents (B, C, h, w), control input)."""
        gt, lr = (as_images(side.to(self.backbone.device, non_blocking=True)) for side in pixels)
        with torch.no_grad():
            return self.backbone.encode_images(gt), self.backbone.prepare_control(lr)

    # -- what it leaves ----------------------------------------------------------------------------------------------------

    def save(self, log: TrainingLog | None, record: dict[str, Any]) -> None:
        """A checkpoint, the models, a line of the log."""
        from accelerate.utils import gather_object

        check_agreement(self.step, self.accelerator, self.parameters)
        found = gather_object(list(self.skipped.found.items()))
        if log:
            self.skipped.found.update(found)
            log.write({**record, **({"skipped": len(self.skipped.found)} if self.skipped.found else {})})
            save_checkpoint(self.output, self.step, self.parts, self.args.checkpoints_total_limit)
            self.save_models()

    @contextmanager
    def saved_weights(self) -> Iterator[None]:
        """Within, the networks have the weights that are saved: the running mean's, where there is one."""
        if self.mean:
            self.mean.store(self.parameters)
            self.mean.copy_to(self.parameters)
        self.modules.eval()
        try:
            yield
        finally:
            self.modules.train()
            if self.mean:
                self.mean.restore(self.parameters)

    def save_models(self) -> None:
        """The ControlNet in `controlnet/` and, if it was trained, the whole pipeline in `model/`; fp16 if asked."""
        args = self.args

        def stored(module: torch.nn.Module) -> torch.nn.Module:
            return deepcopy(module).half() if args.save_fp16 else module

        with self.saved_weights():
            save_model(stored(self.controlnet), self.output / "controlnet")
            if args.train_backbone:
                for name, part in self.backbone.saved_parts().items():
                    save_model(stored(part) if isinstance(part, torch.nn.Module) else part, self.output / "model" / name)
                index = Path(find_model_index(args.pretrained_model_name_or_path, args.revision))
                write_text(self.output / "model" / "model_index.json", index.read_text(encoding="utf-8"))


def train_baseline(args: BaselineSettings) -> None:
    """Train a ControlNet (and, for tiny models, the backbone) on degraded photographs; resumable; diffusers layout out."""
    publication = Publication(args)
    with memory_advice(baseline_memory_flags(args)):
        trainer = BaselineTrainer(args)
        publication.open()
        trainer.train()
    publication.finish(trainer.output / "controlnet")


def adam(args: BaselineSettings, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the flags."""
    return adamw(
        parameters, args.use_8bit_adam, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay, eps=args.adam_epsilon,
    )  # fmt: skip


def as_images(pixels: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(255)
