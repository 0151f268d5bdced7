"""Settings of what goes to a model hub; names are those of diffusers' training scripts."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from dp2osr.cli import Settings, field_names, refuse_ignored
from dp2osr.errors import UserError
from dp2osr.fields import default_is, metavar


@dataclass(kw_only=True)
class HubSettings(Settings):
    """Whether a trained model goes to a hub, and to which repository."""

    push_to_hub: bool = False
    """Push the trained model with its card to a hub at the end; without this flag nothing is uploaded."""
    hub_model_id: Annotated[str | None, default_is("the output folder's name")] = None
    """Repository on the hub, NAME or OWNER/NAME; it is made if it is not there."""
    hub_token: Annotated[str | None, default_is("that of `hf auth login`, or HF_TOKEN")] = field(default=None, repr=False)
    """Token to push with; it is written to no file."""
    hub_private_repo: bool = False
    """Make the repository private."""


@dataclass(kw_only=True)
class PushSettings(Settings):
    """A folder that is pushed later: `scripts/push_to_hub.py`."""

    folder: tyro.conf.Positional[Annotated[str, metavar("FOLDER")]]
    """A training's output folder, a candidate folder, or a folder of scripts/export_labels.py."""
    hub_model_id: Annotated[str | None, default_is("the folder's name")] = None
    """Repository on the hub, NAME or OWNER/NAME; it is made if it is not there."""
    hub_token: Annotated[str | None, default_is("that of `hf auth login`, or HF_TOKEN")] = field(default=None, repr=False)
    """Token to push with."""
    hub_private_repo: bool = False
    """Make the repository private."""
    report: str | None = None
    """Output folder of scripts/evaluate.py: its G goes into a policy's card."""
    dry_run: bool = False
    """Write the card, and only list what would be uploaded; the hub is not asked."""


OF_THE_HUB = field_names(HubSettings)


def without_hub(settings: Settings) -> dict[str, Any]:
    """{field: value} of settings but for those of the hub: what decides a result, and may be written to a file."""
    known: Mapping[str, Any] = vars(settings)
    return {name: value for name, value in known.items() if name not in OF_THE_HUB}


def check_hub_flags(args: HubSettings, given: Container[str]) -> None:
    """Raise `UserError` where a flag of the hub would do nothing; `given`: of `dp2osr.cli.given`."""
    if not args.push_to_hub:
        refuse_ignored(given, [name for name in OF_THE_HUB if name != "push_to_hub"], "without --push_to_hub")
    elif getattr(args, "train_backbone", False):
        raise UserError(
            "--push_to_hub with --train_backbone: the ControlNet and its backbone are two repositories; leave --push_to_hub out, and "
            "after the training take scripts/push_to_hub.py for the ControlNet and `hf upload` for the folder model/"
        )
