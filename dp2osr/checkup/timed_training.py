"""A step of preference training at the model's size: seconds, memory beside the plan's, the margin at step 0, equal bits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dp2osr.checkup.cases import Case
from dp2osr.checkup.findings import NOTE, Findings, is_lost
from dp2osr.checkup.machine import TimeLimit, counted_peak, gigabytes_above, held
from dp2osr.device import DTYPES, seconds_of, wait_for_device
from dp2osr.planning.preference_cost import plan_training
from dp2osr.preference.groups import PreferenceGroup
from dp2osr.training.gradient import SUM_DTYPES, GradientSum
from dp2osr.training.objective import STATISTICS, GroupObjective
from dp2osr.training.reference import networks_of
from dp2osr.training.settings import TrainSettings

if TYPE_CHECKING:
    from dp2osr.checkup.settings import CheckupSettings

ATTENTIONS = {  # what PyTorch may choose of; the next one is tried where the device was lost with the one before
    "without cuDNN's": nullcontext,  # the objective's own choice
    "math alone": lambda: sdpa_kernel(SDPBackend.MATH),
}
LARGEST_MARGIN = 1e-3  # at step 0: the trainer's own limit


class OneProcess:
    """What the objective and the sum of gradients ask of accelerate's `Accelerator`, for one process; several can follow each other.

    Args:
        device: where it computes.
        precision: a key of `DTYPES`; fp16 scales its losses.
    """

    num_processes = 1

    def __init__(self, device: torch.device, precision: str) -> None:
        self.device, self.dtype = device, DTYPES[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def reduce(self, tensor: torch.Tensor, _how: str) -> torch.Tensor:
        return tensor


def settings_of(case: Case, precision: str) -> TrainSettings:
    """The case's settings of training in a precision."""
    chosen: Any = precision
    return replace(case.training, mixed_precision=chosen)


class TrainedModel:
    """Policy, reference, optimizer and two groups of random latents, as a training has them on one GPU."""

    def __init__(self, case: Case, precision: str, device: torch.device) -> None:
        self.held_before = held(device)
        self.args = args = settings_of(case, precision)
        prompt = case.prompts(precision, device)[0]
        self.backbone = backbone = case.load(("vae", "denoiser"), precision, device)
        sampled = case.sampling_of(backbone)
        backbone.guidance = float(sampled.guidance_scale or 1)
        self.policy, reference = networks_of(case.controlnet(backbone, torch.float32), args, backbone)
        self.parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self.process = OneProcess(device, precision)
        self.objective = GroupObjective(args, self.process, backbone, self.policy, reference, float(sampled.control_scale or 1))
        self.optimizer = torch.optim.AdamW(self.parameters, lr=args.learning_rate, weight_decay=args.adam_weight_decay, fused=True)
        self.groups = [self.group(name, prompt) for name in ("first", "second")]

    def group(self, name: str, prompt: Any) -> PreferenceGroup:
        """A group whose latents are noise."""
        backbone, count = self.backbone, self.args.top_n
        side = backbone.native_size // backbone.vae_scale
        generator = torch.Generator().manual_seed(len(name))
        latents = torch.randn(2 * count, backbone.latent_channels, side, side, generator=generator)
        control = torch.rand(1, 3, backbone.native_size, backbone.native_size, generator=generator)
        weights = torch.rand(count, count, generator=generator) + 0.5
        return PreferenceGroup(name, np.arange(2 * count), latents, control, prompt, weights)

    def visits(self, step: int, groups: list[PreferenceGroup]) -> torch.Tensor:
        """The passes of these groups, their gradients left in the parameters; their statistics, summed."""
        gradient = GradientSum(self.parameters, SUM_DTYPES[self.args.gradient_sum])
        statistics = []
        for group in groups:
            statistics.append(self.objective.visit(step, group, 1 / (len(groups) * self.args.top_n**2)))
            gradient.take()
        gradient.give(self.process)
        return torch.stack(statistics).sum(0)

    def update(self) -> bool:
        """The optimizer's part of a step; whether fp16's scaler skipped it."""
        scaler = self.process.scaler
        before = scaler.get_scale()
        scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.args.max_grad_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return scaler.get_scale() < before


