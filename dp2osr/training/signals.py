"""A job that is to end: SIGTERM (a scheduler's notice) and SIGUSR1 (Slurm's --signal) are noted, and the training ends after its step."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from dp2osr.errors import stop

if TYPE_CHECKING:
    from accelerate import Accelerator

NOTED = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """`signal`: the one that came, or 0."""

    def __init__(self) -> None:
        self.signal = 0

    def note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number


@contextmanager
def noted_signals() -> Iterator[StopRequest]:
    """Within, a `StopRequest` takes the signals of `NOTED`, which otherwise end a process at once."""
    request, before = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request.note) for number in NOTED}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_early(accelerator: Accelerator, output: Path, number: int, step: int, last: int) -> NoReturn:
    """End a training whose `step` is saved, by the exit code of the signal `number`; 0: it came to another process.

    To be called by all processes.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    name, code = signal.Signals(number).name if number else "a signal to another process", 128 + (number or signal.SIGTERM)
    if not accelerator.is_main_process:
        sys.exit(code)
    stop(f"{output}: {name} came; step {step} of {last} is saved, the same command goes on from it", code)
