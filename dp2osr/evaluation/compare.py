"""One table of results, and what it says of every method against a reference.

Everything that is compared here, candidates of models, folders of images, trainings of an experiment, is first a tidy table: one row a
score, with its method, training, image, candidate and metric. Rewards are one more metric.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from dp2osr import stats
from dp2osr.stats import Estimate

if TYPE_CHECKING:
    from dp2osr.rewards.config import RewardConfig

REWARD, BICUBIC = "reward", "bicubic"
FEW = 10  # photographs; with fewer a percentile bootstrap's 95 % hold the truth in 90 % of cases or less
Key = tuple[str, int]
Owner = TypeVar("Owner", bound=str | Key)


@dataclass(frozen=True)
class Results:
    """Raw scores and what is known of them.

    Attributes:
        values: columns method, training, image, candidate, metric and value; a training is a number, 0 where a method has only one.
        metrics: by metric: lower_better, mode ("FR", "NR" or ""), rewarded (whether the reward has it); in the order of the tables.
        photographs: {image: the photograph that it was cropped from}, in the order of the images.
    """

    values: pd.DataFrame
    metrics: pd.DataFrame
    photographs: dict[str, str]

    @property
    def images(self) -> list[str]:
        return list(self.photographs)

    @property
    def methods(self) -> list[str]:
        return list(self.values["method"].unique())

    @cached_property
    def _groups(self) -> dict[tuple[Hashable, ...], pd.DataFrame]:
        return dict(tuple(self.values.groupby(["method", "metric"], observed=True, sort=False)))

    def has(self, method: str, metric: str) -> bool:
        return (method, metric) in self._groups

    def trainings(self, method: str) -> list[int]:
        """Numbers of a method's trainings, in order."""
        return sorted(next(rows for (name, _), rows in self._groups.items() if name == method)["training"].unique())

    def array(self, method: str, metric: str) -> np.ndarray:
        """(S, G, M) raw scores of S trainings, G images, M candidates; KeyError where the method was not scored by the metric."""
        rows = self._groups[method, metric].set_index(["training", "image", "candidate"])["value"].unstack()
        return rows.to_numpy().reshape(rows.index.get_level_values(0).nunique(), len(self.photographs), -1)

    def aligned(self, method: str, metric: str) -> np.ndarray:
        """`array` with the sign turned where lower is better."""
        return (-1 if self.metrics.loc[metric, "lower_better"] else 1) * self.array(method, metric)

    def whole(self, metric: str) -> np.ndarray:
        """(G,) whether every method has a finite score of each candidate of an image."""
        found = [np.isfinite(self.array(method, metric)).all(axis=(0, 2)) for method in self.methods if self.has(method, metric)]
        return np.all(found, axis=0)

    def joined(self, values: pd.DataFrame, metrics: pd.DataFrame | None = None) -> Results:
        """These results with more rows, and the `metrics` of them."""
        table = self.metrics if metrics is None else pd.concat([metrics, self.metrics])
        return replace(self, values=pd.concat([self.values, values], ignore_index=True), metrics=table)


def tidy(scores: Mapping[Owner, Mapping[str, np.ndarray]], image_ids: Sequence[str]) -> pd.DataFrame:
    """The rows of arrays: {method or (method, training): {metric: (G, M) raw}}."""
    parts = []
    for key, of_metric in scores.items():
        method, training = key if isinstance(key, tuple) else (key, 0)
        for metric, array in of_metric.items():
            groups, count = array.shape
            columns = {"method": method, "training": training, "image": np.repeat(np.array(image_ids, dtype=object), count)}
            columns |= {"candidate": np.tile(np.arange(count), groups), "metric": metric, "value": array.ravel()}
            parts.append(pd.DataFrame(columns))
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(image=pd.Categorical(rows["image"], categories=list(image_ids)))


