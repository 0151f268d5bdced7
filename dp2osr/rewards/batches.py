"""How many images go through a network together: a fixed number, or fewer where a memory limit asks for it."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import Event, Thread
from types import SimpleNamespace

import psutil
import torch

from dp2osr.device import has_own_memory
from dp2osr.errors import UserError

SAMPLED_EVERY = 0.002  # seconds; what holds many megabytes fills them for longer


class Batches:
    """Runs functions over a group's images, some at a time.

    Under a limit the first image goes alone, and what it took decides how many of the next go together.

    Args:
        size: images together at most.
        device: where the work is done; the limit counts this process's memory there.
        memory_limit: GB, of everything that the process holds: weights, images, what a network needs in between. None for no limit.

    Attributes:
        each: (what is run, shape of an image) → bytes that one image took.
    """

    def __init__(self, size: int, device: str | torch.device = "cpu", memory_limit: float | None = None) -> None:
        self.size, self.device = size, torch.device(device)
        self.limit = None if memory_limit is None else min(memory_limit, 1e9) * 1e9  # more than there is: no infinity in the sums
        self.each: dict[tuple[str | int, ...], int] = {}

    def run(self, name: str, images: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The results of `function`, called on parts of `images`, one after the other.

        Args:
            name: what is run, for errors; its cost an image is measured once for each shape.
            images: (M, ...) tensor.
            function: part of `images` → (B, ...) tensor.

        Raises:
            UserError: one image alone does not fit.
        """
        if self.limit is None:
            return torch.cat([function(part) for part in images.split(self.size)])
        first, rest, key = images[:1], images[1:], (name, *images.shape[1:])
        before = self._held()
        with self._peak() if key not in self.each else nullcontext() as peak:
            done = [function(first)]
        if peak:
            self.each[key] = peak.bytes
            if before + peak.bytes > self.limit:
                held, needed = before / 1e9, peak.bytes / 1e9
                problem = f"{name} takes {needed:.2f} GB for one image beside the {held:.2f} GB that are held"
                raise UserError(f"--memory_limit {self.limit / 1e9:g}: {problem}; allow at least {held + needed:.2f}")
        results = 2 * len(images) * done[0].nbytes  # one by one, and then in one piece
        room = self.limit - self._held() - results
        together = min(self.size, max(1, int(room // max(self.each[key], 1))))
        return torch.cat(done + [function(part) for part in rest.split(together) if len(part)])

    def _held(self) -> int:
        """Bytes that the process holds on the device."""
        if has_own_memory(self.device):
            return torch.accelerator.memory_allocated(self.device)
        give_back_freed()
        return resident()

    @contextmanager
    def _peak(self) -> Iterator[SimpleNamespace]:
        """Within, the most bytes beside those that are held at its start.

        On a CPU the process's resident size is looked at, which is what the limit promises: not tensors alone, but also the buffers of
        convolutions and the arrays of a user's own metric. What a first call sets up counts too, a compiler's work for one; batches are
        then smaller than they could be, never larger.
        """
        found = SimpleNamespace(bytes=0)
        if has_own_memory(self.device):
            torch.accelerator.reset_peak_memory_stats(self.device)
            before = torch.accelerator.memory_allocated(self.device)
            yield found
            found.bytes = torch.accelerator.max_memory_allocated(self.device) - before
        else:
            give_back_freed()
            before = resident()
            with highest_resident() as highest:
                yield found
            found.bytes = highest.bytes - before


def give_back_freed() -> None:
    """Memory that was freed goes back to the system; glibc may keep it, and other libraries do not have this."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident() -> int:
    """Bytes of memory that the process has."""
    return psutil.Process().memory_info().rss


@contextmanager
def highest_resident() -> Iterator[SimpleNamespace]:
    """Within, `resident()` is looked at all the time: `bytes` of what is yielded is the most that was seen, after the end."""
    process, highest, ended = psutil.Process(), SimpleNamespace(bytes=resident()), Event()

    def watch() -> None:
        while not ended.wait(SAMPLED_EVERY):
            highest.bytes = max(highest.bytes, process.memory_info().rss)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield highest
    finally:
        ended.set()
        watcher.join()
        highest.bytes = max(highest.bytes, resident())
