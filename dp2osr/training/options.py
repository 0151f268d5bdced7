"""Settings of a training that do not go together, and how its validation samples."""

import importlib.util

from dp2osr.backbones.kinds import not_read_by
from dp2osr.cli import refuse_ignored
from dp2osr.errors import UserError
from dp2osr.provenance import legacy_weights_hash, weights_hash
from dp2osr.sampling.settings import GenerateSettings


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


def check_model(args, store):
    """Raise `UserError` unless the candidates of `store` are latents of the base model, and of the files of it, that `args` name."""
    settings, files = store.settings, store.settings.get("model_files", {})
    model, vae = args.pretrained_model_name_or_path, args.pretrained_vae_model_name_or_path
    found = {"variant": files.get("variant"), "revision": files.get("revision"), "autoencoder": settings.get("vae_hash")}
    given = {"variant": args.variant, "revision": args.revision, "autoencoder": weights_hash(vae, part="vae") if vae else None}
    if vae and found["autoencoder"] != given["autoencoder"] and found["autoencoder"] == legacy_weights_hash(vae):
        given["autoencoder"] = found["autoencoder"]
    here = weights_hash(model, args.variant, args.revision)
    if settings["model_hash"] == here and (not args.variant or here != weights_hash(model, None, args.revision)):
        given |= {"variant": found["variant"], "revision": found["revision"]}  # the very same weights, whatever they were called by
    elif settings["model_hash"] not in (here, legacy_weights_hash(model)) and (args.variant, args.revision) == (
        found["variant"],
        found["revision"],
    ):
        raise UserError(
            f"{args.candidates_dir}: was sampled with the weights of {settings['model']}, which are not those of {model}; "
            "latents of another model cannot be trained on"
        )
    for name, value in found.items():
        if given[name] != value:
            raise UserError(
                f"{args.candidates_dir}: was sampled with {name} {value}, not {given[name]}; give the flags that it was sampled with"
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
    for other, own in not_read_by(args.backbone).items():
        refuse_ignored(given, own, f"with a base model of {args.backbone}: it is of {other}")
    if args.timestep_sampling == "uniform":
        refuse_ignored(given, ("logit_mean", "logit_std"), "with --timestep_sampling uniform")


# -- validation samples as the candidates were sampled -----------------------------------------------------------------


def candidates_settings(settings, backbone):
    """How candidates were sampled, by their folder's `settings`: the keys of `settings.NAMES`, `upscale` and, where it is known, `tiling`.

    What they do not say is the paper's for this kind of `backbone`. Where guidance was off the negative prompt was not read.
    """
    from dp2osr.sampling.defaults import published_settings  # here: --help needs no torch

    published = {**published_settings(backbone), "upscale": 4}
    found = {name: settings[name] for name in (*published, "tiling") if settings.get(name) is not None}
    return {**published, **found}


def sampling_options(args, settings, backbone):
    """What `GroupSampler` reads: the candidates' `settings`, and where they are given the flags of training."""
    sampled = candidates_settings(settings, backbone)
    tiling = sampled.pop("tiling", None)
    own = {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale", "align_method", "upscale")}
    scale = backbone.vae_scale
    return GenerateSettings(
        pretrained_model_name_or_path=args.pretrained_model_name_or_path,
        controlnet_model_name_or_path=args.controlnet_model_name_or_path,
        image_path=args.validation_image_path,
        output_dir=args.output_dir,
        **{**sampled, **{name: value for name, value in own.items() if value is not None}},
        prompt_source="file" if args.validation_prompt_file else "none",
        prompt_file=args.validation_prompt_file,
        batch_size=args.validation_candidates,
        seed=args.seed,
        tile_size=tiling and tiling["size"] * scale,
        tile_overlap=tiling and tiling["overlap"] * scale,
    )


def sampling_differences(options, settings, backbone):
    """Lines on what of validation's sampling is not as the candidates were sampled."""
    sampled, prompts = candidates_settings(settings, backbone), settings.get("prompt_source")
    pairs = {name: (getattr(options, name), value) for name, value in sampled.items() if name != "tiling"}
    lines = [f"--{name} {ours} as given, the candidates have {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if prompts in ("ram", "file") and not options.prompt_file:
        lines.append("samples with empty prompts, the candidates have tags; give --validation_prompt_file")
    return lines