def metric_table(metrics: Mapping[str, Mapping[str, Any]], rewarded: Sequence[str] = ()) -> pd.DataFrame:
    """`Results.metrics` of {metric: {"lower_better", "mode"}}: those of the reward in its order, then the others, FR first."""
    others = sorted((name for name in metrics if name not in rewarded), key=lambda name: (metrics[name]["mode"], name))
    rows = [(name, metrics[name]["lower_better"], metrics[name]["mode"], name in rewarded) for name in [*rewarded, *others]]
    return pd.DataFrame(rows, columns=["metric", "lower_better", "mode", "rewarded"]).set_index("metric")


def results_of(
    scores: Mapping[Owner, Mapping[str, np.ndarray]], image_ids: Sequence[str], metrics: pd.DataFrame, crop_suffix: str = stats.CROP_SUFFIX
) -> Results:
    """`Results` of arrays, as `tidy` takes them; `metrics` as in `Results`."""
    photographs = dict(zip(image_ids, stats.photographs_of(image_ids, crop_suffix), strict=True))
    return Results(tidy(scores, image_ids), metrics, photographs)


def with_reward(
    results: Results, config: RewardConfig, outsiders: Collection[str] = (), gt_scores: Mapping[str, np.ndarray] | None = None
) -> tuple[Results, dict[Key, dict[str, np.ndarray]]]:
    """(results with the metric `REWARD` first, {(method, training): {metric: (G, M) part of it}}).

    Scores are normalised over the pooled candidates of all methods but the `outsiders`, which are set on that scale and not clipped.
    `gt_scores`: {NR metric: (G,) raw} of the GT itself, for a reward that is bounded by them.
    """
    names = [spec.name for spec in config.metrics]
    lower_better = {str(name): bool(lower) for name, lower in results.metrics["lower_better"].items()}
    keys = [(method, training) for method in results.methods for training in results.trainings(method)]
    keys = [key for key in keys if all(results.has(key[0], name) for name in names)]
    scores = {}
    for method, training in keys:
        place = results.trainings(method).index(training)
        scores[method, training] = {name: results.array(method, name)[place] for name in names}
    pool = {key: of for key, of in scores.items() if key[0] not in outsiders}
    parts = stats.pooled_parts(pool, lower_better, config, gt_scores)
    for key in scores.keys() - pool.keys():
        parts[key] = stats.parts_of_outsider(scores[key], pool, lower_better, config, gt_scores)
    rewards = {key: {REWARD: sum(parts[key].values(), np.zeros(()))} for key in keys}
    about = pd.DataFrame([(REWARD, False, "", True)], columns=["metric", "lower_better", "mode", "rewarded"]).set_index("metric")
    return results.joined(tidy(rewards, results.images), about), parts


@dataclass(frozen=True)
class Change:
    """A method's mean against another's, paired by image.

    Attributes:
        estimate: the change with its interval; in units of the reference's spread + is better, else the plain difference.
        by_training: (S,) of each training; by_image: (G,) mean over trainings, in the metric's own unit.
    """

    estimate: Estimate
    by_training: np.ndarray
    by_image: np.ndarray


