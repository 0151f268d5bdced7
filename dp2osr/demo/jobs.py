"""A visitor's work in a thread of its own: what it says is read while it runs, and it stops between two passes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Found = TypeVar("Found")
REST = 0.15  # seconds between two looks


class Stopped(Exception):
    """Nobody waits for the result any more."""


@dataclass(frozen=True)
class News:
    """What a job does, and which share of it is done, from 0 to 1; None while that is not known."""

    text: str
    share: float | None = None


class Job(Generic[Found]):
    """Runs `work(job)`, which calls `say` as it goes; `say` raises `Stopped` once the job was stopped."""

    def __init__(self, work: Callable[[Job[Found]], Found]) -> None:
        self._work, self._stop = work, threading.Event()
        self._news, self._error = News("waiting for the model"), None  # type: tuple[News, BaseException | None]
        self._found: list[Found] = []
        self._thread = threading.Thread(target=self._run, name="dp2osr job", daemon=True)

    def _run(self) -> None:
        try:
            self._found.append(self._work(self))
        except BaseException as error:  # of any kind: `result` raises it where somebody reads it
            self._error = error

    def say(self, text: str, share: float | None = None) -> None:
        """What the job does now; raises `Stopped` where it was stopped."""
        if self._stop.is_set():
            raise Stopped
        self._news = News(text, share)

    def stop(self) -> None:
        """Ask it to end at its next `say`."""
        self._stop.set()

    def watch(self) -> Iterator[News]:
        """Start it; gives what it says until it ends."""
        self._thread.start()
        last = None
        while self._thread.is_alive():
            if self._news != last:
                last = self._news
                yield last
            self._thread.join(REST)

    def result(self, patience: float = 0) -> Found:
        """What the work returned, or raised."""
        end = time.monotonic() + patience
        while self._thread.is_alive() and time.monotonic() < end:
            self._thread.join(REST)
        if self._error is not None:
            raise self._error
        return self._found[0]
