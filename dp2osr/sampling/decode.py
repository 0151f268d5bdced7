"""From latents to the images that a user gets: decode, cut, colour fix, round to 8 bits. Deterministic."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from dp2osr.backbones import load_backbone
from dp2osr.backbones.base import Backbone
from dp2osr.backbones.loading import ModelSource
from dp2osr.backbones.tiles import Tiling
from dp2osr.sampling.colour import ALIGN
from dp2osr.sampling.resize import control_image, restore_size, round_to_8_bits
from dp2osr.sampling.store import CandidateGroup

Run = Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]


def finish_images(
    backbone: Backbone,
    latents: torch.Tensor,
    lr: Image.Image,
    upscale: float,
    align_method: str,
    run: Run | None = None,
    on_device: bool = False,
) -> torch.Tensor:
    """(M, C, h, w) latents of one LR image → (M, 3, H, W) float32 in [0, 1], colour-fixed and rounded to 8 bits.

    Args:
        run: (latents, function) → the function's results on parts of the latents; by default, of as many as `decoded_together` says.
        on_device: the images stay on the device of `backbone`, to be scored there; else they are on the host.
    """
    control, content, asked = control_image(lr, upscale, backbone.native_size, backbone.size_multiple)
    control = restore_size(control, content, asked).to(backbone.device)

    def finish(part: torch.Tensor) -> torch.Tensor:
        images = restore_size(backbone.decode_latents(part.float()), content, asked)
        images = ALIGN[align_method](images, control)
        images = round_to_8_bits(images)
        return images if on_device else images.cpu()

    if run:
        return run(latents, finish)
    together = decoded_together(backbone, content)
    if len(latents) <= together:
        return finish(latents)
    place = backbone.device if on_device else "cpu"
    images = torch.empty(len(latents), 3, *reversed(asked), device=place)  # not a list that is joined: that would hold all twice
    for first in range(0, len(latents), together):
        images[first : first + together] = finish(latents[first : first + together])
    return images


def decoded_together(backbone: Backbone, size: Sequence[int]) -> int:
    """How many images of `size` are decoded at once: the pixels of sixteen images of the model's own size."""
    return max(1, 16 * backbone.native_size**2 // (size[0] * size[1]))


def load_decoder(settings: Mapping[str, Any], device: str | torch.device = "cpu") -> Backbone:
    """The backbone of a candidate folder's `settings`, its autoencoder alone, tiled as the sampler's was."""
    source = ModelSource(**{**settings.get("model_files", {}), "path": settings["model"]})
    backbone = load_backbone(source, device=device, parts=("vae",))
    backbone.vae_tiling = stored_tiling(settings, backbone.vae_tiling)
    return backbone


def stored_tiling(settings: Mapping[str, Any], default: Tiling) -> Tiling:
    """How a candidate folder's images are encoded and decoded; `default` for a folder from before there were tiles."""
    return Tiling(**settings["vae_tiling"]) if "vae_tiling" in settings else default


def decode_group(
    backbone: Backbone, group: CandidateGroup, align_method: str, run: Run | None = None, on_device: bool = False
) -> torch.Tensor:
    """The images of a stored `CandidateGroup`, (M, 3, H, W) float32 in [0, 1], 8-bit rounded; `run`, `on_device` as in `finish_images`."""
    return finish_images(backbone, group.latents, group.lr, group.upscale, align_method, run, on_device)
