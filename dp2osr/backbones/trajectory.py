"""What each step of a trajectory computes, by the settings that make samples cheaper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from dp2osr.backbones.base import Backbone, Loop


@dataclass(frozen=True)
class Step:
    """One prediction of the network.

    Args:
        index: of its timestep among the scheduler's.
        guided: whether it is made with the negative prompt too.
    """

    index: int
    guided: bool


def steps_of(backbone: Backbone, settings: Loop, scheduler: SchedulerMixin) -> list[Step]:
    """The steps that sampling with `settings` takes, on timesteps that are set.

    Guidance is on where LOW < σ ≤ HIGH, as Kynkäänniemi et al. (2024) have it; σ is noise over signal, as in EDM.
    """
    guided = [backbone.passes_a_step(settings.guidance_scale) == 2] * len(scheduler.timesteps)
    if settings.guidance_interval:
        low, high = settings.guidance_interval
        levels = backbone.noise_over_signal(scheduler.timesteps)
        guided = [on and bool(low < level <= high) for on, level in zip(guided, levels, strict=True)]
    return [Step(index, on) for index, on in enumerate(guided)]


def work_of_steps(steps: Iterable[Step], passes: int) -> float:
    """How many of the dearest steps, with `passes` passes each, take as long as these."""
    return sum((2 if step.guided else 1) / passes for step in steps)
