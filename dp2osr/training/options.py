"""Flags of preference training, the same for every backbone."""

import argparse
import importlib.util

from dp2osr.config import at_least, finite, positive, share, timestep_flags
from dp2osr.errors import UserError
from dp2osr.flags import refuse_ignored
from dp2osr.preference.weights import WEIGHTINGS

LOSSES = ("sigmoid", "ipo", "hinge", "plackett_luce")  # of preference.loss, named here so that --help needs no torch
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")  # of diffusers.optimization
STEADY_SCHEDULES = SCHEDULES[:2]  # that do not depend on the number of steps: a longer run begins as a shorter one
GRADIENT_SUMS = {"fp32": "float32", "fp64": "float64"}  # torch's names


def training_flags():
    """A new parent parser: the flags of preference training."""
    parser = argparse.ArgumentParser(add_help=False, parents=[timestep_flags()])
    add = parser.add_argument
    add("--controlnet_model_name_or_path", required=True, help="where the policy starts, and the reference")
    add(
        "--reference_controlnet_model_name_or_path",
        help="a reference other than the policy's start: a further round may keep the first one (default: the start)",
    )
    add("--candidates_dir", required=True, help="candidate folder of gen_candidates.py")
    add("--scores", help="table of label_rewards.py (default: scores.parquet in the candidate folder)")
    add("--reward_config", help="name in configs/rewards or a YAML (default: the one that the scores were made for)")
    add("--output_dir", required=True, help="checkpoints, log and, at the end, the policy; run again to go on")
    add("--force", action="store_true", help="go on in an output folder of other settings, which are shown; the rate is the flags' again")
    add("--num_candidates", type=at_least(1), help="M: use the first M candidates of each image (default: all that are scored)")
    add("--top_n", type=at_least(1), default=8, help="N: best and worst candidates of a group (default: %(default)s)")
    add("--beta", type=at_least(0, float), default=5000.0, help="β of Diffusion-DPO (default: %(default)s)")
    add(
        "--sft_weight",
        type=at_least(0, float),
        default=0.0,
        help="λ of the winners' own errors beside the preference (default: %(default)s)",
    )
    add("--loss", default="sigmoid", choices=LOSSES, help="sigmoid is the paper's (default: %(default)s)")
    add(
        "--label_smoothing",
        type=at_least(0, float),
        default=0.0,
        help="share of pairs whose label is taken to be wrong, below 0.5, with --loss sigmoid (default: %(default)s)",
    )
    add("--weighting", default="both", choices=WEIGHTINGS, help="hierarchical weights (default: %(default)s)")
    add("--shared_noise", action="store_true", help="one noise for a group's candidates, as public Diffusion-DPO code has it for a pair")
    add(
        "--timestep_range",
        type=share,
        nargs=2,
        default=[0.0, 1.0],
        metavar=("LOW", "HIGH"),
        help="share of the noise schedule that timesteps are drawn from, 0: clean, 1: noise (default: 0 1)",
    )
    add(
        "--groups_per_step",
        type=at_least(1),
        default=16,
        help="groups an optimizer step over all processes; 16 × 8² = 1024 pairs (default: %(default)s)",
    )
    add(
        "--timesteps_per_group",
        type=at_least(1),
        default=1,
        help="timesteps, with their own noise, in a visit of a group (default: %(default)s)",
    )
    add(
        "--pairs_per_group",
        type=at_least(0),
        default=0,
        help="pairs drawn from a group's N² at each visit, as a batch of pairs has; 0: all, at the same cost (default: %(default)s)",
    )
    add(
        "--gradient_sum",
        default="fp64",
        choices=GRADIENT_SUMS,
        help="precision in which gradients of groups and processes are added; fp64 makes the weights the same for any number of processes, "
        "for 8 bytes a parameter (default: %(default)s)",
    )
    add(
        "--reference_cache", help="folder that keeps the reference's errors: trainings on the same visits (same seed) need not run it again"
    )
    add("--lora_rank", type=at_least(0), default=0, help="train LoRA adapters of this rank instead of the whole ControlNet; 0: the whole")
    add(
        "--micro_batch_size",
        type=at_least(0),
        default=0,
        help="candidates in one backward pass; 0: the 2N of a group; same gradient for any (default: %(default)s)",
    )
    add("--gradient_checkpointing", action="store_true", help="recompute activations in the backward pass: less memory, more time")
    add("--learning_rate", type=at_least(0, float), default=2e-5, help="AdamW rate (default: %(default)s)")
    add("--lr_scheduler", default="constant_with_warmup", choices=SCHEDULES, help="schedule of the rate (default: %(default)s)")
    add("--lr_warmup_steps", type=at_least(0), default=0, help="warm-up, steps (default: %(default)s)")
    add("--adam_weight_decay", type=at_least(0, float), default=1e-2, help="(default: %(default)s)")
    add("--max_grad_norm", type=at_least(0, float), default=1.0, help="gradient clipping (default: %(default)s)")
    add(
        "--max_train_steps",
        type=at_least(1),
        default=1000,
        help="optimizer steps; with a constant rate more may be asked for later (default: %(default)s)",
    )
    add("--checkpointing_steps", type=at_least(1), default=100, help="steps between checkpoints (default: %(default)s)")
    add("--checkpoints_total_limit", type=at_least(1), default=2, help="checkpoints kept (default: %(default)s)")
    add("--report_to", default="tensorboard", choices=["tensorboard", "wandb", "trackio", "none"], help="tracker (default: %(default)s)")
    add("--validation_image_path", help="held-out LR images to sample and score during training")
    add("--validation_gt_path", help="their GT, by name")
    add("--validation_prompt_file", help="their tags, JSON {image id: tags} (default: empty prompts)")
    add("--validation_steps", type=at_least(0), default=100, help="steps between validations; 0: none (default: %(default)s)")
    add("--validation_candidates", type=at_least(2), default=8, help="samples a validation image (default: %(default)s)")
    add(
        "--collapse_patience",
        type=at_least(0),
        default=3,
        help="act when the held-out reward has fallen at this many validations in a row; 0: never (default: %(default)s)",
    )
    add(
        "--on_collapse",
        default="stop",
        choices=["stop", "halve_lr", "warn"],
        help="what to do then; best/ has the best policy in any case (default: %(default)s)",
    )
    add("--num_inference_steps", type=at_least(1), help="denoising steps in validation (default: the candidates')")
    add("--guidance_scale", type=finite, help="guidance in validation (default: the candidates')")
    add("--align_method", choices=["adain", "wavelet", "nofix"], help="colour fix in validation (default: the candidates')")
    add("--upscale", type=positive, help="size of GT over LR in validation (default: the candidates')")
    return parser


