"""The baseline's loss: noise (or velocity) regression; noise, timestep and guidance of a sample follow from (seed, its number) alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from dp2osr.backbones.base import Backbone
    from dp2osr.training.text import PromptBook


def draw_noise(
    backbone: Backbone,
    numbers: Iterable[int],
    shape: Sequence[int],
    seed: int,
    density: Mapping[str, Any],
    guidance_range: tuple[float, float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noise (B, *shape), timesteps (B,), guidance (B,)) of the samples `numbers`, on the backbone's device.

    Args:
        shape: (C, h, w) of a latent.
        density: of the timesteps, as `timestep_options` gives it.
        guidance_range: (low, high) of what a guidance-distilled network is told.
    """
    noise, timesteps, guidance, (low, high) = [], [], [], guidance_range
    for number in numbers:
        generator = torch.Generator().manual_seed(noise_seed(seed, number))
        noise.append(torch.randn(shape, generator=generator))
        timesteps.append(backbone.draw_timesteps(1, generator, **density))
        guidance.append(low + (high - low) * torch.rand(1, generator=generator))
    return torch.stack(noise).to(backbone.device), torch.cat(timesteps), torch.cat(guidance).to(backbone.device)


def noise_seed(seed: int, number: int) -> int:
    """The seed of a sample's noise, 63 bits."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]) >> 1


class Regression(torch.nn.Module):
    """The error of one micro-batch as a module, so that accelerate can wrap it.

    Args:
        modules: all that is trained, the `controlnet` among it.
        prompts: `PromptBook`.
        metric: (C, C) matrix that weighs errors, as `image_metric` gives it.
    """

    def __init__(
        self, backbone: Backbone, controlnet: torch.nn.Module, modules: torch.nn.ModuleDict, prompts: PromptBook, metric: torch.Tensor
    ) -> None:
        super().__init__()
        self.trained, self.controlnet = modules, controlnet
        self.backbone, self.prompts, self.metric = backbone, prompts, metric

    def forward(
        self,
        latents: torch.Tensor,
        control: torch.Tensor,
        prompts: Sequence[int],
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of the prediction: (B, C, h, w) latents and noise, the B numbers of their prompts."""
        backbone = self.backbone
        noisy = backbone.add_noise(latents, noise, timesteps)
        prompt = {**self.prompts.embed(prompts), "guidance": guidance}
        [prediction] = backbone.predict([self.controlnet], noisy, timesteps, prompt, control)
        return self.loss(prediction.float() - backbone.target(latents, noise, timesteps).float(), latents, timesteps)

    def loss(self, error: torch.Tensor, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Mean squared error under `metric`, of (B, C, h, w) errors of the predictions."""
        return torch.einsum("bchw,cd,bdhw->", error, self.metric, error) / error.numel()


@torch.no_grad()
def image_metric(backbone: Backbone, latents: torch.Tensor, weight: float, size: float = 0.05) -> torch.Tensor:
    """(C, C) matrix A, its mean eigenvalue 1: eᵀ A e is the squared error e of a latent, a share `weight` of it as the image feels it.

    That share is Jᵀ J of the decoder J, from its answers to small white noise of `size` in one channel of the (B, C, h, w) latents
    at a time. Latents may be whitened: then the finest detail, which nobody can predict, has most of the plain error and next to nothing
    of the image's, while the image's colours ask for errors that the plain loss no longer sees.
    """
    channels = latents.shape[1]
    latents = latents.to(backbone.device)
    noise = size * torch.randn((len(latents), 1, *latents.shape[2:]), generator=torch.Generator().manual_seed(0)).to(latents)
    image = backbone.decode_latents(latents)
    units = torch.eye(channels, device=backbone.device).view(channels, 1, channels, 1, 1)
    answers = torch.stack([backbone.decode_latents(latents + unit * noise) - image for unit in units]).flatten(1)
    gram = answers @ answers.T
    return weight * gram * channels / gram.trace() + (1 - weight) * torch.eye(channels, device=backbone.device)
