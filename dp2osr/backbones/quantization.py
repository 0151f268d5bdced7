"""A frozen denoiser in 8 or 4 bits, by diffusers' configuration for bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from dp2osr.errors import UserError

if TYPE_CHECKING:
    import torch


def check_quantization(how: str | None) -> None:
    """Raise `UserError` where a backbone is to be quantised and the package for it is not installed."""
    if how and not importlib.util.find_spec("bitsandbytes"):
        raise UserError(
            f"--quantize_backbone {how}: the package bitsandbytes is not installed; pip install bitsandbytes, or leave the flag out"
        )


def quantized(how: str | None, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Options of `from_pretrained` for a network on `device` whose linear layers are held in "int8" or "nf4"; none for None.

    Raises:
        UserError: the package is missing, or there is no GPU.
    """
    if not how:
        return {}
    check_quantization(how)
    if device.type == "cpu":
        raise UserError(f"--quantize_backbone {how}: needs a GPU; leave the flag out on a CPU")
    from diffusers import BitsAndBytesConfig

    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(**({"load_in_8bit": True} if how == "int8" else nf4)), "device_map": {"": device}}
