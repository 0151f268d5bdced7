"""Settings of a baseline's training that do not go together."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from dp2osr.backbones.kinds import kind_of, not_read_by
from dp2osr.cli import refuse_ignored
from dp2osr.errors import UserError, advice
from dp2osr.hub.settings import check_hub_flags
from dp2osr.training.checks import check_8_bits, check_schedule, check_tracker

if TYPE_CHECKING:
    from dp2osr.backbones.base import Backbone
    from dp2osr.training.baseline_settings import BaselineSettings

POOL = "pool.safetensors"
WRITTEN = ("controlnet", "model", "train_log.jsonl", "checkpoint-*.pt", "samples", "dp2osr-baseline", POOL)

# Settings that may differ when a run goes on: they change nothing in the weights but rounding, or stand in another setting.
FREE_SETTINGS = (
    "config", "output_dir", "checkpointing_steps", "checkpoints_total_limit", "report_to", "gradient_checkpointing", "strict",
    "text_cache_gb", "dataloader_num_workers", "dataloader_prefetch_factor", "train_batch_size",
    "gradient_accumulation_steps", "num_processes", "disable_tf32", "allow_tf32",
    "validation_image", "validation_prompt", "validation_steps", "num_validation_images", "num_inference_steps", "guidance_scale",
)  # fmt: skip


# Settings that may differ between the nodes of one run, where its files lie in other places, or cores are fewer.
ELSEWHERE = (
    "output_dir", "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "tokenizer_name",
    "controlnet_model_name_or_path", "train_dir", "prompt_file", "validation_image", "text_cache_gb", "dataloader_num_workers",
    "dataloader_prefetch_factor",
)  # fmt: skip
OF_PICTURES = ("validation_prompt", "validation_steps", "num_validation_images", "num_inference_steps", "guidance_scale")


def check_baseline_given(args: BaselineSettings, given: Container[str]) -> None:
    """Raise `UserError` where a flag would do nothing beside the others; which flags a ControlNet has depends on its base model's kind."""
    from dp2osr.backbones import model_source

    low, high = args.guidance_range
    if low > high:
        raise UserError(f"--guidance_range {low:g} {high:g}: LOW is above HIGH; swap them")
    kind = args.backbone or kind_of(model_source(args).pipeline())
    for other, own in not_read_by(kind).items():
        refuse_ignored(given, own, f"with a base model of {kind}: it is of {other}")
    if args.controlnet_model_name_or_path:
        named = ("conditioning_channels", "num_double_layers", "num_single_layers")
        refuse_ignored(given, named, "with --controlnet_model_name_or_path, which has its own")
    if not args.negative_share and not args.validation_image:
        refuse_ignored(given, ("negative_prompt",), "without --negative_share or --validation_image")
    if args.lr_scheduler == "constant" and args.lr_warmup_steps:
        refuse_ignored(given, ("lr_warmup_steps",), "with --lr_scheduler constant; take constant_with_warmup")
    if args.lr_scheduler != "cosine_with_restarts":
        refuse_ignored(given, ("lr_num_cycles",), f"with --lr_scheduler {args.lr_scheduler}")
    if args.lr_scheduler != "polynomial":
        refuse_ignored(given, ("lr_power",), f"with --lr_scheduler {args.lr_scheduler}")
    if not args.use_ema:
        refuse_ignored(given, ("ema_decay",), "without --use_ema")
    if not args.validation_image:
        refuse_ignored(given, OF_PICTURES, "without --validation_image")
    if not args.dataloader_num_workers:
        refuse_ignored(given, ("dataloader_prefetch_factor",), "with --dataloader_num_workers 0")
    if args.train_backbone:
        refuse_ignored(given, ("text_cache_gb",), "with --train_backbone, which trains the text encoders too")
    check_hub_flags(args, given)


def check_baseline(args: BaselineSettings) -> None:
    """Raise `UserError` for flags that do not go together, or an output folder that is no place for a baseline."""
    from dp2osr.training.folder import check_folder, check_length  # here: --help needs no torch

    if args.negative_share + args.drop_share > 1:
        raise UserError(f"--negative_share {args.negative_share:g} --drop_share {args.drop_share:g}: are above 1 together; lower one")
    if max(args.adam_beta1, args.adam_beta2) >= 1:
        raise UserError(f"--adam_beta1 {args.adam_beta1:g} --adam_beta2 {args.adam_beta2:g}: must be below 1")
    check_8_bits(args.use_8bit_adam)
    check_schedule(args)
    check_tracker(args.report_to)
    names = ("controlnet_model_name_or_path", "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "train_dir")
    inputs = {f"--{name}": getattr(args, name) for name in names}
    for path in args.validation_image or ():
        check_folder(args.output_dir, {"--validation_image": path}, WRITTEN)
    check_folder(args.output_dir, inputs, WRITTEN)
    check_length(args.output_dir, args.max_train_steps)


def check_sizes(args: BaselineSettings, backbone: Backbone) -> None:
    """Raise `UserError` unless crops and windows have an even number of latent pixels a side, and windows lie in crops."""
    scale, whole = backbone.vae_scale, args.resolution // backbone.vae_scale
    if args.resolution % (2 * scale):
        near = max(1, round(args.resolution / (2 * scale))) * 2 * scale
        raise UserError(f"--resolution {args.resolution}: a crop of this model has a multiple of {2 * scale} pixels a side; take {near}")
    window = args.window or whole
    if window > whole:
        raise UserError(f"--window {window}: a crop of --resolution {args.resolution} has {whole} latent pixels a side; take at most those")
    if window % 2:
        raise UserError(f"--window {window}: a window has an even number of latent pixels a side; take {window + 1}")


def baseline_memory_flags(args: BaselineSettings) -> str:
    """What to set where memory does not suffice, and is not set."""
    from dp2osr.device import asked_precision  # here: --help needs no torch

    flags = ["--gradient_checkpointing"] * (not args.gradient_checkpointing)
    if args.train_batch_size > 1:
        flags.append(f"--train_batch_size {args.train_batch_size // 2} with twice the --gradient_accumulation_steps")
    other = ["--use_8bit_adam"] * (not args.use_8bit_adam) + ["--mixed_precision bf16"] * (asked_precision(args.mixed_precision) == "no")
    return advice(flags, [*other, "a smaller --resolution"])