def check_options(args):
    """Raise `UserError` for flags that do not go together."""
    low, high = args.timestep_range
    if not 0 <= low < high <= 1:
        raise UserError(f"--timestep_range {low} {high}: must be 0 <= LOW < HIGH <= 1")
    if args.label_smoothing >= 0.5 or args.label_smoothing and args.loss != "sigmoid":
        raise UserError(f"--label_smoothing {args.label_smoothing}: must be below 0.5, and is of --loss sigmoid only")
    pairs = args.top_n**2
    if args.pairs_per_group > pairs or args.pairs_per_group and args.loss == "plackett_luce":
        raise UserError(f"--pairs_per_group {args.pairs_per_group}: a group has {pairs} pairs, and plackett_luce takes them whole")
    if args.lora_rank and args.reference_controlnet_model_name_or_path:
        raise UserError(
            "--lora_rank: the reference is the policy without its adapters; leave --reference_controlnet_model_name_or_path out"
        )
    if args.validation_steps and bool(args.validation_image_path) != bool(args.validation_gt_path):
        raise UserError("--validation_image_path and --validation_gt_path: give both, or neither")
    check_schedule(args)
    check_tracker(args.report_to)


def check_schedule(args):
    """Raise `UserError` for a rate that the schedule cannot lower to its own end."""
    if args.lr_scheduler == "polynomial" and args.learning_rate <= 1e-7:
        raise UserError(
            f"--learning_rate {args.learning_rate:g}: a polynomial schedule ends at 1e-7; take a higher rate, or another schedule"
        )


TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}  # packages, one of which it needs


def check_tracker(name):
    """Raise `UserError` where the package of a tracker is not installed."""
    packages = TRACKERS.get(name, ())
    if packages and not any(importlib.util.find_spec(package) for package in packages):
        raise UserError(f"--report_to {name}: the package {name} is not installed; pip install {name}, or give --report_to none")


OF_VALIDATION = (
    "validation_gt_path", "validation_prompt_file", "validation_candidates", "collapse_patience", "on_collapse",
    "num_inference_steps", "guidance_scale", "align_method", "upscale",
)  # fmt: skip
OF_FLOW = ("timestep_sampling", "logit_mean", "logit_std")


def check_given(args, given):
    """Raise `UserError` where a flag of a training would do nothing beside the others; `given` is what `given_flags` returns."""
    if not args.validation_image_path:
        refuse_ignored(given, OF_VALIDATION + ("validation_steps",) * bool(args.validation_steps), "without --validation_image_path")
    elif not args.validation_steps:
        refuse_ignored(given, ("validation_image_path", *OF_VALIDATION), "with --validation_steps 0")
    elif not args.collapse_patience:
        refuse_ignored(given, ("on_collapse",), "with --collapse_patience 0")
    if args.lr_scheduler == "constant" and args.lr_warmup_steps:
        refuse_ignored(given, ("lr_warmup_steps",), "with --lr_scheduler constant; take constant_with_warmup")
    if args.backbone == "sd2":
        refuse_ignored(given, OF_FLOW, "with an SD2 model, whose timesteps are drawn evenly")
    if args.timestep_sampling == "uniform":
        refuse_ignored(given, ("logit_mean", "logit_std"), "with --timestep_sampling uniform")


# -- validation samples as the candidates were sampled -----------------------------------------------------------------


def candidates_settings(settings, backbone):
    """How candidates were sampled, by their folder's `settings`: the keys of `settings.NAMES`, `upscale` and, where it is known, `tiling`.

    What they do not say is the paper's for this kind of `backbone`. Where guidance was off the negative prompt was not read.
    """
    from dp2osr.sampling.settings import published_settings  # here: --help needs no torch

    published = {**published_settings(backbone), "upscale": 4}
    found = {name: settings[name] for name in (*published, "tiling") if settings.get(name) is not None}
    return {**published, **found}


def sampling_options(args, settings, backbone):
    """What `GroupSampler` reads: the candidates' `settings`, and where they are given the flags of training."""
    sampled = candidates_settings(settings, backbone)
    tiling = sampled.pop("tiling", None)
    own = {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale", "align_method", "upscale")}
    scale = backbone.vae_scale
    return argparse.Namespace(
        **{**sampled, **{name: value for name, value in own.items() if value is not None}},
        prompt_source="file" if args.validation_prompt_file else "none",
        prompt_file=args.validation_prompt_file,
        batch_size=args.validation_candidates,
        seed=args.seed,
        tile_size=tiling and tiling["size"] * scale,
        tile_overlap=tiling and tiling["overlap"] * scale,
    )


def told_differences(options, settings, backbone):
    """Lines on what of validation's sampling is not as the candidates were sampled."""
    sampled, prompts = candidates_settings(settings, backbone), settings.get("prompt_source")
    pairs = {name: (getattr(options, name), value) for name, value in sampled.items() if name != "tiling"}
    lines = [f"--{name} {ours} as given, the candidates have {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if prompts in ("ram", "file") and not options.prompt_file:
        lines.append("samples with empty prompts, the candidates have tags; give --validation_prompt_file")
    return lines
