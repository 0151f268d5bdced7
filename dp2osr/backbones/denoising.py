"""The sampling loop of both kinds of backbone: from noise to the latents of one image's candidates."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING

import torch

from dp2osr.backbones.tiles import blend_tiles
from dp2osr.backbones.trajectory import steps_of

if TYPE_CHECKING:
    from dp2osr.backbones.base import Backbone, Loop, Prompt


@torch.no_grad()
def sample_candidates(
    backbone: Backbone, controlnet: torch.nn.Module, control: torch.Tensor, prompt: Prompt, negative: Prompt | None,
    generators: list[torch.Generator], shape: tuple[int, int, int], settings: Loop, progress: Callable[[int], object] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Denoise len(generators) candidates of one image. Latents and scheduler are in float32, what enters the network in its precision.

    Args:
        control: the image's control input, as `prepare_control` gives it.
        prompt, negative: embeddings of one prompt each; `negative` is not read where guidance is off or an input of the network.
        generators: one CPU `torch.Generator` a candidate: its initial noise and step noise are its own.
        shape: (C, h, w) of a latent.
        settings: `LoopSettings`.
        progress: called with 1 after each pass over a tile.
    Returns:
        (B, C, h, w) scaled latents, float32.
    """
    scheduler = backbone.sampling_schedule(settings, shape)
    latents = torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])
    latents = latents.to(backbone.device) * getattr(scheduler, "init_noise_sigma", 1)
    steps = steps_of(backbone, settings, scheduler)
    texts = {
        guided: backbone.sampling_text(len(latents), prompt, (negative or {}) if guided else None, settings.guidance_scale)
        for guided in {step.guided for step in steps}
    }
    extra = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
    with backbone.control_windows(controlnet, control, shape, settings.tiling.covers(*shape[1:])) as part_of:
        for step in steps:
            timestep, text = scheduler.timesteps[step.index], texts[step.guided]
            noisy = torch.cat([latents] * 2) if step.guided else latents
            noisy = scheduler.scale_model_input(noisy, timestep) if hasattr(scheduler, "scale_model_input") else noisy
            time = backbone.network_time(timestep)

            def predict(
                top: int, left: int, height: int, width: int, noisy: torch.Tensor = noisy, time: torch.Tensor = time, text: Prompt = text
            ) -> torch.Tensor:
                window = noisy[..., top : top + height, left : left + width].to(backbone.dtype)
                part = part_of(top, left, height, width)
                [prediction] = backbone.predict([controlnet], window, time, text, part, settings.control_scale)
                if progress:
                    progress(1)
                return prediction.float()

            prediction = blend_tiles(predict, *shape[1:], settings.tiling)
            if step.guided:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + settings.guidance_scale * (conditional - unconditional)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
    return latents
