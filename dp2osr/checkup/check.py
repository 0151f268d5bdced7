"""All parts of a check, one after the other, in the time that there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial

import torch

from dp2osr.checkup.cases import Case, cases_of
from dp2osr.checkup.findings import Findings
from dp2osr.checkup.gradient_traffic import check_gradient_sum
from dp2osr.checkup.machine import TimeLimit, describe_machine, free_unused, stamp
from dp2osr.checkup.settings import PARTS, CheckupSettings, Part
from dp2osr.checkup.timed_sampling import SampledModel, check_pixels, check_sampling
from dp2osr.checkup.timed_scoring import check_scoring
from dp2osr.checkup.timed_training import add_plans, check_training
from dp2osr.device import compute_device, set_tf32
from dp2osr.outputs import check_output

Step = Callable[[TimeLimit], None]


def check_machine(settings: CheckupSettings, limit: TimeLimit, anew: bool = True) -> Findings:
    """Measure all parts that are asked for; what fails is a line of its table.

    Args:
        limit: what has not begun when it is over, does not run.
        anew: or go on after the lines that an earlier process has written.

    Raises:
        UserError: an output folder that cannot be written.
        DeviceLost: what is left needs a fresh process.
    """
    check_output(settings.output_dir)
    device = compute_device()
    set_tf32(device, disable=False)  # as all programs do that are not told otherwise
    machine = describe_machine(device)
    findings = Findings(settings.output_dir, machine, asdict(settings), device, limit)
    if anew:
        findings.tables["machine"] = [{"what": what, "value": value} for what, value in machine.items() if value is not None]
        findings.write()
        print(f"{stamp(machine)}: at most {settings.minutes:g} minutes", flush=True)
    else:
        findings.go_on()
        print("the device was lost; a fresh process goes on", flush=True)
    models = settings.model or (["tiny"] if device.type == "cpu" else ["sd2", "flux"])
    cases = [case for model in models for case in cases_of(model, settings.batch_sizes)]
    steps = steps_of(cases, settings, findings, device)
    for place, step in enumerate(steps):
        step(limit.share(len(steps) - place))
    add_plans(cases, findings)
    failures = findings.failures()
    print(f"\n{findings.folder / 'check_gpu.md'} and .json are written; {len(failures)} lines failed")
    return findings


def steps_of(cases: Sequence[Case], settings: CheckupSettings, findings: Findings, device: torch.device) -> list[Step]:
    """What is done, in order. The smallest batch and the training of every model come first: a short time suffices for them."""
    parts = settings.parts or PARTS
    steps: list[Step] = []
    for case in cases:
        if "sampling" in parts:
            steps.append(partial(check_sampled, case, ["sampling"], case.batch_sizes[:1], settings, findings, device))
        if "training" in parts:
            steps.append(partial(check_training, case, settings, findings, device))
    for case in cases:
        larger = case.batch_sizes[1:]
        rest: list[Part] = [part for part in ("sampling", "pixels") if part in parts and (part == "pixels" or larger)]
        if rest:
            steps.append(partial(check_sampled, case, rest, larger, settings, findings, device))
    if "scoring" in parts:
        steps.append(partial(check_scoring, settings, findings, device))
    if "gradient_sum" in parts:
        steps += [partial(check_gradient_sum, case, settings, findings, device) for case in cases]
    return steps


def check_sampled(
    case: Case, parts: Sequence[Part], batch_sizes: Sequence[int], settings: CheckupSettings, findings: Findings, device: torch.device,
    limit: TimeLimit,
) -> None:  # fmt: skip
    """Sampling and pixels of one model, which is gone afterwards: training has the memory to itself."""
    precision = "no" if device.type == "cpu" else case.sampling.mixed_precision or "no"
    label = {"model": case.name, "precision": precision}
    built = cache(lambda: SampledModel(case, precision, device))
    if "sampling" in parts:
        check_sampling(built, label, batch_sizes, settings, findings, limit.share(len(parts)))
    if "pixels" in parts:
        check_pixels(built, label, max(case.batch_sizes), settings, findings)
    del built
    free_unused(device)
