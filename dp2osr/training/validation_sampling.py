"""How a training's validation samples: as its candidates were sampled, but for the flags that say otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dp2osr.cli import field_names
from dp2osr.sampling.settings import LEVERS_OFF, GenerateSettings
from dp2osr.training.settings import TrainSettings, ValidationSampling

if TYPE_CHECKING:
    from dp2osr.backbones.base import Backbone


def candidates_settings(settings: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """How candidates were sampled, by their folder's `settings`: the keys of `sampling.defaults.NAMES`, `upscale` and, where it is known,
    `tiling`.

    What they do not say is the paper's for this kind of `backbone`. Where guidance was off the negative prompt was not read.
    """
    from dp2osr.sampling.defaults import published_settings  # here: --help needs no torch

    published = {**published_settings(backbone), "upscale": 4}
    found = {name: settings[name] for name in (*published, "tiling") if settings.get(name) is not None}
    return {**published, **found}


def sampling_options(args: TrainSettings, settings: Mapping[str, Any], backbone: Backbone) -> GenerateSettings:
    """What `GroupSampler` reads: the candidates' `settings`, and where they are given the flags of training."""
    sampled = candidates_settings(settings, backbone)
    tiling = sampled.pop("tiling", None)
    own = {name: getattr(args, name) for name in field_names(ValidationSampling)}
    scale = backbone.vae_scale
    return GenerateSettings(
        pretrained_model_name_or_path=args.pretrained_model_name_or_path,
        controlnet_model_name_or_path=args.controlnet_model_name_or_path,
        image_path=args.validation_image_path or "",
        output_dir=args.output_dir,
        **{**sampled, **{name: value for name, value in own.items() if value is not None}},
        prompt_source="file" if args.validation_prompt_file else "none",
        prompt_file=args.validation_prompt_file,
        max_sequence_length=settings.get("max_sequence_length"),
        batch_size=args.validation_candidates,
        seed=args.seed,
        tile_size=tiling and tiling["size"] * scale,
        tile_overlap=tiling and tiling["overlap"] * scale,
    )


def sampling_differences(options: GenerateSettings, settings: Mapping[str, Any], backbone: Backbone) -> list[str]:
    """Lines on what of validation's sampling is not as the candidates were sampled."""
    sampled, prompts = candidates_settings(settings, backbone), settings.get("prompt_source")
    pairs = {name: (getattr(options, name), value) for name, value in sampled.items() if name != "tiling"}
    lines = [f"--{name} {ours} as given, the candidates have {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    used = {name: settings[name] for name, off in LEVERS_OFF.items() if settings.get(name) not in (None, off)}
    lines += [f"samples without the candidates' --{name} {value}" for name, value in used.items()]
    if prompts in ("ram", "file", "text") and not options.prompt_file:
        lines.append("samples with empty prompts, the candidates have tags; give --validation_prompt_file")
    return lines
