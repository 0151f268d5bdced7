"""How many images go through a network together: a fixed number, or fewer where a memory limit asks for it."""

from contextlib import contextmanager
from types import SimpleNamespace

import torch

from dp2osr.errors import UserError


class Batches:
    """Runs functions over a group's images, some at a time.

    Under a limit the first image goes alone, and what it took decides how many of the next go together.

    Args:
        size: images together at most.
        device: where the work is done; the limit counts this process's memory there.
        memory_limit: GB, of everything that the process holds: weights, images, what a network needs in between. None for no limit.
    """

    def __init__(self, size, device="cpu", memory_limit=None):
        self.size, self.device = size, torch.device(device)
        self.limit = None if memory_limit is None else memory_limit * 1e9
        self.each = {}  # what is run → bytes an image

    def run(self, name, images, function, beside=0):
        """The results of `function`, called on parts of `images`, one after the other.

        Args:
            name: what is run, for errors; its cost an image is measured once.
            images: (M, ...) tensor.
            function: part of `images` → (B, ...) tensor.
            beside: bytes that will be held beside the function's own.

        Raises:
            UserError: one image alone does not fit.
        """
        if self.limit is None:
            return torch.cat([function(part) for part in images.split(self.size)])
        done = []
        if name not in self.each:
            before = self._held()
            with self._peak() as peak:
                done.append(function(images[:1]))
            self.each[name] = peak.bytes
            if before + peak.bytes > self.limit:
                held, needed = before / 1e9, peak.bytes / 1e9
                problem = f"{name} takes {needed:.2f} GB for one image beside the {held:.2f} GB that are held"
                raise UserError(f"--memory_limit {self.limit / 1e9:g}: {problem}; allow at least {held + needed:.2f}")
        room = self.limit - self._held() - beside
        together = min(self.size, max(1, int(room // max(self.each[name], 1))))
        return torch.cat(done + [function(part) for part in images[len(done) :].split(together)])

    def _held(self):
        """Bytes that the process holds on the device."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        import psutil

        return psutil.Process().memory_info().rss

    @contextmanager
    def _peak(self):
        """Within, the most bytes beside those that are held at its start."""
        found = SimpleNamespace(bytes=0)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            yield found
            found.bytes = torch.cuda.max_memory_allocated(self.device) - before
        else:
            from dp2osr.planning.cost import PeakMemory

            with PeakMemory() as memory:
                yield found
            found.bytes = memory.peak
