"""The machine that is checked: what it is, its clock and its memory."""

import gc
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch

from dp2osr.provenance import versions
from dp2osr.rewards.batches import give_back_freed, highest_resident, resident


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


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has done it."""
    wait_for(device)
    started = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - started


def least_seconds(function: Callable[[], object], device: torch.device, repeats: int, limit: TimeLimit) -> float:
    """The least of up to `repeats` calls: at least one, another only where the time for it is left."""
    found = [seconds_of(function, device)]
    while len(found) < repeats and limit.left > found[-1]:
        found.append(seconds_of(function, device))
    return min(found)


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that was begun."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# -- memory ------------------------------------------------------------------------------------------------------------


def held(device: torch.device) -> int:
    """Bytes of tensors on the device; on a CPU those of the process."""
    if device.type == "cpu":
        give_back_freed()
        return resident()
    return _asked(lambda: torch.accelerator.memory_allocated(device)) or 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[SimpleNamespace]:
    """Within, the most bytes that `held` would say, as `bytes` of what is yielded, after the end; None where the device does not count."""
    found = SimpleNamespace(bytes=None)
    if device.type == "cpu":
        with highest_resident() as highest:
            yield found
        found.bytes = highest.bytes
        return
    _asked(lambda: torch.accelerator.reset_peak_memory_stats(device))
    yield found
    found.bytes = _asked(lambda: torch.accelerator.max_memory_allocated(device)) or None


def free_unused(device: torch.device) -> None:
    """Give back the memory of what nobody refers to any more."""
    gc.collect()
    if device.type != "cpu":
        _asked(torch.accelerator.empty_cache)
