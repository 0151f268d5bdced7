"""Training curves on disk, and at a tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp2osr.errors import UserError
from dp2osr.files import write_text
from dp2osr.hub.settings import without_hub

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dp2osr.training.baseline_settings import BaselineSettings
    from dp2osr.training.settings import TrainSettings


class TrainingLog:
    """A JSONL of records; what a killed run wrote beyond its last checkpoint is dropped when it goes on. `records`: those that are kept."""

    def __init__(self, path: Path, step: int) -> None:
        kept, self.records = [], []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # the line that a kill cut
                    continue
                if record["step"] <= step and step:
                    kept.append(line)
                    self.records.append(record)
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.path = path

    def write(self, record: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def start_tracker(accelerator: Accelerator, settings: TrainSettings | BaselineSettings, name: str = "dp2o") -> None:
    """Tell the tracker of the run; `UserError` where it does not start, as without a login."""
    if settings.report_to == "none":
        return
    plain = {key: value for key, value in without_hub(settings).items() if isinstance(value, int | float | str | bool)}
    try:
        accelerator.init_trackers(name, config=plain)
    except Exception as error:  # each tracker raises its own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--report_to {settings.report_to}: does not start ({reason}); see to it, or give --report_to none") from None
