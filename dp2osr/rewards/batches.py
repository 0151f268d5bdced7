"""How many images go through a network together: a fixed number, or fewer where a memory limit asks for it."""

from collections.abc import Callable
from contextlib import nullcontext

import torch

from dp2osr.device import held_bytes, peak_memory
from dp2osr.errors import UserError


class Batches:
    """Runs functions over a group's images, some at a time.

    Under a limit the first image goes alone, and what it took decides how many of the next go together. What a first call sets up counts
    too, a compiler's work for one; batches are then smaller than they could be, never larger.

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
        before = held_bytes(self.device)
        with peak_memory(self.device) if key not in self.each else nullcontext() as peak:
            done = [function(first)]
        if peak:
            self.each[key] = peak.bytes - before
            if peak.bytes > self.limit:
                held, needed = before / 1e9, self.each[key] / 1e9
                problem = f"{name} takes {needed:.2f} GB for one image beside the {held:.2f} GB that are held"
                raise UserError(f"--memory_limit {self.limit / 1e9:g}: {problem}; allow at least {held + needed:.2f}")
        results = 2 * len(images) * done[0].nbytes  # one by one, and then in one piece
        room = self.limit - held_bytes(self.device) - results
        together = min(self.size, max(1, int(room // max(self.each[key], 1))))
        return torch.cat(done + [function(part) for part in rest.split(together) if len(part)])
