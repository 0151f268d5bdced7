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
    "flow_dpm": "DPMSolverMultistepScheduler",
    "flow_unipc": "UniPCMultistepScheduler",
}
MULTISTEP = ("flow_dpm", "flow_unipc")  # solvers of order 2 that remember the last prediction; DEIS and SA-Solver give NaN on a flow


def flow_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """A diffusers flow scheduler with the noise schedule of `config`, its timesteps not set.

    Raises:
        UserError: diffusers has no flow scheduler of that name.
    """
    import diffusers

    if name in (*MULTISTEP, *map(SCHEDULERS.get, MULTISTEP)):
        kind = getattr(diffusers, SCHEDULERS.get(name, name))
        return kind(config.get("num_train_timesteps", 1000), prediction_type="flow_prediction", use_flow_sigmas=True)
    kind = getattr(diffusers, SCHEDULERS.get(name, name), None)
    if kind is None or not name.lower().startswith("flow"):
        raise UserError(
            f"--scheduler {name}: not for a flow model; take one of {', '.join(SCHEDULERS)} or a FlowMatch... class of diffusers"
        )
    return kind.from_config(config)


def set_flow_timesteps(scheduler: SchedulerMixin, config: Mapping[str, Any], steps: int, device: torch.device, shift: float | None) -> None:
    """Set the timesteps of a flow scheduler.

    Args:
        config: of the model's noise schedule. A multistep solver takes its noise levels, those of Euler's method, as they are: what
            diffusers makes for such solvers starts below σ = 1, rounds the times to integers and knows not every shift.
        shift: the μ of a shift that depends on the resolution, None where there is none.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if scheduler.config.get("use_flow_sigmas"):
        levels = FlowMatchEulerDiscreteScheduler.from_config(config)
        set_flow_timesteps(levels, config, steps, device, shift)
        scheduler.set_timesteps(steps, device=device)  # an empty memory
        scheduler.timesteps = levels.timesteps
        scheduler.sigmas = levels.sigmas.cpu().clamp(max=1 - 1e-6)  # log(1 - σ) is asked for
    elif "sigmas" in signature(scheduler.set_timesteps).parameters:
        shifted = {"mu": shift} if scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device, **shifted)
    else:
        scheduler.set_timesteps(steps, device=device)
