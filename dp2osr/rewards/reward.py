"""The hybrid reward (paper, Sec. 4.1) from raw scores: pure functions on arrays, no model, no disk.

A reward that compares several models needs one normalisation over their pooled candidates: concatenate their scores
along M first and split the result. Normalising each model alone hides the gain.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.special import ndtr
from scipy.stats import rankdata

from dp2osr.errors import UserError
from dp2osr.rewards.config import RewardConfig

Scores = Mapping[str, np.ndarray]  # metric → (G, M) raw scores, or (G,) of the GT itself
Directions = Mapping[str, bool]  # metric → whether lower is better


def min_max(scores: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """s̄ = (s − min) / (max − min) over the pool (Sec. 4.1): 1 is its best."""
    low, high = pool.min(axis=1, keepdims=True), pool.max(axis=1, keepdims=True)
    return (scores - low) / _positive(high - low)


def rank(scores: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """The share of the pool that is worse, ties counting half: no outlier can stretch the scale."""
    below = [np.searchsorted(np.sort(of_group), values, side) for of_group, values in zip(pool, scores) for side in ("left", "right")]
    return np.reshape(below, (len(pool), 2, -1)).mean(axis=1) / pool.shape[1]


def z_score(scores: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Φ((s − mean) / std) over the pool: in [0, 1] as the others are, so that gaps and weights keep their scale."""
    return ndtr((scores - pool.mean(axis=1, keepdims=True)) / _positive(pool.std(axis=1, keepdims=True)))


NORMALISE = {"min_max": min_max, "rank": rank, "z_score": z_score}


def _positive(span: np.ndarray) -> np.ndarray:
    return np.where(span > 0, span, 1.0)


def normalise(scores: np.ndarray, lower_better: bool, how: str = "min_max", pool: np.ndarray | None = None) -> np.ndarray:
    """Direction-align and normalise the raw scores of one metric within each group.

    Args:
        scores: (G, K) raw scores, finite; lower_better: whether a lower raw score is the better one.
        how: name in `NORMALISE`.
        pool: (G, M) raw scores that set the scale; the scores themselves if not given.

    Returns:
        (G, K) float64, in [0, 1] without a `pool` of others. A group whose pool is all equal gets 0 everywhere: the metric does not
        tell its candidates apart.
    """
    sign = -1 if lower_better else 1
    scores = sign * np.asarray(scores, np.float64)
    pool = scores if pool is None else sign * np.asarray(pool, np.float64)
    flat = np.ptp(pool, axis=1, keepdims=True) == 0
    return np.where(flat, 0.0, NORMALISE[how](scores, pool))


def bounded(scores: Scores, lower_better: Directions, config: RewardConfig, gt_scores: Scores | None = None) -> dict[str, np.ndarray]:
    """The scores of the config's metrics, where it has an `nr_bound` with min(s − s_GT, margin) in place of an NR score s (higher better).

    But for a constant that is −max(0, s_GT + margin − s), the reward of Bird-SR (arXiv 2602.07069): nothing is won above the GT.

    Args:
        gt_scores: NR metric → the GT's own raw scores, (G,), or (G, M) where each candidate has its own GT.

    Raises:
        UserError: the GT was not scored, or has a NaN or infinite score.
    """
    found = {spec.name: np.asarray(scores[spec.name], np.float64) for spec in config.metrics}
    for name in config.bounded:
        if not gt_scores or name not in gt_scores:
            raise UserError(f"reward config '{config.name}' is bounded by the GT's own '{name}', which was not scored; give the GT")
        of_gt = np.asarray(gt_scores[name], np.float64)
        of_gt = of_gt[:, None] if of_gt.ndim == 1 else of_gt
        bad = np.argwhere(~np.isfinite(of_gt))
        if len(bad):
            raise UserError(f"metric '{name}' has no finite score for the GT of group {bad[0][0]}; run label_rewards.py again")
        margin = config.margin.get(name, 0.0)
        above = found[name] - of_gt
        found[name] = np.maximum(above, -margin) if lower_better[name] else np.minimum(above, margin)
    return found


