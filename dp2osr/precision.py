"""Compute precision: what is asked for and what the device can do."""

import sys

import torch

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def usable_precision(asked, device):
    """`asked` ("no", "fp16" or "bf16"), but "no" and a warning for fp16 on a CPU, which has no half-precision arithmetic to speak of."""
    if asked == "fp16" and torch.device(device).type == "cpu":
        print("warning: --mixed_precision fp16 needs a GPU; going on in fp32 on the CPU", file=sys.stderr)
        return "no"
    return asked