def check_training(case: Case, settings: CheckupSettings, findings: Findings, device: torch.device, limit: TimeLimit) -> None:
    """One line a precision; where the device was lost with it, one more with another attention."""
    on_cpu = device.type == "cpu"
    precisions = ("no", *(each for each in case.precisions if each == "fp16")) if on_cpu else case.precisions
    for place, precision in enumerate(precisions):
        label: dict[str, Any] = {"model": case.name, "precision": precision, "N": case.training.top_n}
        if on_cpu and precision == "fp16":
            findings.add("training", {**label, NOTE: "not run: fp16 needs a GPU"})
            continue
        share = limit.share(len(precisions) - place)
        for attention, chosen in ATTENTIONS.items():
            label["attention"] = attention
            with chosen():
                findings.attempt("training", label, partial(measure_training, case, precision, device, settings, share))
            if not is_lost(findings.find("training", label) or {}):
                break


def measure_training(case: Case, precision: str, device: torch.device, settings: CheckupSettings, limit: TimeLimit) -> dict[str, Any]:
    """{column: value} of a few steps; that of the plan is empty."""
    model = TrainedModel(case, precision, device)
    scaler, first_scale = model.process.scaler, model.process.scaler.get_scale()
    statistics = model.visits(0, model.groups[:1])
    margin = statistics[1 + STATISTICS.index("margin")].item()
    repeated = compare_gradients(model)
    skipped = [model.update()]  # the optimizer's moments are there from now on
    times: list[tuple[float, float]] = []
    wait_for_device(device)
    with counted_peak(device) as peak:
        while not times or len(times) < settings.repeats and limit.left > sum(times[-1]):
            visits = seconds_of(lambda: model.visits(len(times) + 1, model.groups))
            times.append((visits, seconds_of(lambda: skipped.append(model.update()))))
    found = {
        "visit, s": min(visits for visits, _ in times) / len(model.groups),
        "optimizer, s": min(update for _, update in times),
        "peak, GB": gigabytes_above(peak, model.held_before),
        "planned, GB": None,
        "margin at step 0": f"{margin:.2g}" + ("" if abs(margin) <= LARGEST_MARGIN else f", above {LARGEST_MARGIN:g}"),
        "the same visit twice": repeated,
    }
    if scaler.is_enabled():
        found |= {"scale at first": first_scale, "scale": scaler.get_scale(), "skipped": f"{sum(skipped)} of {len(skipped)} steps"}
    return found


def compare_gradients(model: TrainedModel) -> str:
    """Visit the first group again and say how its gradients differ from those that are there; the weights have not changed."""
    trained = [parameter for parameter in model.parameters if parameter.grad is not None]  # a last block's text goes nowhere
    before = [parameter.grad.to("cpu", copy=True) for parameter in trained]  # the device may have no room for them
    model.optimizer.zero_grad(set_to_none=True)
    model.visits(0, model.groups[:1])
    apart, largest, equal = 0.0, 0.0, True
    for old, parameter in zip(before, trained, strict=True):
        old, new = old.to(parameter.device), parameter.grad
        equal = equal and torch.equal(old.contiguous().view(torch.int32), new.contiguous().view(torch.int32))
        apart = max(apart, (old - new).abs().nan_to_num(0, posinf=0).max().item())
        largest = max(largest, old.abs().nan_to_num(0, posinf=0).max().item())
    return "equal bits" if equal else f"gradients up to {apart:.1e} apart, the largest is {largest:.1e}"


def add_plans(cases: Sequence[Case], findings: Findings) -> None:
    """Fill in what plans say of the lines that have figures. A plan keeps the CPU busy for long and the device idle, so it comes last."""
    plans: dict[tuple[str, int], float | None] = {}  # (model, bytes of a number) → GB; 16 bits are 16 bits
    for line in findings.tables.get("training", []):
        if "planned, GB" not in line:
            continue
        if findings.limit.left <= 0:
            line[NOTE] = "no plan: the time is over; ask scripts/plan.py"
        else:
            [case] = [case for case in cases if case.name == line["model"]]
            key = case.name, DTYPES[line["precision"]].itemsize
            if key not in plans:
                plans[key] = planned_gigabytes(case, line["precision"])
            line["planned, GB"] = plans[key]
        findings.write()


def planned_gigabytes(case: Case, precision: str) -> float | None:
    """What `scripts/plan.py` says of the same settings on one GPU; None where it cannot."""
    try:
        return sum(plan_training(case.planned(), settings_of(case, precision)).memory.values()) / 1e9
    except Exception as error:  # what was measured is worth keeping without it
        print(f"warning: no plan of {case.name}: {type(error).__name__}: {error}")
        return None
