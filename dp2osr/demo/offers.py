"""The models that the page offers, and the one that is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp2osr.api.model import load
from dp2osr.errors import UserError
from dp2osr.files import read_json
from dp2osr.sampling.strength import training_record

if TYPE_CHECKING:
    from dp2osr.api.model import Model
    from dp2osr.demo.settings import DemoSettings

EXAMPLE = "--model tiny=preset/models/tiny-sd2+preset/models/c-tiny-sd2"
SHIPPED = {"tiny-sd2": "preset/models/tiny-sd2+preset/models/c-tiny-sd2", "tiny-flux": "preset/models/tiny-flux+preset/models/c-tiny-flux"}
POLICY = "runs/quickstart/policy"


@dataclass(frozen=True)
class Offer:
    """A model of the page.

    Attributes:
        controlnet: None where `model` is a policy's folder, which knows its base.
        start: the ControlNet that a policy was trained from, where it is named.
    """

    name: str
    model: str
    controlnet: str | None = None
    start: str | None = None

    @property
    def has_base(self) -> bool:
        """Whether there is a policy and a base, so that something lies between."""
        return self.start is not None or training_record(self.controlnet or self.model) is not None


def offers_of(words: Sequence[str] | None) -> dict[str, Offer]:
    """{name: `Offer`} of the flag --model; the shipped models, and the quickstart's policy if it is there, for None.

    Raises:
        UserError: a word of another form, a name given twice, a shipped model that is not under the folder of the start.
    """
    if words is None:
        words = [f"{name}={parts}" for name, parts in SHIPPED.items() if Path(parts.partition("+")[0]).is_dir()]
        words += [f"quickstart={POLICY}"] * is_policy(POLICY)
    offers: dict[str, Offer] = {}
    for word in words:
        name, _, value = word.partition("=")
        parts = value.split("+")
        if not name or not all(parts) or len(parts) > 3:
            raise UserError(f"--model {word}: not of the form NAME=BASE+CONTROLNET; write for example {EXAMPLE}")
        if name in offers:
            raise UserError(f"--model {word}: the name '{name}' is given twice; give each model a name of its own")
        offers[name] = Offer(name, *parts)
    if not offers:
        raise UserError(f"no model: the shipped ones are not in {Path.cwd()}; start in the repository, or name one: {EXAMPLE}")
    return offers


def is_policy(folder: str) -> bool:
    """Whether a folder has the record of a training."""
    path = Path(folder) / "settings.json"
    return path.is_file() and isinstance(read_json(path), dict)


class Loaded:
    """The one model in memory; another that is asked for takes its place."""

    def __init__(self, offers: dict[str, Offer], settings: DemoSettings) -> None:
        self.offers, self._settings = offers, settings
        self._name: str | None = None
        self._model: Model | None = None

    def get(self, name: str) -> Model:
        """The model of this name; `UserError` where there is none or it cannot be loaded."""
        if name not in self.offers:
            raise UserError(f"model: there is no '{name}' here; take one of {', '.join(self.offers)}")
        if self._model is None or self._name != name:
            self._model = self._name = None  # its memory is free before the next one is read
            offer, settings = self.offers[name], self._settings
            options: dict[str, Any] = {"device": settings.device, "mixed_precision": settings.mixed_precision}
            self._model = load(offer.model, offer.controlnet, base_controlnet=offer.start, **options)
            self._name = name
        return self._model