def reward_parts(scores: Scores, lower_better: Directions, config: RewardConfig, gt_scores: Scores | None = None) -> dict[str, np.ndarray]:
    """Each metric's share of the reward; the shares sum to `hybrid_reward`.

    Args:
        scores: (G, M) each; may hold more metrics than the config names.
        gt_scores: the GT's own, of a config that is bounded by them; see `bounded`.

    Returns:
        metric name → (G, M) float64, at most the metric's share of the weight.

    Raises:
        UserError: a metric of the config has no scores, or has a NaN or infinite one.
    """
    shares = reward_shares(scores, lower_better, config, gt_scores)
    return {name: shares[name] * values for name, values in _normalised(scores, lower_better, config, gt_scores).items()}


def reward_shares(scores: Scores, lower_better: Directions, config: RewardConfig, gt_scores: Scores | None = None) -> dict[str, float]:
    """metric → its share of the weight on these scores; args and errors as `reward_parts`. It depends on them where the config is aware of
    conflicts."""
    if not config.conflict_aware:
        return config.shares()
    return config.shares(agreement_weights(_normalised(scores, lower_better, config, gt_scores), config))


def with_fixed_weights(config: RewardConfig, scores: Scores, lower_better: Directions, gt_scores: Scores | None = None) -> RewardConfig:
    """The config with the weights that it gives these scores, whatever it is used on next; itself unless it is aware of conflicts."""
    if not config.conflict_aware:
        return config
    return replace(config, weights=reward_shares(scores, lower_better, config, gt_scores), conflict_aware=False)


def _normalised(scores: Scores, lower_better: Directions, config: RewardConfig, gt_scores: Scores | None) -> dict[str, np.ndarray]:
    check_all_scored(scores, config)
    for spec in config.metrics:
        bad = np.argwhere(~np.isfinite(np.asarray(scores[spec.name], np.float64)))
        if len(bad):
            where = f"candidate {bad[0][1]} of group {bad[0][0]}"
            raise UserError(f"metric '{spec.name}' has no finite score for {where}; run label_rewards.py again")
    found = bounded(scores, lower_better, config, gt_scores)
    return {name: normalise(values, lower_better[name], config.normalise) for name, values in found.items()}


def agreement_weights(normalised: Scores, config: RewardConfig) -> dict[str, float]:
    """metric → its mean within-group rank correlation with the reward of the other metrics, 0 where that is negative.

    Args:
        normalised: metric → (G, M) normalised scores; all groups together give one weight a metric.
    """
    shares, weights = config.shares(), {}
    for name, values in normalised.items():
        others = np.asarray(sum(shares[other] * normalised[other] for other in normalised if other != name))
        weights[name] = max(0.0, np.nan_to_num(mean_rank_correlation(values, others))) if len(normalised) > 1 else 1.0
    return weights


def mean_rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation within each group of (G, M) arrays, averaged over the groups with a spread in both; NaN without any."""
    ranks = [rankdata(values, axis=1) for values in (first, second)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    spread = scale > 0
    return float(((centred[0] * centred[1]).sum(axis=1)[spread] / scale[spread]).mean()) if spread.any() else float("nan")


def hybrid_reward(scores: Scores, lower_better: Directions, config: RewardConfig, gt_scores: Scores | None = None) -> np.ndarray:
    """R = ½ · mean of the normalised FR scores + ½ · mean of the normalised NR scores (Sec. 4.1), or with the config's weights.

    Args and errors as `reward_parts`. Returns (G, M) float64 in [0, 1].
    """
    return np.asarray(sum(reward_parts(scores, lower_better, config, gt_scores).values()))


def finite_groups_of(scores: Scores, config: RewardConfig, gt_scores: Scores | None) -> np.ndarray:
    """(G,) whether all candidates of a group, and the GT that bounds them, have finite scores; UserError where a metric was not scored."""
    check_all_scored(scores, config)
    bounds = [np.isfinite(gt_scores[name]) for name in config.bounded if name in gt_scores] if gt_scores else []
    return np.all([np.isfinite(scores[spec.name]).all(axis=1) for spec in config.metrics] + bounds, axis=0)


def check_all_scored(scores: Scores, config: RewardConfig) -> None:
    """Raise `UserError` unless all metrics of the config have scores."""
    for spec in config.metrics:
        if spec.name not in scores:
            there = f"the scores hold {', '.join(sorted(scores))}"
            raise UserError(f"reward config '{config.name}' needs metric '{spec.name}', {there}; run label_rewards.py with this config")
