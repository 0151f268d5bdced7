"""Flags of a baseline's training, the same for every backbone; names are those of diffusers' training scripts where these have them."""

import argparse
import importlib.util

from dp2osr.config import at_least, finite, model_flags, positive, share, timestep_flags
from dp2osr.errors import UserError
from dp2osr.flags import refuse_ignored
from dp2osr.training.options import OF_FLOW, SCHEDULES, check_schedule, check_tracker

WRITTEN = ("controlnet", "model", "train_log.jsonl", "checkpoint-*.pt", "samples", "dp2osr-baseline")

# Settings that may differ when a run goes on: they change nothing in the weights but rounding, or stand in another setting.
FREE_SETTINGS = (
    "config", "output_dir", "checkpointing_steps", "checkpoints_total_limit", "report_to", "gradient_checkpointing", "strict",
    "text_cache_gb", "dataloader_num_workers", "dataloader_prefetch_factor", "train_batch_size",
    "gradient_accumulation_steps", "num_processes",
    "validation_image", "validation_prompt", "validation_steps", "num_validation_images", "num_inference_steps", "guidance_scale",
)  # fmt: skip


def add_data_flags(add):
    """Which photographs, how they are degraded, who loads them."""
    add(
        "--train_dir",
        required=True,
        help="HR photographs: a folder, a list of paths (.txt, or .csv with columns file and prompt), or WebDataset shards: a folder of "
        ".tar files, one, or a pattern as 'shards/{000..127}.tar'",
    )
    add("--recursive", action="store_true", help="take the photographs of sub-folders too")
    add("--strict", action="store_true", help="stop at a photograph or shard that cannot be used; else it is told and skipped")
    add("--degradation", default="resshift", help="name in configs/degradation or a YAML")
    add("--prompt_file", help="JSON {photograph's stem: tags}; over the captions of a list or of shards")
    add("--resolution", type=at_least(1), default=512, help="side of a degraded GT crop, pixels")
    add(
        "--window",
        type=at_least(1),
        help="side of a training window in latent pixels, cut from the degraded crop (default: the whole crop)",
    )
    add("--full_window_share", type=share, default=1.0, help="share of the steps, at the end, that train on whole crops")
    add(
        "--crops_per_photograph",
        type=at_least(1),
        default=1,
        help="samples in a row that are crops of one decoded photograph: decoding 12 megapixels takes longer than degrading a crop",
    )
    add("--drop_share", type=share, default=0.1, help="share of samples trained with an empty prompt")
    add("--negative_share", type=share, default=0.0, help="share of samples that learn the degraded image under the negative prompt")
    add("--negative_prompt", default="dotted, noise, blur, lowres, smooth", help="the prompt of those samples")
    add(
        "--dataloader_num_workers",
        type=at_least(0),
        default=2,
        help="processes that decode and degrade, for each training process; 0: itself. Samples do not depend on it",
    )
    add("--dataloader_prefetch_factor", type=at_least(1), default=2, help="batches that they prepare ahead")
    add(
        "--pool_size",
        type=at_least(0),
        default=0,
        help="degrade and encode so many crops once and draw every window from them: for tiny models on CPUs, whose steps take less time "
        "than their pairs; 0: each sample is new",
    )
    add("--text_cache_gb", type=positive, default=16.0, help="host memory for embedded prompts; beyond it the text encoders stay resident")


def add_training_flags(add):
    """How the ControlNet is made and trained."""
    add("--controlnet_model_name_or_path", help="start from this ControlNet instead of a copy of the backbone's encoder")
    add("--output_dir", required=True, help="state, log, controlnet/ and, with --train_backbone, model/; run again to go on")
    add(
        "--train_batch_size",
        type=at_least(1),
        default=8,
        help="samples a micro-batch on each process; fewer when whole crops are trained after windows, the same pixels",
    )
    add("--gradient_accumulation_steps", type=at_least(1), default=1, help="micro-batches a step; equals a larger batch")
    add("--gradient_checkpointing", action="store_true", help="recompute activations in the backward pass: less memory, more time")
    add("--max_train_steps", type=at_least(1), default=35_000, help="optimizer steps")
    add("--learning_rate", type=at_least(0, float), default=2e-4, help="peak rate")
    add("--lr_scheduler", default="constant_with_warmup", choices=SCHEDULES, help="schedule of the rate")
    add("--lr_warmup_steps", type=at_least(0), default=500, help="warm-up, steps")
    add("--lr_num_cycles", type=at_least(1), default=1, help="restarts of cosine_with_restarts")
    add("--lr_power", type=positive, default=1.0, help="power of the polynomial schedule")
    add("--use_8bit_adam", action="store_true", help="AdamW with 8-bit moments, by the package bitsandbytes")
    add("--adam_beta1", type=share, default=0.9, help="of AdamW")
    add("--adam_beta2", type=share, default=0.999, help="of AdamW")
    add("--adam_weight_decay", type=at_least(0, float), default=1e-2, help="of AdamW")
    add("--adam_epsilon", type=positive, default=1e-8, help="of AdamW")
    add("--max_grad_norm", type=at_least(0, float), default=1.0, help="the step's gradient is clipped to this norm")
    add("--use_ema", action="store_true", help="keep a running mean of the weights; it is what is saved as a model and sampled")
    add("--ema_decay", type=share, default=0.9999, help="of that mean, at most; (1 + step) / (10 + step) before")
    add("--allow_tf32", action="store_true", help="matrix products in TF32 on GPUs that have it")
    add("--train_backbone", action="store_true", help="train the backbone's denoiser and text encoders too (tiny models)")
    add(
        "--conditioning_channels",
        type=at_least(1),
        nargs="+",
        help="SD2: channels of the control embedding, one number more than the autoencoder halves an image's side "
        "(default: the published 16 32 96 256, as many as that takes)",
    )
    add("--num_double_layers", type=at_least(0), default=4, help="FLUX: double blocks of the ControlNet")
    add("--num_single_layers", type=at_least(0), default=0, help="FLUX: single blocks of the ControlNet")
    add(
        "--image_weight", type=share, default=0.0, help="share of the error that is weighed as the decoded image feels it; 0: plain latents"
    )
    add(
        "--guidance_range",
        type=finite,
        nargs=2,
        default=[1.0, 1.0],
        metavar=("LOW", "HIGH"),
        help="FLUX: the guidance that the network is told, drawn for every sample",
    )


