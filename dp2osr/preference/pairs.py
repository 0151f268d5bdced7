"""Curation (paper, Sec. 4.2): top-N and bottom-N of the M candidates of each LR image. Pure functions on arrays."""

import numpy as np

from dp2osr.errors import UserError


def curate(rewards: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the N best and the N worst candidates of each group.

    Args:
        rewards: (G, M) rewards, higher is better.
        top_n: N, at most M / 2, so that no candidate is both.
    Returns:
        winners (G, N), best first; losers (G, N), worst first. Ties go by candidate number.

    Raises:
        UserError: M < 2, N < 1 or N > M / 2.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    num_candidates = rewards.shape[1]
    if num_candidates < 2:
        raise UserError(f"--num_candidates {num_candidates}: winners and losers need two candidates an image at least")
    if not 1 <= top_n <= num_candidates // 2:
        raise UserError(f"--top_n {top_n}: with M = {num_candidates} candidates it must lie between 1 and {num_candidates // 2}")
    order = ranked(rewards)
    return order[:, :top_n], order[:, ::-1][:, :top_n]


def ranked(rewards: np.ndarray) -> np.ndarray:
    """(G, M) candidate numbers of each group, best first; ties go by number."""
    return np.argsort(-rewards, axis=1, kind="stable")
