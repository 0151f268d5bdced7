"""What a reward is made of: which metrics agree, which one drives it, where one alone decides. Pure functions on arrays.

Everything is within groups: a group's mean says how hard its image is, and the method never compares across images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from dp2osr.preference.pairs import curate
from dp2osr.rewards.reward import finite_groups_of, hybrid_reward, mean_rank_correlation, reward_parts

if TYPE_CHECKING:
    from dp2osr.rewards.config import RewardConfig
    from dp2osr.rewards.table import ScoreTable

CONFLICT = -0.1  # mean rank correlation of two metrics below which they are said to pull apart
OUTLIER = 5.0  # robust standard deviations from a group's median


@dataclass(frozen=True)
class Outlier:
    """A candidate that one metric sets apart from its group: `deviation` in robust standard deviations, + is better."""

    image_id: str
    candidate: int
    metric: str
    deviation: float


@dataclass(frozen=True)
class Inspection:
    """What `inspect_rewards` found; G groups of M candidates.

    Attributes:
        image_ids: G ids; rewards: (G, M); parts: metric of the reward → (G, M), summing to the rewards.
        lower_better: metric → direction, of all that were scored.
        names: all scored metrics, FR before NR of the reward, then those outside of it; fr, nr: those of the reward.
        correlation: (K, K) mean within-group rank correlation of `names`, NaN where no group has a spread in both.
        shares: metric → its share of the reward's within-group variance; they sum to 1.
        agreement: metric → mean within-group rank correlation with the reward of the others.
        decides: metric → share of the winners that would not be among them without it.
        decided: (G, M) metric without which a winner falls to the worse half, several joined by " or ", or "".
        flat: metric → number of groups without a spread in it.
        gt_beaten: NR metric → mean share of the candidates that it prefers to the GT; only where the GT was scored.
        outliers: `Outlier`s, largest deviation first, at most one a group.
        top_n: N of the winners.
    """

    image_ids: list[str]
    rewards: np.ndarray
    parts: dict[str, np.ndarray]
    lower_better: dict[str, bool]
    names: list[str]
    fr: list[str]
    nr: list[str]
    correlation: np.ndarray
    shares: dict[str, float]
    agreement: dict[str, float]
    decides: dict[str, float]
    decided: np.ndarray
    flat: dict[str, int]
    gt_beaten: dict[str, float]
    outliers: list[Outlier]
    top_n: int

    @property
    def conflicts(self) -> list[tuple[str, str, float]]:
        """[(metric, metric, correlation)] of the reward's pairs that pull apart, the worst first."""
        rewarded = self.names[: len(self.parts)]
        pairs = [(first, second, self.of(first, second)) for i, first in enumerate(rewarded) for second in rewarded[i + 1 :]]
        return sorted((pair for pair in pairs if pair[2] < CONFLICT), key=lambda pair: pair[2])

    def of(self, first: str, second: str) -> float:
        """Rank correlation of two metrics."""
        return self.correlation[self.names.index(first), self.names.index(second)]

    def between_halves(self) -> float:
        """Mean rank correlation over all pairs of an FR and an NR metric of the reward; NaN without one of the sets."""
        pairs = [self.of(first, second) for first in self.fr for second in self.nr]
        return float(np.nanmean(pairs)) if pairs and not np.isnan(pairs).all() else float("nan")


def inspect_rewards(table: ScoreTable, config: RewardConfig, top_n: int) -> Inspection:
    """Inspect the reward `config` on a score table; see `Inspection`.

    Args:
        table: `ScoreTable` without NaN or infinite scores (`finite_groups`).
        top_n: N.

    Raises:
        UserError: a metric of the config was not scored, N too large.
    """
    rewards = hybrid_reward(table.scores, table.lower_better, config, table.gt_scores)
    parts = reward_parts(table.scores, table.lower_better, config, table.gt_scores)
    rewarded = list(parts)
    names = rewarded + [name for name in table.scores if name not in parts]
    aligned = {name: -table.scores[name] if table.lower_better[name] else table.scores[name] for name in names}
    others = rewards_without(table, config)
    decides, decided = _deciding(others, rewards, top_n)
    return Inspection(
        image_ids=table.image_ids,
        rewards=rewards,
        parts=parts,
        lower_better=table.lower_better,
        names=names,
        fr=[spec.name for spec in config.fr],
        nr=[spec.name for spec in config.nr],
        correlation=np.array([[mean_rank_correlation(aligned[first], aligned[second]) for second in names] for first in names]),
        shares=variance_shares(parts),
        agreement={name: mean_rank_correlation(aligned[name], others[name]) if name in others else float("nan") for name in rewarded},
        decides=decides or {rewarded[0]: 1.0},
        decided=decided,
        flat={name: int((np.ptp(values, axis=1) == 0).sum()) for name, values in aligned.items()},
        gt_beaten=gt_beaten(table),
        outliers=find_outliers(table.image_ids, {name: aligned[name] for name in rewarded}),
        top_n=top_n,
    )


def variance_shares(parts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """metric → mean over groups of cov(part, R) / var(R), the share of the reward's variance that comes through it."""
    rewards = sum(parts.values(), np.zeros(()))
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1)
    spread = variance > 0
    return {name: float(((values * centred).mean(axis=1)[spread] / variance[spread]).mean()) for name, values in parts.items()}


def rewards_without(table: ScoreTable, config: RewardConfig) -> dict[str, np.ndarray]:
    """metric → (G, M) reward of the others; {} where there is but one metric."""
    names = [spec.name for spec in config.metrics] if len(config.metrics) > 1 else []
    return {name: hybrid_reward(table.scores, table.lower_better, without(config, name), table.gt_scores) for name in names}


