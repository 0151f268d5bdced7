"""The hybrid reward (paper, Sec. 4.1) from raw scores: pure functions on arrays, no model, no disk.

A reward that compares several models needs one normalisation over their pooled candidates: concatenate their scores
along M first and split the result. Normalising each model alone hides the gain.
"""

import numpy as np

from dp2osr.errors import UserError


def min_max_normalise(scores, lower_better):
    """Direction-align and min-max normalise the raw scores of one metric within each group.

    Args:
        scores: (G, M) raw scores, finite.
        lower_better: whether a lower raw score is the better one.

    Returns:
        (G, M) float64 in [0, 1]; 1 is the group's best. A group in which all scores are equal gets 0 everywhere:
        the metric does not tell its candidates apart.
    """
    scores = -np.asarray(scores, np.float64) if lower_better else np.asarray(scores, np.float64)
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    span = high - low
    return np.divide(scores - low, span, out=np.zeros_like(scores), where=span > 0)


def reward_parts(scores, lower_better, config):
    """Each metric's share of the reward; the shares sum to `hybrid_reward`.

    Args:
        scores: metric name → (G, M) raw scores; may hold more metrics than the config names.
        lower_better: metric name → direction.
        config: `RewardConfig`.

    Returns:
        metric name → (G, M) float64, at most the set's weight / |set|; the weight is 1 where the config's other set is empty.

    Raises:
        UserError: a metric of the config has no scores, or has a NaN or infinite one.
    """
    both = config.fr and config.nr
    parts = {}
    for specs, weight in ((config.fr, config.fr_weight), (config.nr, 1 - config.fr_weight)):
        for spec in specs:
            _check(scores, spec.name, config.name)
            share = (weight if both else 1) / len(specs)
            parts[spec.name] = share * min_max_normalise(scores[spec.name], lower_better[spec.name])
    return parts


def hybrid_reward(scores, lower_better, config):
    """R = ½ · mean of the normalised FR scores + ½ · mean of the normalised NR scores (Sec. 4.1), or with the config's weights.

    Args and errors as `reward_parts`. Returns (G, M) float64 in [0, 1].
    """
    return sum(reward_parts(scores, lower_better, config).values())


def _check(scores, name, config_name):
    if name not in scores:
        there = ", ".join(sorted(scores))
        raise UserError(
            f"reward config '{config_name}' needs metric '{name}', the scores hold {there}; run label_rewards.py with this config"
        )
    bad = np.argwhere(~np.isfinite(np.asarray(scores[name], np.float64)))
    if len(bad):
        raise UserError(f"metric '{name}' has no finite score for candidate {bad[0][1]} of group {bad[0][0]}; run label_rewards.py again")
