"""What makes samples cheaper, and where it cannot be had."""

import math
from collections.abc import Collection

from dp2osr.backbones.base import Backbone
from dp2osr.backbones.forecast import can_forecast
from dp2osr.backbones.trajectory import starts_anywhere, steps_of
from dp2osr.errors import UserError, listed
from dp2osr.sampling.defaults import LoopSettings


def check_levers(backbone: Backbone, settings: LoopSettings, samples: int, compiled: bool = False) -> None:
    """Raise `UserError` where a lever is not this model's, has no effect, or goes against another setting.

    Args:
        samples: of an image; compiled: whether the networks are.
    """
    if settings.guidance_interval is not None:
        check_interval(backbone, settings, *settings.guidance_interval)
    steps = settings.num_inference_steps
    for name in ("cache_interval", "taylorseer_interval"):
        if getattr(settings, name) > steps:
            raise UserError(f"--{name} {getattr(settings, name)}: must be at most --num_inference_steps, {steps}")
    if settings.taylorseer_interval > 1:
        check_forecast(backbone, f"--taylorseer_interval {settings.taylorseer_interval}", compiled)
    flag = f"--branch_at {settings.branch_at}"
    if settings.branch_at >= steps:
        raise UserError(f"{flag}: must be below --num_inference_steps, {steps}")
    if settings.branch_at and samples == 1:
        raise UserError(f"{flag}: one sample of an image shares nothing; leave it out")
    if settings.branch_at and not starts_anywhere(backbone.sampling_schedule(settings, least_shape(backbone))):
        raise UserError(f"{flag}: --scheduler {settings.scheduler} cannot begin at a later step; take another, or leave it out")


def check_tiles(settings: LoopSettings, tiled: Collection[str]) -> None:
    """Raise `UserError` if features are to be kept of the images that are `tiled`, by name: they are kept of one tile."""
    for name in ("cache_interval", "taylorseer_interval"):
        if tiled and getattr(settings, name) > 1:
            raise UserError(
                f"--{name} {getattr(settings, name)}: keeps features of an image that is denoised whole; in tiles are "
                f"{listed(list(tiled))}; give a larger --tile_size, or leave the flag out"
            )


def check_forecast(backbone: Backbone, flag: str, compiled: bool) -> None:
    """`check_levers` of TaylorSeer."""
    if not can_forecast(backbone.denoiser):
        raise UserError(
            f"{flag}: forecasts the blocks of a transformer, and {backbone.kind} is denoised by another network; leave the flag out"
        )
    if compiled:
        raise UserError(f"{flag}: what is computed changes from step to step, which --compile cannot take; leave one of the two out")


def check_interval(backbone: Backbone, settings: LoopSettings, low: float, high: float) -> None:
    """`check_levers` of the guidance interval."""
    flag = f"--guidance_interval {low:g} {high:g}"
    if backbone.passes_a_step(math.inf) == 1:
        raise UserError(f"{flag}: a base model of {backbone.kind} is told its guidance in the one pass of a step; leave the flag out")
    if backbone.passes_a_step(settings.guidance_scale) == 1:
        raise UserError(f"{flag}: has no effect where guidance is off (--guidance_scale {settings.guidance_scale:g}); leave it out")
    if low >= high:
        raise UserError(f"{flag}: LOW must be below HIGH")
    scheduler = backbone.sampling_schedule(settings, least_shape(backbone))
    if not any(step.guided for step in steps_of(backbone, settings, scheduler)):
        levels = ", ".join(f"{level:.3g}" for level in backbone.noise_over_signal(scheduler.timesteps))
        raise UserError(f"{flag}: no step lies in it (they are at {levels}); give another, or --guidance_scale 1")


def least_shape(backbone: Backbone) -> tuple[int, int, int]:
    """(C, h, w) of the latents of one cell of the model's grid."""
    side = backbone.size_multiple // backbone.vae_scale
    return backbone.latent_channels, side, side
