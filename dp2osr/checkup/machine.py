"""The machine that is checked: what it is, how much time is left, and its memory."""

import gc
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch

from dp2osr.device import give_back_cached, held_bytes, peak_memory, seconds_of, wait_for_device
from dp2osr.provenance import versions


def describe_machine(device: torch.device) -> dict[str, Any]:
    """{what: value} of the card, its driver and the libraries; None where it is not known."""
    is_cpu = device.type == "cpu"
    module: Any = None if is_cpu else torch.get_device_module(device.type)
    nccl = _asked(lambda: ".".join(map(str, torch.cuda.nccl.version()))) if device.type == "cuda" else None
    return {
        "card": _processor() if is_cpu else _asked(lambda: module.get_device_name(device)) or device.type,
        "device": str(device),
        "GPUs visible": 0 if is_cpu else torch.accelerator.device_count(),
        "memory, GB": round((psutil.virtual_memory().total if is_cpu else _memory(device)) / 1e9, 1),
        "host's memory, GB": round(psutil.virtual_memory().total / 1e9, 1),
        "CPU cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count(),
        "driver": None if is_cpu else _driver(),
        "compute capability": _asked(lambda: ".".join(map(str, module.get_device_capability(device)))),
        "bf16": _asked(lambda: module.is_bf16_supported()),
        "TF32": has_tf32(device),
        "CUDA": torch.version.cuda,
        "HIP": torch.version.hip,
        "cuDNN": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "NCCL": nccl,
        **versions(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def stamp(machine: dict[str, Any]) -> str:
    """`NVIDIA A800, driver 550.54, torch 2.9`: what each figure was measured with."""
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    return f"{machine['card']}{driver}, torch {machine['torch']}"


def has_tf32(device: torch.device) -> bool:
    """Whether float32 products can be computed in TF32 there."""
    return device.type == "cuda" and bool(torch.cuda.is_tf32_supported())


def _asked(question: Callable[[], Any]) -> Any:
    """The answer, or None where this kind of device has none."""
    try:
        return question()
    except Exception:  # each vendor's module has its own gaps, and its own ways to say so
        return None


def _memory(device: torch.device) -> int:
    return _asked(lambda: torch.accelerator.get_memory_info(device)[1]) or 0


def _processor() -> str:
    """The CPU's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    """The driver's version, by the vendor's own program."""
    for words in (["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], ["modinfo", "-F", "version", "amdgpu"]):
        with suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split()
            if found:
                return found[0]
    return None


# -- time --------------------------------------------------------------------------------------------------------------


class TimeLimit:
    """So many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; below 0 when it is over."""
        return self.end - time.monotonic()

    def share(self, parts: int) -> "TimeLimit":
        """One of `parts` equal parts of what is left, beginning now."""
        return TimeLimit(self.left / max(1, parts))


def least_seconds(function: Callable[[], object], device: torch.device, repeats: int, limit: TimeLimit) -> float:
    """The least of up to `repeats` calls: at least one, another only where the time for it is left."""
    wait_for_device(device)
    found = [seconds_of(function)]
    while len(found) < repeats and limit.left > found[-1]:
        found.append(seconds_of(function))
    return min(found)


# -- memory ------------------------------------------------------------------------------------------------------------


def held(device: torch.device) -> int | None:
    """`held_bytes`; None where the device does not count."""
    return _asked(lambda: held_bytes(device))


def counted_peak(device: torch.device) -> AbstractContextManager[SimpleNamespace]:
    """`peak_memory`, whose `bytes` are None where the device does not count."""
    return nullcontext(SimpleNamespace(bytes=None)) if held(device) is None else peak_memory(device)


def gigabytes_above(peak: SimpleNamespace, before: int | None) -> float | None:
    """GB of a peak beside what was `held` before it; None where the device does not count."""
    return None if peak.bytes is None or before is None else (peak.bytes - before) / 1e9


def free_unused(device: torch.device) -> None:
    """Give back the memory of what nobody refers to any more."""
    gc.collect()
    if device.type != "cpu":
        _asked(give_back_cached)
