"""Where a program computes, and in which precision."""

import ctypes
import os
import sys

import torch

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
KEPT_BYTES = 2**31 - 1  # the largest int


def compute_device():
    """`"cuda"` where there is a GPU, else `"cpu"`, whose allocator then keeps what is freed (`keep_freed_memory`)."""
    if torch.cuda.is_available():
        return "cuda"
    keep_freed_memory()
    return "cpu"


def keep_freed_memory():
    """Let glibc keep up to 2 GB of freed memory, which it otherwise gives back at each large free and gets anew, page by page.

    Of scoring images of 512 × 512 on a CPU that is two fifths of the time (docs/RESULTS.md). Another C library, or settings
    of the user's own (`MALLOC_..._`, `GLIBC_TUNABLES`), are left alone.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def usable_precision(asked, device):
    """`asked` ("no", "fp16" or "bf16"), but "no" and a warning for fp16 on a CPU, which has no half-precision arithmetic to speak of."""
    if asked == "fp16" and torch.device(device).type == "cpu":
        print("warning: --mixed_precision fp16 needs a GPU; going on in fp32 on the CPU", file=sys.stderr)
        return "no"
    if asked == "bf16" and torch.device(device).type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print("warning: --mixed_precision bf16: this CPU has no instructions for it and takes about ten times as long", file=sys.stderr)
    return asked
