"""Where a program computes, what it takes there, and in which precision."""

import contextlib
import ctypes
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from threading import Event, Thread
from types import SimpleNamespace
from unittest import mock

import psutil
import torch

from dp2osr.errors import UserError

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
KEPT_BYTES = 2**31 - 1  # the largest int
SAMPLED_EVERY = 0.002  # seconds between two looks at a process's size; what holds many megabytes fills them for longer


def compute_device() -> torch.device:
    """The accelerator of this machine that is this process's, by LOCAL_RANK: CUDA's, ROCm's, MPS, XPU, NPU ...; else the CPU.

    `ACCELERATE_USE_CPU`, which `accelerate launch --cpu` sets, and `ACCELERATE_TORCH_DEVICE` decide where they are given. A CPU's
    allocator then keeps what is freed (`keep_freed_memory`).
    """
    named = os.environ.get("ACCELERATE_TORCH_DEVICE")
    found = torch.device(named) if named else torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type == "cpu" or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        keep_freed_memory()
        return torch.device("cpu")
    if named:
        return found
    index = int(os.environ.get("LOCAL_RANK") or 0) % torch.accelerator.device_count()
    torch.accelerator.set_device_index(index)
    return torch.device(found.type, index)


def check_compiler(device: str | torch.device) -> None:
    """Raise `UserError` where `torch.compile` has nothing to compile with."""
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    if torch.device(device).type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise UserError("--compile: needs a C++ compiler on a CPU (Debian: apt install g++ python3-dev); leave it out, or install one")


# -- time --------------------------------------------------------------------------------------------------------------


def wait_for_device(device: torch.device | None = None) -> None:
    """Return when all that was begun on the device, by default the accelerator, is done; at once on a CPU."""
    if torch.accelerator.is_available() and (device is None or device.type != "cpu"):
        torch.accelerator.synchronize()


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds of one call, until the accelerator has done it; what was begun before counts too."""
    started = time.perf_counter()
    function()
    wait_for_device()
    return time.perf_counter() - started


# -- memory ------------------------------------------------------------------------------------------------------------


def has_own_memory(device: str | torch.device) -> bool:
    """Whether a device has memory beside the host's. A CPU has none; nor has MPS, which shares the host's."""
    return torch.device(device).type not in ("cpu", "mps")


def free_device_bytes(device: str | torch.device) -> int:
    """Bytes that this process may still take on a device with memory of its own, those that its allocator keeps among them."""
    kept = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return torch.accelerator.get_memory_info(device)[0] + kept


def give_back_cached() -> None:
    """Freed memory that the accelerator's allocator keeps goes back to the device."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def held_bytes(device: str | torch.device) -> int:
    """Bytes of all tensors on a device with memory of its own; else those of the process, without what was freed."""
    if has_own_memory(device):
        return torch.accelerator.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):  # glibc may keep what was freed; other libraries do not have this
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


@contextlib.contextmanager
def peak_memory(device: str | torch.device) -> Iterator[SimpleNamespace]:
    """Within, the most that `held_bytes` would say: `bytes` of what is yielded, after the end.

    Without memory of the device's own the process's size is looked at all the time: not tensors alone, but also the buffers of
    convolutions, the arrays of a user's own metric, and what a first call sets up.
    """
    found = SimpleNamespace(bytes=held_bytes(device))
    if has_own_memory(device):
        torch.accelerator.reset_peak_memory_stats(device)
        yield found
        found.bytes = torch.accelerator.max_memory_allocated(device)
        return
    process, ended = psutil.Process(), Event()

    def watch() -> None:
        while not ended.wait(SAMPLED_EVERY):
            found.bytes = max(found.bytes, process.memory_info().rss)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        found.bytes = max(found.bytes, process.memory_info().rss)


def keep_freed_memory() -> None:
    """Let glibc keep up to 2 GB of freed memory, which it otherwise gives back at each large free and gets anew, page by page.

    Of scoring images of 512 × 512 on a CPU that is two fifths of the time (docs/speed.md). Another C library, or settings
    of the user's own (`MALLOC_..._`, `GLIBC_TUNABLES`), are left alone.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


# -- precision ---------------------------------------------------------------------------------------------------------


def asked_precision(given: str | None) -> str:
    """--mixed_precision as `given`; else the launcher's, which `accelerate launch` passes on; else "no".

    Raises:
        UserError: the launcher's is none of "no", "fp16" and "bf16".
    """
    asked = given or os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"
    if asked not in DTYPES:
        raise UserError(f"accelerate launch asks for --mixed_precision {asked}, which is not to be had here; give {', '.join(DTYPES)}")
    return asked


def usable_precision(given: str | None, device: str | torch.device) -> str:
    """`asked_precision`, but "no" and a warning for fp16 on a CPU, which has no half-precision arithmetic to speak of."""
    asked = asked_precision(given)
    if asked == "fp16" and torch.device(device).type == "cpu":
        print("warning: --mixed_precision fp16 needs a GPU; going on in fp32 on the CPU", file=sys.stderr)
        return "no"
    if asked == "bf16" and torch.device(device).type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print("warning: --mixed_precision bf16: this CPU has no instructions for it and takes about ten times as long", file=sys.stderr)
    return asked


def set_tf32(device: str | torch.device, disable: bool) -> bool:
    """Compute float32 matrix products and convolutions in TF32 where the device has it, unless it is disabled; returns whether it does.

    TF32 rounds what is multiplied to 10 bits of fraction and adds in float32. Both of PyTorch's flags are set: its own default is TF32 in
    convolutions alone.
    """
    is_on = not disable and torch.device(device).type == "cuda" and torch.cuda.is_tf32_supported()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_on
    return is_on


def computes_in_tf32(device: str | torch.device) -> bool:
    """Whether float32 is TF32 there, as `set_tf32` has left it."""
    return torch.device(device).type == "cuda" and torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Within, float32 is float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Within, also as a decorator, PyTorch takes no attention of cuDNN's but flash, memory-efficient or plain attention.

    cuDNN's backward pass has bugs on Hopper, where it is PyTorch's first choice (docs/check_gpu.md).
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextlib.contextmanager
def tf32_kept() -> Iterator[None]:
    """Within, `torch.backends.cudnn.flags` leaves TF32 as it is, unless it is told otherwise.

    pyiqa calls it around each metric, for determinism, and says nothing of TF32: that switches TF32 on in convolutions.
    """
    flags = partial(torch.backends.cudnn.flags, allow_tf32=torch.backends.cudnn.allow_tf32)
    with mock.patch.object(torch.backends.cudnn, "flags", flags):
        yield
