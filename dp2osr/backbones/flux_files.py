"""Which ControlNet of FLUX is in a file: its sizes, by its config or by its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp2osr.errors import UserError

if TYPE_CHECKING:
    import torch


def shape_of_config(config: Mapping[str, Any]) -> dict[str, int | None]:
    """{what: number} of a transformer's or ControlNet's configuration in which the two must agree."""
    return {
        "attention heads": config.get("num_attention_heads"),
        "channels in a head": config.get("attention_head_dim"),
        "channels in a token": config.get("in_channels"),
        "T5 channels": config.get("joint_attention_dim"),
        "CLIP channels": config.get("pooled_projection_dim"),
    }


def shape_of_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, int | None]:
    """The same of a ControlNet's tensors; None where they do not say it."""

    def size(name: str, axis: int) -> int | None:
        return tensors[name].shape[axis] if name in tensors else None

    width, head = size("x_embedder.weight", 0), next((len(tensors[name]) for name in tensors if name.endswith(".attn.norm_q.weight")), None)
    return {
        "attention heads": width // head if width and head else None,
        "channels in a head": head,
        "channels in a token": size("x_embedder.weight", 1),
        "T5 channels": size("context_embedder.weight", 1),
        "CLIP channels": size("time_text_embed.text_embedder.linear_1.weight", 1),
    }


def has_guidance(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a ControlNet with these tensors is told the guidance scale."""
    return any(name.startswith("time_text_embed.guidance_embedder.") for name in tensors)


def count_layers(tensors: Mapping[str, torch.Tensor], path: str | Path) -> tuple[int, ...]:
    """(double, single) blocks of the FLUX ControlNet whose tensors these are, from the file `path`.

    Raises:
        UserError: it is no FLUX ControlNet.
    """
    if "controlnet_x_embedder.weight" not in tensors:
        other = "one of SD2" if "controlnet_cond_embedding.conv_in.weight" in tensors else "no ControlNet at all"
        raise UserError(f"{path}: is no ControlNet of FLUX but {other}; give one of this model")
    return tuple(
        len({key.split(".")[1] for key in tensors if key.startswith(f"{name}.")})
        for name in ("controlnet_blocks", "controlnet_single_blocks")
    )