class Comparison:
    """Every method against a reference.

    Images on which a metric failed for one method count for none. Intervals draw photographs, and where there are several
    trainings those too, with replacement.

    Args:
        reference: the method that the others are compared with.
        in_sigma: changes are in units of the reference's mean spread over the candidates of an image, aligned so that + is better;
            else they are plain differences.
        resamples, seed: of the bootstrap.
    """

    def __init__(self, results: Results, reference: str, in_sigma: bool = True, resamples: int = 2000, seed: int = 0) -> None:
        self.results, self.reference, self.in_sigma, self.resamples, self.seed = results, reference, in_sigma, resamples, seed
        self._kept: dict[str, np.ndarray] = {}
        self._weights: dict[bytes, np.ndarray | None] = {}

    def kept(self, metric: str) -> np.ndarray:
        """(G,) images that count for a metric."""
        if metric not in self._kept:
            self._kept[metric] = self.results.whole(metric)
        return self._kept[metric]

    def photographs(self, metric: str) -> np.ndarray:
        return np.array(list(self.results.photographs.values()))[self.kept(metric)]

    def weights(self, metric: str) -> np.ndarray | None:
        """`stats.bootstrap_weights` of the images that count for a metric."""
        key = self.kept(metric).tobytes()
        if key not in self._weights:
            self._weights[key] = stats.bootstrap_weights(self.photographs(metric), self.resamples, self.seed)
        return self._weights[key]

    def values(self, method: str, metric: str) -> np.ndarray:
        """(S, G, M) on the images that count, in the direction of the changes."""
        array = self.results.aligned(method, metric) if self.in_sigma else self.results.array(method, metric)
        return array[:, self.kept(metric)]

    def spread(self, metric: str) -> np.ndarray:
        """(G,) what a change is measured in: the reference's spread over candidates, or 1."""
        values = self.values(self.reference, metric)
        return np.mean([stats.spread(of) for of in values], axis=0) if self.in_sigma else np.ones(values.shape[1])

    def change(self, method: str, metric: str, against: str | None = None) -> Change | None:
        """The `Change` of a method; against one with several trainings, those that both have are paired. None where there is none."""
        own, other = (self.values(name, metric).mean(axis=2) for name in (method, against or self.reference))
        if len(other) > 1:
            mine, theirs = self.results.trainings(method), self.results.trainings(against or self.reference)
            common = [training for training in mine if training in theirs]
            own, other = own[[mine.index(one) for one in common]], other[[theirs.index(one) for one in common]]
        if not len(own):
            return None
        differences, spread = own - other, self.spread(metric)
        of_trainings = stats.seed_weights(len(differences), self.resamples, self.seed)
        estimate, _ = stats.mean_gain(differences, spread, self.weights(metric), of_trainings)
        with np.errstate(divide="ignore", invalid="ignore"):
            by_training = differences.mean(axis=1) / spread.mean()
        return Change(estimate, by_training, differences.mean(axis=0))

    def level(self, method: str, metric: str) -> Estimate:
        """The `Estimate` of a method's mean, raw."""
        means = self.results.array(method, metric)[:, self.kept(metric)].mean(axis=(0, 2))
        return stats.ratio_of_means(means, np.ones_like(means), self.weights(metric))

    def worst_raised(self, method: str) -> Estimate:
        """`stats.worst_raised` of the reward."""
        policy, base = (self.values(name, REWARD).mean(axis=0) for name in (method, self.reference))
        return stats.worst_raised(policy, base, self.weights(REWARD))

    def p_value(self, change: Change, metric: str) -> float:
        """Of Wilcoxon's signed-rank test over photographs, whose crops count as one; NaN where nothing can be tested."""
        photographs = self.photographs(metric)
        of_photographs = [change.by_image[photographs == name].mean() for name in np.unique(photographs)]
        tested = len(of_photographs) > 1 and np.any(of_photographs)
        return float(wilcoxon(of_photographs).pvalue) if tested else float("nan")

    def spreads(self, method: str, metric: str) -> tuple[float, float]:
        """(mean over images of the std over candidates, std over candidates of the mean over images); NaN for a single candidate."""
        values = self.results.array(method, metric)[:, self.kept(metric)].mean(axis=0)
        if values.shape[1] < 2:
            return float("nan"), float("nan")
        return float(stats.spread(values).mean()), float(values.mean(axis=0).std(ddof=1))


def notes_on_photographs(photographs: Sequence[str], image_ids: Sequence[str]) -> list[str]:
    """What is to be said of intervals over few photographs."""
    count = len(set(photographs))
    if count < 2:
        hint = "; if the images are different photographs, pass --crop_suffix ''" if len(image_ids) > 1 else ""
        return [f"One photograph ({photographs[0]}): no interval can be given{hint}."]
    if count < FEW:
        return [f"Only {count} photographs: a bootstrap interval over so few is too narrow; read it as a rough guide."]
    return []
