"""Statistics of the evaluation, on plain arrays: pooled normalisation, order statistics, gains, intervals over photographs.

Arrays are (G, M): one row an LR image, one column a candidate; or (G,): one value an LR image.
Every number of the report is a mean over images or a ratio of two such means, so that one bootstrap serves them all.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, TypeVar

import numpy as np

from dp2osr.rewards.config import RewardConfig
from dp2osr.rewards.reward import Directions, Scores, bounded, normalise, reward_parts, reward_shares

Key = TypeVar("Key")
CROP_SUFFIX = r"_\d\d$"  # photo_00, photo_01 are crops of `photo`


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; the bounds are NaN where no interval can be had (fewer than two photographs)."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the interval leaves zero out (sign aligned: + is better), else `unclear`."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "unclear"


# ---------------------------------------------------------------- normalisation (paper Sec. 4.1, pooled over models)


def pooled_parts(
    scores: Mapping[Key, Scores], lower_better: Directions, config: RewardConfig, gt_scores: Scores | None = None
) -> dict[Key, dict[str, np.ndarray]]:
    """Each metric's part of the reward, normalised per LR image over the candidates of *all* methods together.

    A normalisation of each method alone would give every method the same scale 0…1 and hide the gain.

    Args:
        scores: {method: {metric: (G, M) raw}}.
        gt_scores: {NR metric: (G,) raw} of the GT itself, for a config that is bounded by them.

    Returns:
        {method: {metric: (G, M)}}; the parts of a method sum to its reward in [0, 1].
    """
    methods = list(scores)
    names = [spec.name for spec in config.metrics]
    pooled = {name: np.concatenate([scores[method][name] for method in methods], axis=1) for name in names}
    parts = reward_parts(pooled, {name: lower_better[name] for name in names}, config, gt_scores)
    bounds = np.cumsum([scores[method][names[0]].shape[1] for method in methods])[:-1]
    split = {name: np.split(parts[name], bounds, axis=1) for name in names}
    return {method: {name: split[name][i] for name in names} for i, method in enumerate(methods)}


def parts_of_outsider(
    outsider: Scores, scores: Mapping[Any, Scores], lower_better: Directions, config: RewardConfig, gt_scores: Scores | None = None
) -> dict[str, np.ndarray]:
    """The reward's parts for an image outside the pool (bicubic), on the scale of the pool.

    The pool sets the scale. With min-max nothing is clipped: below 0 means worse than every candidate of every method.

    Args:
        outsider: {metric: raw}, (G,) or, of several images, (G, S).
        scores: {method: {metric: (G, M) raw}}, the pool.
        gt_scores: as of `pooled_parts`; they bound the outsider too.

    Returns:
        {metric: array of that shape}, summing to the outsider's reward.
    """
    pool = {spec.name: np.concatenate([scores[method][spec.name] for method in scores], axis=1) for spec in config.metrics}
    shares = reward_shares(pool, lower_better, config, gt_scores)
    alone = bounded({name: outsider[name].reshape(len(pool[name]), -1) for name in pool}, lower_better, config, gt_scores)
    return {
        name: (shares[name] * normalise(alone[name], lower_better[name], config.normalise, values)).reshape(outsider[name].shape)
        for name, values in bounded(pool, lower_better, config, gt_scores).items()
    }


# ---------------------------------------------------------------- Best / Worst of m


def expected_best(rewards: np.ndarray, m: int) -> np.ndarray:
    """E[max of m candidates drawn without replacement], exactly: the k-th smallest of M is the largest of m drawn with
    probability C(k-1, m-1) / C(M, m).

    Args:
        rewards: (G, M).
        m: 1 ≤ m ≤ M.

    Returns:
        (G,)
    """
    total = rewards.shape[1]
    weights = np.array([comb(rank, m - 1) / comb(total, m) for rank in range(total)])
    return np.sort(rewards, axis=1) @ weights


def expected_worst(rewards: np.ndarray, m: int) -> np.ndarray:
    """E[min of m candidates drawn without replacement], (G,); see `expected_best`."""
    return -expected_best(-rewards, m)


def subset_sizes(total: int) -> list[int]:
    """1, 2, 4, … up to and with `total`."""
    sizes = [2**k for k in range(total.bit_length()) if 2**k <= total]
    return sizes if sizes[-1] == total else [*sizes, total]


def best_mean_worst(rewards: np.ndarray) -> dict[str, Sequence[float]]:
    """Curves averaged over images: {"m": [...], "best": [...], "mean": [...], "worst": [...]}."""
    sizes = subset_sizes(rewards.shape[1])
    return {
        "m": sizes,
        "best": [float(expected_best(rewards, m).mean()) for m in sizes],
        "mean": [float(rewards.mean())] * len(sizes),
        "worst": [float(expected_worst(rewards, m).mean()) for m in sizes],
    }


# ---------------------------------------------------------------- gain and its interval


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation over candidates, per image: (G, M) → (G,). Seeds are a sample, hence the divisor M − 1."""
    return values.std(axis=1, ddof=1)


