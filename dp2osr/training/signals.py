"""A job that is to end: SIGINT (Ctrl-C), SIGTERM (a scheduler's notice), SIGUSR1 (Slurm's --signal) are noted; it ends after its step.

A second SIGINT ends it at once. A terminal sends Ctrl-C to a program and to its launcher alone; `torchrun` and `dp2osr.launch` start ranks
in sessions of their own and send each the signal once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from dp2osr.errors import stop
from dp2osr.sharing import Launch

if TYPE_CHECKING:
    from accelerate import Accelerator

NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PROMISE = b"\nCtrl-C: this step is finished and a checkpoint written, then the training ends; once more, and it ends at once\n"


class StopRequest:
    """`signal`: the one that came last, or 0."""

    def __init__(self) -> None:
        self.signal, self.interrupted, self.speaks = 0, False, Launch().is_first

    def note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                signal.default_int_handler(number, frame)  # KeyboardInterrupt
            if self.speaks:
                os.write(2, PROMISE)  # print may be what was interrupted
            self.interrupted = True
        self.signal = number


@contextmanager
def noted_signals() -> Iterator[StopRequest]:
    """Within, a `StopRequest` takes the signals of `NOTED`, which otherwise end a process at once.

    A SIGINT that is ignored, as a shell has it for what runs in the background, stays ignored.
    """
    request, before = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():
        taken = [number for number in NOTED if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, request.note) for number in taken}
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
    stop(f"{output}: {name} came; step {step} of {last} is saved in checkpoint-{step}.pt, the same command goes on from it", code)
