"""Metrics that draw random numbers: each image's draw follows from (seed, image id, candidate) alone.

A metric that draws says so in the reward YAML (`draws: true`). None of pyiqa 0.1.16's does: bench/drawing_metrics.py watched all that can
be built without their weights, and the others' sources draw in training alone.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dp2osr.sampling.seeds import stable_seed


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Within, whatever is drawn or seeded; afterwards Python's, NumPy's and torch's generators are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def one_seeded_image_at_a_time(
    metric: Callable[..., torch.Tensor], seed: int, image_id: str, candidates: Iterator[int | str]
) -> Callable[..., torch.Tensor]:
    """A function of a batch that scores image i with the generators seeded from (seed, image id, its candidate number).

    Args:
        candidates: an iterator of candidate numbers, taken from as images come.
    """

    def score(images: torch.Tensor, *gt: torch.Tensor) -> torch.Tensor:
        scores = []
        for image in images.split(1):
            number = stable_seed(seed, image_id, next(candidates)) % 2**32
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
            scores.append(metric(image, *gt).flatten())
        return torch.cat(scores)

    return score


def share_of_flips(first: np.ndarray, second: np.ndarray) -> float:
    """Of the pairs of (M,) scores, the share whose order differs between two draws; NaN with fewer than two candidates."""
    upper = np.triu_indices(len(first), 1)
    signs = [np.sign(np.subtract.outer(values, values)[upper]) for values in (first, second)]
    return float((signs[0] != signs[1]).mean()) if len(upper[0]) else float("nan")
