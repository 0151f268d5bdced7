"""What each step of a trajectory computes, by the settings that make samples cheaper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp2osr.backbones.forecast import forecast_steps

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from dp2osr.backbones.base import Backbone, Loop

STATELESS = ("DDPMScheduler", "DDIMScheduler")  # go by the timestep alone


@dataclass(frozen=True)
class Step:
    """One prediction of the network.

    Args:
        index: of its timestep among the scheduler's.
        guided: whether it is made with the negative prompt too.
        key: whether what steers it is computed; else that of the last key step is used again.
        forecast: whether the network's blocks are forecast from earlier steps.
    """

    index: int
    guided: bool
    key: bool = True
    forecast: bool = False


def steps_of(backbone: Backbone, settings: Loop, scheduler: SchedulerMixin, first: int = 0) -> list[Step]:
    """The steps that sampling with `settings` takes, on timesteps that are set, from number `first` of them on.

    Guidance is on where LOW < σ ≤ HIGH, as Kynkäänniemi et al. (2024) have it; σ is noise over signal, as in EDM.
    """
    guided = [backbone.passes_a_step(settings.guidance_scale) == 2] * len(scheduler.timesteps)
    if settings.guidance_interval:
        low, high = settings.guidance_interval
        levels = backbone.noise_over_signal(scheduler.timesteps)
        guided = [on and bool(low < level <= high) for on, level in zip(guided, levels, strict=True)]
    keys = [first + place for place in key_steps(len(guided) - first, settings.cache_interval)]
    keys += [index for index in range(first + 1, len(guided)) if guided[index] != guided[index - 1]]  # another number of passes
    forecasts = [False] * first + forecast_steps(len(guided) - first, settings.taylorseer_interval)
    return [Step(index, guided[index], index in keys, forecasts[index]) for index in range(first, len(guided))]


def branch_index(settings: Loop, scheduler: SchedulerMixin) -> int:
    """The timestep, by number, at which step `branch_at` begins: a solver may have several a step."""
    return settings.branch_at * scheduler.order


def starts_anywhere(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler can begin in the middle of its timesteps; those that cannot count their steps from the first."""
    return hasattr(scheduler, "set_begin_index") or type(scheduler).__name__ in STATELESS


def trajectories(backbone: Backbone, settings: Loop, shape: Sequence[int]) -> tuple[list[Step], list[Step]]:
    """(Steps of the sample that an image's candidates branch from, none if they do not; steps of each candidate)."""
    scheduler = backbone.sampling_schedule(settings, shape)
    whole = steps_of(backbone, settings, scheduler)
    return (whole, steps_of(backbone, settings, scheduler, branch_index(settings, scheduler))) if settings.branch_at else ([], whole)


def key_steps(count: int, interval: int) -> list[int]:
    """The first of every `interval` steps, on average: they lie at N (i/n)² of N steps, closest at the start.

    That is how Li et al. (Faster Diffusion, 2024) choose theirs: the encoder's features change most where the noise is highest.
    """
    keys: list[int] = []
    number = -(-count // interval)
    for place in range(number):
        keys.append(max(count * place**2 // number**2, keys[-1] + 1 if keys else 0))
    return keys


def work_of_steps(steps: Iterable[Step], passes: int, reused: float = 1.0, forecast: float = 1.0) -> float:
    """How many of the dearest steps, with `passes` passes each, take as long as these.

    A step that is not key takes `reused` of one, one that is forecast takes `forecast` of it.
    """
    shares = ((1 if step.key else reused) * (forecast if step.forecast else 1) for step in steps)
    return sum((2 if step.guided else 1) / passes * share for step, share in zip(steps, shares, strict=True))
