"""Policy and reference; under 16-bit autocast what is cast of the reference at every use anyway is held in 16 bits."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from dp2osr.backbones.loading import cast
from dp2osr.training.adapters import WithoutAdapters, add_adapters

if TYPE_CHECKING:
    from dp2osr.backbones.base import Backbone
    from dp2osr.training.settings import TrainSettings

CAST_BY_AUTOCAST = (torch.nn.Linear, torch.nn.Conv2d)  # it casts their weights and biases; norms are computed with weights in fp32


def in_16_bits(reference: torch.nn.Module, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(as autocast sees it, all of it in `dtype`) of a frozen network, which becomes the first.

    The first gives the same bits under autocast as the network in fp32 did. The second is what a user runs. They share the weights of
    linear layers and convolutions, which are nearly all.
    """
    for module in reference.modules():
        if isinstance(module, CAST_BY_AUTOCAST):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    shared = {id(parameter): parameter for parameter in reference.parameters() if parameter.dtype == dtype}
    return reference, cast(deepcopy(reference, shared), dtype)


def networks_of(start: torch.nn.Module, args: TrainSettings, backbone: Backbone) -> tuple[torch.nn.Module, Any]:
    """(policy, reference as the objective runs it), both from a ControlNet in fp32; gradients are checkpointed where `args` say so."""
    start.requires_grad_(False)
    reference: Any = start
    if args.lora_rank:
        policy = add_adapters(start, args.lora_rank).train()
        reference = WithoutAdapters(policy)
    else:
        policy = deepcopy(start).requires_grad_(True).train()
        if backbone.dtype != torch.float32:
            reference, _ = in_16_bits(start, backbone.dtype)
    if args.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
        backbone.denoiser.enable_gradient_checkpointing()
    return policy, reference


def load_networks(args: TrainSettings, backbone: Backbone, main: bool) -> tuple[torch.nn.Module, Any, Any, Any]:
    """(policy, reference, reference as the objective runs it, where distances are measured from).

    Two ControlNets, or one with adapters that are on for the policy and off for the reference. The policy is in fp32. Where the backbone
    is in 16 bits so is the reference, but for what `in_16_bits` keeps; distances are then measured from a copy in fp32 on the host of the
    first process (`main`), which alone logs them.
    """
    start = backbone.load_controlnet(args.controlnet_model_name_or_path, torch.float32).requires_grad_(False)
    if args.lora_rank:
        torch.manual_seed(args.seed)
        policy = add_adapters(start, args.lora_rank).train()
        without = WithoutAdapters(policy)
        return policy, without, without, without
    other = args.reference_controlnet_model_name_or_path
    reference = backbone.load_controlnet(other, torch.float32).requires_grad_(False) if other else deepcopy(start)
    policy = start.requires_grad_(True).train()
    if backbone.dtype == torch.float32:
        return policy, reference, reference, reference
    origin = deepcopy(reference).cpu() if main else None
    frozen, reference = in_16_bits(reference, backbone.dtype)
    return policy, reference, frozen, origin
