"""What held-out validations say about a run: which was the best, and whether the policy is collapsing."""

import math

from dp2osr.errors import UserError


class Divergence:
    """Ends a training (`UserError`) whose loss is NaN or infinite in three steps in a row."""

    def __init__(self, output):
        self.output, self.bad = output, 0

    def see(self, step, loss):
        self.bad = 0 if math.isfinite(loss) else self.bad + 1
        if self.bad == 3:
            raise UserError(f"{self.output}: no finite loss in three steps in a row, the last at step {step}; lower --learning_rate")


class CollapseGuard:
    """Fed with the log's records, in order; those without a validation are passed over.

    Args:
        patience: k; `collapsed` is true after a validation that was the k-th in a row to fall; then the count begins anew. 0: never.
            Any record that follows, a validation without a finite reward too, makes it false again.
        records: of the log so far, for a run that goes on.
    """

    def __init__(self, patience, records=()):
        self.patience, self.best, self.last, self.falls = patience, float("-inf"), None, 0
        self.collapsed = False
        for record in records:
            self.see(record)

    def see(self, record):
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
