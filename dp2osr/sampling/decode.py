"""From latents to the images that a user gets: decode, cut, colour fix, round to 8 bits. Deterministic."""

import torch

from dp2osr.backbones import load_backbone
from dp2osr.backbones.loading import ModelSource
from dp2osr.backbones.tiles import Tiling
from dp2osr.sampling.colour import ALIGN
from dp2osr.sampling.resize import control_image, restore_size, round_to_8_bits


def finish_images(backbone, latents, lr, upscale, align_method, run=None):
    """(M, C, h, w) latents of one LR image → (M, 3, H, W) float32 in [0, 1], colour-fixed and rounded to 8 bits.

    `run` (latents, function) applies the function to parts of the latents; by default, to as many as `decoded_together` says.
    """
    control, content, asked = control_image(lr, upscale, backbone.native_size, backbone.size_multiple)
    control = restore_size(control, content, asked).to(backbone.device)

    def finish(part):
        images = restore_size(backbone.decode_latents(part.float()), content, asked)
        images = ALIGN[align_method](images, control)
        return round_to_8_bits(images).cpu()

    if run:
        return run(latents, finish)
    together = decoded_together(backbone, content)
    if len(latents) <= together:
        return finish(latents)
    images = torch.empty(len(latents), 3, *reversed(asked))  # not a list that is then joined: that would hold all of them twice
    for first in range(0, len(latents), together):
        images[first : first + together] = finish(latents[first : first + together])
    return images


def decoded_together(backbone, size):
    """How many images of `size` are decoded at once: the pixels of sixteen images of the model's own size."""
    return max(1, 16 * backbone.native_size**2 // (size[0] * size[1]))


def load_decoder(settings, device="cpu"):
    """The backbone of a candidate folder's `settings`, its autoencoder alone, tiled as the sampler's was."""
    source = ModelSource(**{**settings.get("model_files", {}), "path": settings["model"]})
    backbone = load_backbone(source, device=device, parts=("vae",))
    backbone.vae_tiling = stored_tiling(settings, backbone.vae_tiling)
    return backbone


def stored_tiling(settings, default):
    """How a candidate folder's images are encoded and decoded; `default` for a folder from before there were tiles."""
    return Tiling(**settings["vae_tiling"]) if "vae_tiling" in settings else default


def decode_group(backbone, group, align_method, run=None):
    """The images of a stored `CandidateGroup`, (M, 3, H, W) float32 in [0, 1], 8-bit rounded; `run` as in `finish_images`."""
    return finish_images(backbone, group.latents, group.lr, group.upscale, align_method, run)
