"""Which ControlNet of SD2 is in a file: its sizes, by its config or by its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp2osr.errors import UserError

if TYPE_CHECKING:
    import torch


def shape_of_config(config: Mapping[str, Any]) -> dict[str, int | list[int] | None]:
    """{what: number} of a UNet's or ControlNet's configuration in which the two must agree; None where it does not say it."""

    def plain(value: Any) -> Any:  # a list for what is the same in all blocks is that number
        return value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value

    return {
        "channels": list(config.get("block_out_channels") or []) or None,
        "layers in a block": plain(config.get("layers_per_block")),
        "text channels": plain(config.get("cross_attention_dim")),
        "latent channels": config.get("in_channels"),
        "image channels": config.get("conditioning_channels"),
    }


def shape_of_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, int | list[int] | None]:
    """The same of a ControlNet's tensors."""

    def size(name: str, axis: int) -> int | None:
        return tensors[name].shape[axis] if name in tensors else None

    blocks: list[int] = []
    while (channels := size(f"down_blocks.{len(blocks)}.resnets.0.conv1.weight", 0)) is not None:
        blocks.append(channels)
    layers = {name.split(".")[3] for name in tensors if name.startswith("down_blocks.0.resnets.")}
    return {
        "channels": blocks or None,
        "layers in a block": len(layers) or None,
        "text channels": next((size(name, 1) for name in tensors if name.endswith(".attn2.to_k.weight")), None),
        "latent channels": size("conv_in.weight", 1),
        "image channels": size("controlnet_cond_embedding.conv_in.weight", 1),
    }


def conditioning_channels(tensors: Mapping[str, torch.Tensor], path: str | Path) -> tuple[int, ...]:
    """Channels of the control embedding among the tensors of the file `path`: its first convolution's, then each strided one's.

    Raises:
        UserError: the file is a ControlNet of FLUX.
    """
    if "controlnet_x_embedder.weight" in tensors:
        raise UserError(f"{path}: is no ControlNet of SD2 but one of FLUX; give one of this model")
    channels, name = [], "controlnet_cond_embedding.conv_in.weight"
    while name in tensors:
        channels.append(tensors[name].shape[0])
        name = f"controlnet_cond_embedding.blocks.{2 * len(channels) - 1}.weight"
    if not channels:
        raise UserError(f"{path}: is no ControlNet of SD2 (it has no control embedding); give one of this model")
    return tuple(channels)
