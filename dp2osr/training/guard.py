"""What held-out validations say about a run: which was the best, and whether the policy is collapsing."""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm


class CollapseGuard:
    """Fed with the log's records, in order; those without a validation are passed over.

    Args:
        patience: k; `collapsed` is true after a validation that was the k-th in a row to fall; then the count begins anew. 0: never.
            Any record that follows, a validation without a finite reward too, makes it false again.
        records: of the log so far, for a run that goes on.
    """

    def __init__(self, patience: int, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.patience, self.best, self.falls = patience, float("-inf"), 0
        self.last: float | None = None
        self.best_record: Mapping[str, Any] = {}
        self.collapsed = False
        for record in records:
            self.see(record)

    def see(self, record: Mapping[str, Any]) -> bool:
        """Take a record in; whether it is the best validation so far."""
        self.collapsed = False
        reward = record.get("G")
        if reward is None or not math.isfinite(reward):
            return False
        self.falls = self.falls + 1 if self.last is not None and reward < self.last else 0
        self.last = reward
        self.collapsed = bool(self.patience) and self.falls >= self.patience
        if self.collapsed:
            self.falls = 0
        if reward <= self.best:
            return False
        self.best, self.best_record = reward, record
        return True

    def say(self, record: Mapping[str, Any]) -> None:
        """Print a line about a validation that was taken in: G, and what it was at the best step."""
        if record.get("G") is None or not math.isfinite(record["G"]):
            return  # the validation has said why
        best = self.best_record
        which = "the best so far" if best is record else f"the best was {gain_in_words(best)} at step {best['step']}"
        tqdm.write(f"validation, step {record['step']}: {gain_in_words(record)}; {which}", file=sys.stderr)


def gain_in_words(record: Mapping[str, Any]) -> str:
    """`G = 0.43 [0.12, 0.71]`, with its 95 % interval where there is one."""
    interval = f" [{record['G_low']:.2f}, {record['G_high']:.2f}]" if "G_low" in record else ""
    return f"G = {record['G']:.2f}{interval}"