def add_watching_flags(add):
    """What a run writes beside its weights."""
    add("--save_fp16", action="store_true", help="store models in fp16")
    add("--checkpointing_steps", type=at_least(1), default=500, help="steps between checkpoints")
    add("--checkpoints_total_limit", type=at_least(1), default=2, help="checkpoints kept")
    add("--report_to", default="tensorboard", choices=["tensorboard", "wandb", "trackio", "none"], help="tracker")
    add("--validation_image", nargs="+", help="LR images, or folders of them, that are sampled to samples/STEP.png")
    add("--validation_prompt", nargs="+", help="their prompts: one for all, or one each (default: none)")
    add("--validation_steps", type=at_least(1), default=500, help="steps between these pictures")
    add("--num_validation_images", type=at_least(1), default=2, help="samples of each")
    add("--num_inference_steps", type=at_least(1), help="denoising steps of these samples (default: the paper's)")
    add("--guidance_scale", type=finite, help="guidance of these samples (default: the paper's)")


def build_parser(description):
    """The parser of scripts/train_controlnet.py."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=description, parents=[model_flags(), timestep_flags()], formatter_class=formatter)
    add_data_flags(parser.add_argument)
    add_training_flags(parser.add_argument)
    add_watching_flags(parser.add_argument)
    return parser


OF_PICTURES = ("validation_prompt", "validation_steps", "num_validation_images", "num_inference_steps", "guidance_scale")


def check_baseline_given(args, given):
    """Raise `UserError` where a flag would do nothing beside the others; which flags a ControlNet has depends on its base model's kind."""
    from dp2osr.backbones import PIPELINES, model_source

    low, high = args.guidance_range
    if low > high:
        raise UserError(f"--guidance_range {low:g} {high:g}: LOW is above HIGH; swap them")
    kind = args.backbone or PIPELINES.get(model_source(args).pipeline())
    of_kinds = {"sd2": ("conditioning_channels",), "flux": ("num_double_layers", "num_single_layers", "guidance_range", *OF_FLOW)}
    for other, flags in of_kinds.items():
        if kind and other != kind:
            refuse_ignored(given, flags, f"with a base model of {kind}: it is of {other}")
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


def check_baseline(args):
    """Raise `UserError` for flags that do not go together, or an output folder that is no place for a baseline."""
    from dp2osr.training.folder import check_folder, check_length  # here: --help needs no torch

    if args.negative_share + args.drop_share > 1:
        raise UserError(f"--negative_share {args.negative_share:g} --drop_share {args.drop_share:g}: are above 1 together; lower one")
    if max(args.adam_beta1, args.adam_beta2) >= 1:
        raise UserError(f"--adam_beta1 {args.adam_beta1:g} --adam_beta2 {args.adam_beta2:g}: must be below 1")
    if args.use_8bit_adam and not importlib.util.find_spec("bitsandbytes"):
        raise UserError("--use_8bit_adam: the package bitsandbytes is not installed; pip install bitsandbytes, or leave the flag out")
    check_schedule(args)
    check_tracker(args.report_to)
    names = ("controlnet_model_name_or_path", "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "train_dir")
    inputs = {f"--{name}": getattr(args, name) for name in names}
    for path in args.validation_image or ():
        check_folder(args.output_dir, {"--validation_image": path}, WRITTEN)
    check_folder(args.output_dir, inputs, WRITTEN)
    check_length(args.output_dir, args.max_train_steps)


def check_sizes(args, backbone):
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
