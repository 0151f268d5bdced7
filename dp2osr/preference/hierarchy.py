"""Hierarchical preference weights (paper, Sec. 4.3), w = w_intra · w_inter, and advantages. Pure functions on arrays."""

import numpy as np


def intra_weights(rewards: np.ndarray, winners: np.ndarray, losers: np.ndarray) -> np.ndarray:
    """w_intra = |R_w − R_l| + (1 − μ_gap), μ_gap the mean gap over the N² pairs of the group.

    Args:
        rewards: (G, M); winners, losers: (G, N) indices.
    Returns:
        (G, N, N), winner by loser; each group's mean is 1.
    """
    best, worst = np.take_along_axis(rewards, winners, 1), np.take_along_axis(rewards, losers, 1)
    gaps = np.abs(best[:, :, None] - worst[:, None, :])
    return gaps + (1 - gaps.mean(axis=(1, 2), keepdims=True))


def inter_weights(rewards: np.ndarray) -> np.ndarray:
    """w_inter = σ_g + (1 − μ_σ), σ_g the standard deviation (population) over all M of a group, μ_σ its mean over all groups.

    Returns:
        (G,); the mean is 1.
    """
    spread = rewards.std(axis=1)
    return spread + (1 - spread.mean())


def hpo_weights(rewards: np.ndarray, winners: np.ndarray, losers: np.ndarray, weighting: str = "both") -> np.ndarray:
    """(G, N, N) pair weights; `weighting` is "none", "intra", "inter" or "both", the rows of the paper's ablation."""
    rewards = np.asarray(rewards, dtype=np.float64)
    weights = np.ones((len(rewards), winners.shape[1], losers.shape[1]))
    if weighting in ("intra", "both"):
        weights = weights * intra_weights(rewards, winners, losers)
    if weighting in ("inter", "both"):
        weights = weights * inter_weights(rewards)[:, None, None]
    return weights


def advantages(rewards: np.ndarray, winners: np.ndarray, losers: np.ndarray) -> np.ndarray:
    """A = (R − mean) / std (population) over the 2N chosen candidates of each group: their mean is 0, so no loss sees a common offset.

    Args:
        rewards: (G, M); winners, losers: (G, N) indices.
    Returns:
        (G, 2N), winners first; 0 where all chosen rewards are equal.
    """
    chosen = np.take_along_axis(np.asarray(rewards, dtype=np.float64), np.concatenate([winners, losers], axis=1), 1)
    spread = np.where(np.ptp(chosen, axis=1, keepdims=True) > 0, chosen.std(axis=1, keepdims=True), np.inf)
    return (chosen - chosen.mean(axis=1, keepdims=True)) / spread