def without(config: RewardConfig, name: str) -> RewardConfig:
    """The config without one metric; the rest of its set shares its weight, or the other set where it was the only one."""
    fr, nr = ([spec for spec in specs if spec.name != name] for specs in (config.fr, config.nr))
    return replace(config, fr=fr, nr=nr, weights={other: weight for other, weight in config.weights.items() if other != name})


def _deciding(others: Mapping[str, np.ndarray], rewards: np.ndarray, top_n: int) -> tuple[dict[str, float], np.ndarray]:
    """(metric → share of the winners that it alone brings in, (G, M) names of the metric that decides a candidate or "")."""
    chosen, decides, decided = _winners(rewards, top_n), {}, np.full(rewards.shape, "", dtype=object)
    for name, without_it in others.items():
        decides[name] = float((chosen & ~_winners(without_it, top_n)).sum() / chosen.sum())
        fallen = chosen & (rankdata(without_it, axis=1) <= rewards.shape[1] / 2)
        for group, candidate in np.argwhere(fallen):
            decided[group, candidate] = " or ".join(filter(None, [decided[group, candidate], name]))
    return decides, decided


def _winners(rewards: np.ndarray, top_n: int) -> np.ndarray:
    """(G, M) whether a candidate is among the N best of its group."""
    chosen = np.zeros(rewards.shape, bool)
    np.put_along_axis(chosen, curate(rewards, top_n)[0], True, axis=1)
    return chosen


def gt_beaten(table: ScoreTable) -> dict[str, float]:
    """NR metric → mean share of the candidates that it scores better than the GT."""
    shares = {}
    for name, of_gt in table.gt_scores.items():
        sign = -1 if table.lower_better[name] else 1
        known = np.isfinite(of_gt)
        if known.any():
            shares[name] = float((sign * table.scores[name] > sign * of_gt[:, None])[known].mean())
    return shares


def find_outliers(image_ids: Sequence[str], aligned: Mapping[str, np.ndarray]) -> list[Outlier]:
    """`Outlier`s beyond `OUTLIER`, the largest first, at most one a group.

    Args:
        aligned: metric → (G, M), higher is better.
    """
    found: dict[int, Outlier] = {}
    for name, values in aligned.items():
        centred = values - np.median(values, axis=1, keepdims=True)
        scale = 1.4826 * np.median(np.abs(centred), axis=1, keepdims=True)
        deviation = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
        for group in map(int, np.flatnonzero(np.abs(deviation).max(axis=1) > OUTLIER)):
            candidate = int(np.abs(deviation[group]).argmax())
            outlier = Outlier(image_ids[group], candidate, name, float(deviation[group, candidate]))
            if group not in found or abs(found[group].deviation) < abs(outlier.deviation):
                found[group] = outlier
    return sorted(found.values(), key=lambda outlier: -abs(outlier.deviation))


def finite_groups(table: ScoreTable, config: RewardConfig) -> tuple[ScoreTable, list[str], list[str]]:
    """(the table as training sees it, ids of the groups that it passes over, names of metrics outside of the reward that are left out).

    Left out are groups with a NaN or infinite score of the reward, and other metrics with one in the groups that remain.

    Raises:
        UserError: a metric of the config was not scored.
    """
    finite = finite_groups_of(table.scores, config, table.gt_scores)
    scores = {name: values[finite] for name, values in table.scores.items()}
    rewarded = {spec.name for spec in config.metrics}
    odd = [name for name, values in scores.items() if name not in rewarded and not np.isfinite(values).all()]
    kept = replace(
        table,
        image_ids=[image_id for image_id, good in zip(table.image_ids, finite) if good],
        scores={name: values for name, values in scores.items() if name not in odd},
        gt_scores={name: values[finite] for name, values in table.gt_scores.items() if name not in odd},
    )
    return kept, [image_id for image_id, good in zip(table.image_ids, finite) if not good], odd


def sentences(inspection: Inspection) -> list[str]:
    """What a reader should know first, a line each: conflicts, metrics against the rest, the driver, what prefers candidates to the GT."""
    lines = []
    for first, second, correlation in inspection.conflicts:
        lines.append(f"conflict: {first} and {second} rank the candidates of an image against each other (ρ = {correlation:+.2f})")
    against = [name for name, value in inspection.agreement.items() if value < 0]
    if against:
        lines.append(f"against the rest: {', '.join(against)} rank candidates against the reward of the other metrics")
    driver = max(inspection.shares, key=inspection.shares.__getitem__)
    lines.append(f"{driver} drives the reward most: {inspection.shares[driver]:.0%} of its variance within a group")
    between = inspection.between_halves()
    if not np.isnan(between):
        lines.append(f"FR and NR metrics correlate by ρ = {between:+.2f} on average within a group")
    doubtful = [f"{name} ({share:.0%})" for name, share in inspection.gt_beaten.items() if share > 0.5]
    if doubtful:
        lines.append(f"prefers most candidates to the GT: {', '.join(doubtful)}")
    alone = int((inspection.decided != "").sum())
    lines.append(
        f"{alone} of {inspection.rewards.shape[0] * inspection.top_n} winners would be in the worse half without one single metric"
    )
    flat = {name: count for name, count in inspection.flat.items() if count}
    if flat:
        lines.append("no spread: " + ", ".join(f"{name} in {count} groups" for name, count in flat.items()))
    return lines
