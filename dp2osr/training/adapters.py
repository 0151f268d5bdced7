"""LoRA on a ControlNet (peft): the policy is the ControlNet with its adapters, the reference the same one with them switched off."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from dp2osr.errors import UserError

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer


def add_adapters(controlnet: torch.nn.Module, rank: int) -> torch.nn.Module:
    """Put LoRA adapters of `rank` (α = rank, B = 0) in place on all linear layers and convolutions that are larger; they alone train."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [
        name
        for name, module in controlnet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and min(module.weight.shape[:2]) > rank
    ]
    if not targets:
        raise UserError(f"--lora_rank {rank}: no layer of this ControlNet is larger; give a smaller rank")
    controlnet.requires_grad_(False)
    return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), controlnet)


def adapters(controlnet: torch.nn.Module) -> dict[str, BaseTunerLayer]:
    """The adapted layers, {name: layer}."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in controlnet.named_modules() if isinstance(module, BaseTunerLayer)}


class WithoutAdapters:
    """Called like the ControlNet, it answers as without its adapters."""

    def __init__(self, controlnet: torch.nn.Module) -> None:
        self.controlnet, self.layers = controlnet, list(adapters(controlnet).values())
        self.config = controlnet.config

    def __call__(self, *args: Any, **options: Any) -> Any:
        for layer in self.layers:
            layer.enable_adapters(False)
        try:
            with torch.no_grad():
                return self.controlnet(*args, **options)
        finally:
            for layer in self.layers:
                layer.enable_adapters(True)


def merged(controlnet: torch.nn.Module) -> torch.nn.Module:
    """A ControlNet of the plain class with the adapters' updates added to its weights; `controlnet` itself where it has none."""
    layers = adapters(controlnet)
    if not layers:
        return controlnet
    state = {key.replace(".base_layer", ""): value for key, value in controlnet.state_dict().items() if ".lora_" not in key}
    for name, layer in layers.items():
        update = sum(layer.get_delta_weight(active) for active in layer.active_adapters)
        state[f"{name}.weight"] = state[f"{name}.weight"] + update.to(state[f"{name}.weight"])
    plain = type(controlnet).from_config(deepcopy(controlnet.config))
    plain.load_state_dict(state)
    return plain.to(controlnet.device, controlnet.dtype)


@torch.no_grad()
def distance(policy: torch.nn.Module, reference: torch.nn.Module | WithoutAdapters) -> float:
    """‖θ − θ_ref‖ / ‖θ_ref‖ over the ControlNet's parameters; `reference` is another network, or `WithoutAdapters` of the policy."""
    if isinstance(reference, WithoutAdapters):
        moves = [layer.get_delta_weight("default") for layer in adapters(policy).values()]
        start = [parameter for name, parameter in policy.named_parameters() if ".lora_" not in name]
    else:
        start = list(reference.parameters())
        moves = [own - other.to(own.device) for own, other in zip(policy.parameters(), start, strict=True)]
    moved, length = (math.fsum(float(tensor.double().square().sum()) for tensor in side) for side in (moves, start))
    return math.sqrt(moved / length)
