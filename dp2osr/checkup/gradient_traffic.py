"""The sum of gradients at a model's size over the GPUs of this machine: seconds and GB/s, by the trainer's own code."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dp2osr.checkup.cases import Case
from dp2osr.checkup.findings import NOTE, Findings
from dp2osr.checkup.machine import TimeLimit
from dp2osr.checkup.summing_process import PLAIN, measure_sums
from dp2osr.errors import UserError

if TYPE_CHECKING:
    from dp2osr.checkup.settings import CheckupSettings

LEAST_WAIT = 300.0  # seconds that processes get to start and to find each other, whatever the time limit says


def check_gradient_sum(case: Case, settings: CheckupSettings, findings: Findings, device: torch.device, limit: TimeLimit) -> None:
    """One line a way to add up."""
    on_cpu = device.type == "cpu"
    processes = settings.processes or (1 if on_cpu else torch.accelerator.device_count())
    label = {"model": case.name, "processes": processes}
    if processes == 1:
        findings.add("gradient_sum", {**label, NOTE: "not run: one process has nobody to add up with"})
        return
    found: dict[str, dict[str, Any]] = {}

    def measure() -> dict[str, Any]:
        if not on_cpu and processes > torch.accelerator.device_count():
            raise UserError(f"--processes {processes}: more than the {torch.accelerator.device_count()} GPUs; one a GPU")
        shapes = parameter_shapes(case)
        found.update(run_processes(processes, shapes, on_cpu, settings.repeats, limit))
        numbers = sum(torch.Size(shape).numel() for shape in shapes)
        return {"parameters, M": numbers / 1e6, "backend": found.pop("backend")["name"], **found.pop(PLAIN)}

    if findings.attempt("gradient_sum", {**label, "way": PLAIN}, measure):
        for way, values in found.items():
            findings.add("gradient_sum", {**label, "way": way, **values})


def parameter_shapes(case: Case) -> list[tuple[int, ...]]:
    """Shapes of the ControlNet's parameters; no memory is taken."""
    model = case.planned()
    return [tuple(parameter.shape) for parameter in model.controlnet(model.load(("denoiser",))).parameters()]


def run_processes(
    processes: int, shapes: Sequence[tuple[int, ...]], on_cpu: bool, repeats: int, limit: TimeLimit
) -> dict[str, dict[str, Any]]:
    """What the first of so many processes has measured, {way: {column: value}}.

    Raises:
        UserError: they took too long, and were stopped.
        Exception: of any of them.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        arguments = (processes, port, list(shapes), on_cpu, repeats, str(path), os.getpid())
        context = torch.multiprocessing.start_processes(measure_sums, arguments, processes, join=False, start_method="spawn")
        ending = TimeLimit(max(limit.left, LEAST_WAIT))
        try:
            while not context.join(timeout=1):
                if ending.left <= 0:
                    raise UserError("the processes did not finish in time; NCCL_DEBUG=INFO says where they wait")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
        return json.loads(path.read_text())
