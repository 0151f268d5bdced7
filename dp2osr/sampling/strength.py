"""One knob between fidelity and perception: the ControlNet of a trained policy, blended with the one that its training started from.

θ = θ_base + S · (θ_policy − θ_base). S = 0 is the base, 1 the policy; above 1 goes on in the direction of the training.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dp2osr.backbones.base import Backbone
from dp2osr.backbones.loading import cast
from dp2osr.errors import UserError
from dp2osr.files import read_json
from dp2osr.provenance import legacy_weights_hash, weights_hash
from dp2osr.sampling.settings import SamplingSettings

FLAG = "--base_controlnet_model_name_or_path"
Tensors = dict[str, torch.Tensor]


def load_controlnet(args: SamplingSettings, backbone: Backbone, expected: dict[str, int | None]) -> torch.nn.Module:
    """The ControlNet that `args` name, blended with its base as --policy_strength says, in the precision of `backbone`.

    Args:
        expected: blocks that it must have, as `Backbone.load_controlnet` takes them.

    Raises:
        UserError: as of `Backbone.load_controlnet`; a base that cannot be found, or has other weights or other shapes.
    """
    base_path = base_of(args)
    if base_path is None:
        return backbone.load_controlnet(args.controlnet_model_name_or_path, **expected)
    policy, base = load_both(args, base_path, backbone, expected)
    blend_into(policy, policy.state_dict(), base.state_dict(), args.policy_strength)
    return cast(policy, backbone.dtype)


def load_both(
    args: SamplingSettings, base_path: str, backbone: Backbone, expected: dict[str, int | None]
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(the policy that `args` name, the base) in float32; `UserError` where their tensors are not of the same shapes."""
    policy_path = args.controlnet_model_name_or_path
    policy, base = (backbone.load_controlnet(path, torch.float32, **expected) for path in (policy_path, base_path))
    check_same_shapes(policy, base, policy_path, base_path)
    return policy, base


class Knob:
    """Sets a ControlNet to any strength, again and again; the policy's and the base's tensors stay in memory in float32 for it.

    Args:
        args: name the policy, and the base where the training's record does not.
        expected: as of `load_controlnet`.

    Raises:
        UserError: as `load_controlnet`.
    """

    def __init__(self, args: SamplingSettings, backbone: Backbone, expected: dict[str, int | None]) -> None:
        base_path = base_of(replace(args, policy_strength=0.0))
        assert base_path is not None  # of any strength but 1 there is one, or `base_of` has raised
        policy, base = load_both(args, base_path, backbone, expected)
        self.policy, self.base = policy.state_dict(), base.state_dict()

    def turn(self, network: torch.nn.Module, strength: float) -> None:
        """Give `network` the weights that `load_controlnet` gives with this --policy_strength."""
        blend_into(network, self.policy, self.base, strength)


@torch.no_grad()
def blend_into(network: torch.nn.Module, policy: Tensors, base: Tensors, strength: float) -> None:
    """Set the weights of `network` to base + strength · (policy − base): exactly the base's at 0, and the policy's at 1."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(base[name], policy[name], strength))


def check_same_shapes(policy: torch.nn.Module, base: torch.nn.Module, policy_path: str, base_path: str) -> None:
    """Raise `UserError` unless two ControlNets have tensors of the same names and shapes."""
    ours, theirs = ({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} for network in (policy, base))
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        first = differing[0]
        raise UserError(
            f"{FLAG} {base_path}: {len(differing)} of its tensors are not as those of {policy_path} "
            f"({first} is {theirs.get(first, 'missing')}, not {ours.get(first, 'there')}); give the ControlNet that it was trained from"
        )


def base_of(args: SamplingSettings) -> str | None:
    """Where the base's ControlNet comes from: the flag, else the record of the policy's training; None where the strength is 1.

    Raises:
        UserError: there is no such record, or what it names is not there any more or has other weights.
    """
    if args.policy_strength == 1:
        return None
    if args.base_controlnet_model_name_or_path is not None:
        return args.base_controlnet_model_name_or_path
    policy = args.controlnet_model_name_or_path
    asked, way = f"--policy_strength {args.policy_strength:g}", f"name the ControlNet that it was trained from with {FLAG}"
    found = training_record(policy)
    if found is None:
        raise UserError(f"{asked}: {policy} has no settings.json of a preference training beside it; {way}")
    start, recorded = found["controlnet_model_name_or_path"], found["start_hash"]
    try:
        is_same = recorded in (weights_hash(start), legacy_weights_hash(start))
    except UserError:
        raise UserError(f"{asked}: {policy} was trained from {start}, which is not there; {way}") from None
    if not is_same:
        raise UserError(f"{asked}: {policy} was trained from {start}, whose weights are others now; {way}")
    return str(start)


def training_record(policy: str) -> dict[str, Any] | None:
    """The settings.json of the preference training that wrote a policy, in its folder or in the one above `best`; None without one."""
    place = Path(policy)
    if not place.exists():
        return None
    folder = place if place.is_dir() else place.parent
    for path in (folder / "settings.json", folder.parent / "settings.json" if folder.resolve().name == "best" else None):
        if path and path.is_file():
            found = read_json(path)
            if isinstance(found, dict) and {"start_hash", "controlnet_model_name_or_path"} <= found.keys():
                return found
    return None


def strength_record(args: SamplingSettings) -> dict[str, Any]:
    """What --policy_strength decides of the samples; a base's place is told by its hash."""
    base = base_of(args)
    blend = {"base_controlnet": base, "base_controlnet_hash": weights_hash(base)} if base is not None else {}
    return {"policy_strength": float(args.policy_strength), **blend}


def unused_base(args: SamplingSettings) -> str | None:
    """A line about a base that is given and not read, or None."""
    if args.base_controlnet_model_name_or_path is None or args.policy_strength != 1:
        return None
    return f"note: {FLAG} is not read: --policy_strength 1 is the policy alone"
