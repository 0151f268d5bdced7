"""The UNet of SD2 in two halves, so that several ControlNets share its encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from dp2osr.backbones.base import Steering


@contextmanager
def embedded_control(controlnet: torch.nn.Module, control: torch.Tensor) -> Iterator[torch.Tensor]:
    """Within, `controlnet` takes the embedded control image: it depends on the LR alone, so it is computed once."""
    embedder = controlnet.controlnet_cond_embedding
    controlnet.controlnet_cond_embedding = torch.nn.Identity()
    try:
        yield embedder(control)
    finally:
        controlnet.controlnet_cond_embedding = embedder


def embed_time(unet: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """(B, D) time embedding of B noisy latents."""
    timesteps = torch.as_tensor(timesteps, device=noisy.device).expand(len(noisy))
    return unet.time_embedding(unet.get_time_embed(noisy, timesteps))


def unet_encode(
    unet: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """The part of a UNet that no ControlNet reaches: (time embedding, skip activations, middle activation)."""
    embedding = embed_time(unet, noisy, timesteps)
    hidden = unet.conv_in(noisy)
    skips = [hidden]
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            hidden, states = block(hidden_states=hidden, temb=embedding, encoder_hidden_states=context)
        else:
            hidden, states = block(hidden_states=hidden, temb=embedding)
        skips.extend(states)
    return embedding, skips, unet.mid_block(hidden, embedding, encoder_hidden_states=context)


def steered(
    controlnet: Steering, noisy: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, control: torch.Tensor, control_scale: float,
    skips: Sequence[torch.Tensor], middle: torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor]:  # fmt: skip
    """The skips and the middle activation of a UNet with what a ControlNet adds to them."""
    down, mid = controlnet(
        noisy,
        timesteps,
        encoder_hidden_states=context,
        controlnet_cond=control,
        conditioning_scale=control_scale,
        return_dict=False,
    )
    return [skip + residual for skip, residual in zip(skips, down, strict=True)], middle + mid


def unet_decode(
    unet: torch.nn.Module, embedding: torch.Tensor, skips: Sequence[torch.Tensor], hidden: torch.Tensor, context: torch.Tensor
) -> torch.Tensor:
    """From the steered skips and middle activation to the prediction, (B, C, h, w)."""
    skips = list(skips)
    for block in unet.up_blocks:
        count = len(block.resnets)
        states, skips = tuple(skips[-count:]), skips[:-count]
        # a side that is odd at some level is restored to the size of the skip that it meets next
        inputs = {
            "hidden_states": hidden,
            "temb": embedding,
            "res_hidden_states_tuple": states,
            "upsample_size": skips[-1].shape[2:] if skips else None,
        }
        if getattr(block, "has_cross_attention", False):
            inputs["encoder_hidden_states"] = context
        hidden = block(**inputs)
    return unet.conv_out(F.silu(unet.conv_norm_out(hidden)))
