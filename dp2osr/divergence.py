"""Ends a training that has no finite loss any more."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dp2osr.errors import UserError


class Divergence:
    """Ends a training (`UserError`) that has no finite loss in three steps in a row. `bad`: steps without one, up to now."""

    def __init__(self, output: str | Path) -> None:
        self.output, self.bad = output, 0

    def see(self, step: int, finite: bool, image_ids: Sequence[str] = ()) -> None:
        self.bad = 0 if finite else self.bad + 1
        if self.bad == 3:
            images, scores = (f" with the images {', '.join(image_ids)}", " or check their scores") if image_ids else ("", "")
            raise UserError(
                f"{self.output}: no finite loss in three steps in a row, the last at step {step}{images}; lower --learning_rate{scores}"
            )

    def warn(self) -> None:
        """Say that the last steps of a training that has ended changed nothing."""
        if self.bad:
            line = f"the last {self.bad} steps had no finite loss and changed nothing; lower --learning_rate"
            print(f"\nwarning: {self.output}: {line}", file=sys.stderr)
