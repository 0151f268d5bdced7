"""A job that is to end: SIGTERM (a scheduler's notice) and SIGUSR1 (Slurm's --signal) are noted, and the training ends after its step."""

import signal
import threading
from contextlib import contextmanager

NOTED = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """`signal`: the one that came, or 0."""

    def __init__(self):
        self.signal = 0

    def note(self, number, _frame):
        self.signal = number


@contextmanager
def noted_signals():
    """Within, a `StopRequest` takes the signals of `NOTED`, which otherwise end a process at once."""
    request, before = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request.note) for number in NOTED}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
