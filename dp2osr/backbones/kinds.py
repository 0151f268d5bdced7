"""The kinds of backbone, and what a program must know of each before its libraries are imported. A new kind is a file here and a line."""

import importlib
from dataclasses import dataclass
from typing import Any

from dp2osr.fields import checked


@dataclass(frozen=True)
class Kind:
    """A kind of backbone.

    Attributes:
        pipeline: diffusers' name of its pipeline, as `model_index.json` has it.
        implementation: module and class, a `Backbone`.
        own: settings that it alone reads; a program refuses them with another kind.
        controlnet: diffusers' name of its ControlNet, as a `config.json` has it.
        tags: of models of this kind on a hub.
        apart: what diffusers' own pipeline does otherwise than the programs here, for a model's card.
        test_program: the program that restores images with it, for messages.
    """

    pipeline: str
    implementation: str
    own: tuple[str, ...] = ()
    controlnet: str = "ControlNetModel"
    tags: tuple[str, ...] = ()
    apart: str = ""
    test_program: str = "test_sd2b_controlnet.py"  # its flags are those of all


OF_FLOW = ("timestep_sampling", "logit_mean", "logit_std")  # the density of a flow's timesteps; others draw them evenly

KINDS = {
    "sd2": Kind(
        "StableDiffusionPipeline",
        "dp2osr.backbones.sd2:SD2Backbone",
        ("conditioning_channels",),
        tags=("stable-diffusion", "stable-diffusion-diffusers"),
    ),
    "flux": Kind(
        "FluxPipeline",
        "dp2osr.backbones.flux:FluxBackbone",
        ("num_double_layers", "num_single_layers", "guidance_range", "max_sequence_length", *OF_FLOW),
        "FluxControlNetModel",
        ("flux", "flux-diffusers"),
        "diffusers draws the latents of the control image from the autoencoder's posterior, where the training took its mode.",
        "test_flux_controlnet.py",
    ),
}


def kind_of(pipeline: str | None) -> str | None:
    """The kind whose pipeline has this name in diffusers, or None."""
    return next((name for name, kind in KINDS.items() if kind.pipeline == pipeline), None)


def kind_of_controlnet(name: str | None) -> str | None:
    """The kind whose ControlNet has this class in diffusers, or None."""
    return next((kind for kind, about in KINDS.items() if about.controlnet == name), None)


def implementation_of(name: str) -> Any:
    """The class of a kind; imports its libraries."""
    module, cls = KINDS[name].implementation.split(":")
    return getattr(importlib.import_module(module), cls)


def not_read_by(name: str | None) -> dict[str, tuple[str, ...]]:
    """{other kind: its own settings}, which the kind `name` does not read; empty where the kind is not known yet."""
    return {other: kind.own for other, kind in KINDS.items() if name and other != name}


def _read(word: str) -> str:
    if word not in KINDS:
        raise ValueError(f"is {word!r}, must be one of {', '.join(KINDS)}")
    return word


NAME = checked(_read, str, "{" + ",".join(KINDS) + "}")  # an annotation of a setting
