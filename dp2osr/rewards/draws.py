"""Metrics that draw random numbers (LIQE's and WaDIQaM's patches): each image's draw follows from (seed, image id, candidate) alone."""

import random
from contextlib import contextmanager

import numpy as np
import torch

from dp2osr.sampling.seeds import stable_seed


@contextmanager
def random_state_kept():
    """Within, whatever is drawn or seeded; afterwards Python's, NumPy's and torch's generators are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def noticing_draws():
    """Within, `drawn()` of what is yielded says whether a random number was drawn; the generators are left as they were."""

    def states():
        cuda = [state.clone() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
        return [torch.random.get_rng_state(), *cuda], np.random.get_state()[1:3], random.getstate()

    def drawn():
        torch_states, numpy_state, python_state = states()
        same = all(torch.equal(first, second) for first, second in zip(before[0], torch_states, strict=True))
        return not (same and python_state == before[2] and np.array_equal(numpy_state[0], before[1][0]) and numpy_state[1] == before[1][1])

    with random_state_kept():
        before = states()
        before = before[0], (before[1][0].copy(), before[1][1]), before[2]
        yield drawn


def one_seeded_image_at_a_time(metric, seed, image_id, candidates):
    """A function of a batch that scores image i with the generators seeded from (seed, image id, its candidate number).

    Args:
        candidates: an iterator of candidate numbers, taken from as images come.
    """

    def score(images, *gt):
        scores = []
        for image in images.split(1):
            number = stable_seed(seed, image_id, next(candidates)) % 2**32
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
            scores.append(metric(image, *gt).flatten())
        return torch.cat(scores)

    return score


def share_of_flips(first, second):
    """Of the pairs of (M,) scores, the share whose order differs between two draws; NaN with fewer than two candidates."""
    upper = np.triu_indices(len(first), 1)
    signs = [np.sign(np.subtract.outer(values, values)[upper]) for values in (first, second)]
    return float((signs[0] != signs[1]).mean()) if len(upper[0]) else float("nan")
