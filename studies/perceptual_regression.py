"""The baseline's loss with a perceptual distance beside it (Lin and Yang, "Diffusion Model with Perceptual Loss", 2024)."""

from typing import Any

import torch

from dp2osr.backbones.tiles import cut_windows
from dp2osr.rewards.perceptual import dists_form, lpips_form
from dp2osr.training.regression import Regression

SHIFT = 8  # pixels: windows are judged from a random place within, or a network's strides leave a grid in step with the latents


class PerceptualRegression(Regression):
    """Beside the latents' error, how far the clean image that a prediction implies looks from the GT, decoded both.

    The squared error alone asks for the mean of all images that fit what is seen, and that is a blur. The networks predict a velocity.

    Args:
        perceptual, texture: weights of the distances of `dp2o_lpips` and `dp2o_dists`; 0 leaves one out.
    """

    def __init__(self, *parts: Any, perceptual: float, texture: float) -> None:
        super().__init__(*parts)
        judges = [(weight, form()) for weight, form in ((perceptual, lpips_form), (texture, dists_form)) if weight]
        self.judges = [(weight, judge.to(self.backbone.device).requires_grad_(False)) for weight, judge in judges]

    def loss(self, error: torch.Tensor, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The squared error and the weighted distances, for what `Regression.loss` takes."""
        loss = super().loss(error, latents, timesteps)
        if not self.judges:
            return loss
        sigma = self.backbone.add_noise(torch.zeros_like(latents), torch.ones_like(latents), timesteps)
        with torch.no_grad():
            gt = self.decoded(latents)
        image = self.decoded(latents - sigma * error)  # of a velocity, whose error times σ is that of the clean latents
        top, left = torch.randint(SHIFT + 1, (2, len(image)), device=image.device)
        image, gt = (cut_windows(pictures, top, left, image.shape[-1] - SHIFT) for pictures in (image, gt))
        return loss + sum(weight * judge(image, gt).mean() for weight, judge in self.judges)

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """`decode_latents` with a gradient."""
        config = self.backbone.vae.config
        latents = latents.float() / config.scaling_factor + (config.shift_factor or 0)
        return (self.backbone.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
