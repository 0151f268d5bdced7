"""The sampling loop of both kinds of backbone: from noise to the latents of one image's candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import TYPE_CHECKING

import torch

from dp2osr.backbones.forecast import forecasting
from dp2osr.backbones.tiles import blend_tiles
from dp2osr.backbones.trajectory import Step, branch_index, steps_of

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from dp2osr.backbones.base import Backbone, Features, Loop, Prompt


class SteeredNetwork:
    """The network at one step of a trajectory after another; what steers it is kept where later steps use it again.

    Args:
        texts: {whether a step is guided: what `predict` takes for it}.
    """

    def __init__(self, backbone: Backbone, controlnet: torch.nn.Module, texts: Mapping[bool, Prompt], settings: Loop) -> None:
        self.backbone, self.controlnet, self.texts, self.settings = backbone, controlnet, texts, settings
        self.features: Features = None

    def __call__(self, step: Step, noisy: torch.Tensor, time: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
        """The prediction for a tile; where features are kept it is the image's only one."""
        text, scale = self.texts[step.guided], self.settings.control_scale
        if self.settings.cache_interval == 1:
            return self.backbone.predict([self.controlnet], noisy, time, text, control, scale)[0]
        if step.key:
            self.features = None  # the last ones make room
            self.features = self.backbone.steer(self.controlnet, noisy, time, text, control, scale)
        return self.backbone.denoise(noisy, time, text, self.features)


def branch(
    backbone: Backbone, settings: Loop, scheduler: SchedulerMixin, trunk: torch.Tensor, noise: torch.Tensor
) -> tuple[int, torch.Tensor]:
    """(The timestep, by number, of step `branch_at`; `trunk` with each candidate's noise of its level): the scheduler begins there."""
    first = branch_index(settings, scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return first, backbone.renoise(scheduler, first, trunk, noise)


@torch.no_grad()
def sample_candidates(
    backbone: Backbone, controlnet: torch.nn.Module, control: torch.Tensor, prompt: Prompt, negative: Prompt | None,
    generators: list[torch.Generator], shape: tuple[int, int, int], settings: Loop, progress: Callable[[int], object] | None = None,
    trunk: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Denoise len(generators) candidates of one image. Latents and scheduler are in float32, what enters the network in its precision.

    Args:
        control: the image's control input, as `prepare_control` gives it.
        prompt, negative: embeddings of one prompt each; `negative` is not read where guidance is off or an input of the network.
        generators: one CPU `torch.Generator` a candidate: its initial noise and step noise are its own.
        shape: (C, h, w) of a latent.
        settings: `LoopSettings`.
        progress: called with 1 after each pass over a tile.
        trunk: (1, C, h, w) clean latents of the same image. All candidates begin with them at step `branch_at` of the settings, each
            with its own noise of that step's level: x_t of the forward process (of a flow x_σ = (1 − σ) x_0 + σ ε), so that its
            distribution is that of the whole trajectory's x_t if `trunk` is a sample of the model.

    Returns:
        (B, C, h, w) scaled latents, float32.
    """
    scheduler = backbone.sampling_schedule(settings, shape)
    noise = torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators]).to(backbone.device)
    first, latents = 0, noise * getattr(scheduler, "init_noise_sigma", 1)
    if trunk is not None:
        first, latents = branch(backbone, settings, scheduler, trunk, noise)
    steps = steps_of(backbone, settings, scheduler, first)
    texts = {
        guided: backbone.sampling_text(len(latents), prompt, (negative or {}) if guided else None, settings.guidance_scale)
        for guided in {step.guided for step in steps}
    }
    network = SteeredNetwork(backbone, controlnet, texts, settings)
    extra = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
    whole = settings.tiling.covers(*shape[1:])
    assert whole or settings.cache_interval == settings.taylorseer_interval == 1, "features are kept of one tile"
    forecasts = forecasting(backbone.denoiser, len(steps), settings.taylorseer_interval)
    with backbone.control_windows(controlnet, control, shape, whole) as part_of, forecasts:
        for step in steps:
            timestep = scheduler.timesteps[step.index]
            noisy = torch.cat([latents] * 2) if step.guided else latents
            noisy = scheduler.scale_model_input(noisy, timestep) if hasattr(scheduler, "scale_model_input") else noisy
            time = backbone.network_time(timestep)

            def predict(
                top: int, left: int, height: int, width: int, noisy: torch.Tensor = noisy, time: torch.Tensor = time, step: Step = step
            ) -> torch.Tensor:
                window = noisy[..., top : top + height, left : left + width].to(backbone.dtype)
                prediction = network(step, window, time, part_of(top, left, height, width))
                if progress:
                    progress(1)
                return prediction.float()

            prediction = blend_tiles(predict, *shape[1:], settings.tiling)
            if step.guided:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + settings.guidance_scale * (conditional - unconditional)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
    return latents