def photographs_of(image_ids: Iterable[str], crop_suffix: str = CROP_SUFFIX) -> list[str]:
    """The photograph each image id was cropped from: `photo_03` → `photo`."""
    return [re.sub(crop_suffix, "", image_id) or image_id for image_id in image_ids]


def bootstrap_weights(photographs: Sequence[str] | np.ndarray, resamples: int, seed: int) -> np.ndarray | None:
    """How often each image is drawn when photographs are drawn with replacement, all crops of a photograph together.

    Crops of one photograph are not independent: drawing images one by one would make the interval too narrow.

    Args:
        photographs: G names, one an image.

    Returns:
        (resamples, G) counts; `None` with fewer than two photographs.
    """
    names, cluster = np.unique(photographs, return_inverse=True)
    if len(names) < 2:
        return None
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, cluster]


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray, weights: np.ndarray | None) -> Estimate:
    """mean(numerator) / mean(denominator) over images, with the 95 % percentile interval; NaN where the denominator is 0.

    Args:
        numerator, denominator: (G,).
        weights: (B, G) of `bootstrap_weights`, or `None` for no interval. Numerator and denominator are resampled together.
    """
    if denominator.mean() == 0:
        return Estimate(float("nan"))
    value = float(numerator.mean() / denominator.mean())
    if weights is None:
        return Estimate(value)
    below = weights @ denominator
    ratios = (weights @ numerator)[below != 0] / below[below != 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def gain(policy: np.ndarray, base: np.ndarray, weights: np.ndarray | None) -> Estimate:
    """G = (Mean of the policy − Mean of the base) / σ, σ = mean over images of the base's spread within a group.

    Args:
        policy, base: (G, M) on one scale, higher is better: rewards, or a metric's sign-aligned raw scores.
    """
    return ratio_of_means(policy.mean(axis=1) - base.mean(axis=1), spread(base), weights)


def worst_raised(policy: np.ndarray, base: np.ndarray, weights: np.ndarray | None) -> Estimate:
    """Rise of Worst@M as a share of the distance from the base's Worst@M to the base's Mean (1: the floor is at the old mean)."""
    return ratio_of_means(policy.min(axis=1) - base.min(axis=1), base.mean(axis=1) - base.min(axis=1), weights)


# ---------------------------------------------------------------- several trainings of one setting


def seed_weights(count: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of `count` trainings is drawn when they are drawn with replacement: (resamples, count)."""
    return np.random.default_rng((seed, 1)).multinomial(count, np.full(count, 1 / count), size=resamples)


def mean_gain(
    differences: np.ndarray, base_spread: np.ndarray, weights: np.ndarray | None, weights_of_seeds: np.ndarray
) -> tuple[Estimate, np.ndarray | None]:
    """`gain` over several trainings of one setting: intervals draw photographs and trainings, both with replacement.

    Args:
        differences: (S, G) mean of a training's candidates − what it is compared with, sign aligned.
        base_spread: (G,) spread of the base's candidates.
        weights: (B, G) of `bootstrap_weights`, or `None`.
        weights_of_seeds: (B, S) of `seed_weights`.

    Returns:
        (`Estimate`, NaN where the base has no spread; (B,) the gain of each resample, `None` without an interval).
    """
    sigma = base_spread.mean()
    if sigma == 0:
        return Estimate(float("nan")), None
    value = float(differences.mean() / sigma)
    if weights is None:
        return Estimate(value), None
    below = weights @ base_spread * weights_of_seeds.sum(axis=1)
    above = np.einsum("bs,sg,bg->b", weights_of_seeds, differences, weights)
    draws = np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high)), draws
