"""Rounds of sampling and training: a further one samples other images with the policy of the one before, and starts from it."""

from collections.abc import Mapping
from typing import Any


def round_suffix(number: int) -> str:
    """What the folders of a round are called behind their name."""
    return "" if number == 1 else f"-{number}"


def further_round(number: int, seed: int) -> dict[str, int]:
    """Flags of sampling for a round after the first: other images, other noise."""
    return {"images_offset": number - 1, "seed": seed}


def reference_of(reference: str, train: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of a further round's training: its reference stays the base where it is "fixed"."""
    return {"reference_controlnet_model_name_or_path": train["controlnet_model_name_or_path"]} if reference == "fixed" else {}
