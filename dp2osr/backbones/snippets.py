"""How a ControlNet is used with plain diffusers: the few lines of Python that its card has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp2osr.backbones.kinds import implementation_of
from dp2osr.hub.cards import fill

TEMPLATES = Path(__file__).with_name("templates")
DTYPES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}  # by --mixed_precision


def snippet(kind: str, controlnet: str, base: str, sampling: Mapping[str, Any], upscale: float, precision: str | None = None) -> str:
    """Python that restores an image with diffusers' own pipeline; empty for a kind that has no template.

    Args:
        controlnet, base: folders or hub ids.
        sampling: num_inference_steps, guidance_scale, scheduler, control_scale and, where guidance is above 1, negative_prompt.
        upscale: size of the result over size of the image.
        precision: as --mixed_precision has it.
    """
    template = TEMPLATES / f"{kind}.py.j2"
    if not template.is_file():
        return ""
    known = implementation_of(kind).schedulers
    named = {**sampling, "scheduler": known.get(sampling["scheduler"], sampling["scheduler"])}
    whole = int(upscale) if float(upscale).is_integer() else upscale
    values = {"dtype": DTYPES[precision or "no"], "upscale": whole}
    return fill(template, controlnet=controlnet, base=base, **named, **values).rstrip("\n")
