"""The noise levels of a flow model's trajectory, and the solvers that go down them."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dp2osr.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import SchedulerMixin

SCHEDULERS = {
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "flow_heun": "FlowMatchHeunDiscreteScheduler",
}


def flow_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """A diffusers flow scheduler with the noise schedule of `config`, its timesteps not set.

    Raises:
        UserError: diffusers has no flow scheduler of that name.
    """
    import diffusers

    kind = getattr(diffusers, SCHEDULERS.get(name, name), None)
    if kind is None or not name.lower().startswith("flow"):
        raise UserError(
            f"--scheduler {name}: not for a flow model; take one of {', '.join(SCHEDULERS)} or a FlowMatch... class of diffusers"
        )
    return kind.from_config(config)


def set_flow_timesteps(scheduler: SchedulerMixin, steps: int, device: torch.device, shift: float | None) -> None:
    """Set the timesteps of a flow scheduler; `shift` is the μ of a shift that depends on the resolution, None where there is none."""
    if "sigmas" in signature(scheduler.set_timesteps).parameters:
        shifted = {"mu": shift} if scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device, **shifted)
    else:
        scheduler.set_timesteps(steps, device=device)
