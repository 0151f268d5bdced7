"""What held-out validations say about a run: which was the best, and whether the policy is collapsing."""

import math
from collections.abc import Iterable, Mapping
from typing import Any


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
        self.best = reward
        return True
