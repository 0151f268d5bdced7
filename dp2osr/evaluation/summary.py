"""From raw scores to everything the report says: rewards, gains with intervals, curves, one row a metric."""

import math
from dataclasses import dataclass, field

import numpy as np

from dp2osr import stats
from dp2osr.stats import Estimate


@dataclass(frozen=True)
class Cell:
    """A metric of one method: mean over images and candidates; std over seeds of the mean over images; std within a group."""

    mean: float
    std_over_seeds: float = float("nan")
    std_within_group: float = float("nan")


@dataclass(frozen=True)
class MetricRow:
    """One metric: `cells` by column, `changes` (method − base) and `over_bicubic` (method − bicubic) in the base's σ, + is better."""

    name: str
    mode: str
    rewarded: bool
    lower_better: bool
    cells: dict
    changes: dict
    over_bicubic: dict


@dataclass(frozen=True)
class Comparison:
    """A method against the base, by reward."""

    name: str
    gain: Estimate
    worst_raised: Estimate
    images_improved: int
    per_image_gain: np.ndarray


@dataclass
class Evaluation:
    """All results. `rewards[method]` is (G, M), `parts[method][metric]` is (G, M), `bicubic_*` one value an image."""

    config: object
    methods: list
    image_ids: list
    photographs: list
    num_candidates: int
    sigma: float
    rewards: dict
    parts: dict
    curves: dict
    comparisons: list
    rows: list
    bicubic_rewards: np.ndarray | None = None
    bicubic_parts: dict | None = None
    notes: list = field(default_factory=list)

    @property
    def base(self):
        return self.methods[0]

    @property
    def num_photographs(self):
        return len(set(self.photographs))


def evaluate(methods, config, bicubic=None, *, resamples=2000, seed=0, crop_suffix=stats.CROP_SUFFIX):
    """Compare methods with the first of them.

    Args:
        methods: list of `Method`.
        config: `RewardConfig`.
        bicubic: {metric: (G,) raw} or `None`.
        resamples, seed: of the bootstrap over photographs.
        crop_suffix: regular expression of what an image id has beyond its photograph's name.

    Returns:
        `Evaluation`.
    """
    base = methods[0]
    lower_better = {name: entry["lower_better"] for name, entry in base.metrics.items()}
    scores = {method.name: method.scores for method in methods}
    parts = stats.pooled_parts(scores, lower_better, config)
    rewards = {name: sum(part.values()) for name, part in parts.items()}
    photographs = stats.photographs_of(base.image_ids, crop_suffix)
    weights = stats.bootstrap_weights(photographs, resamples, seed)
    bicubic_parts = stats.parts_of_outsider(bicubic, scores, lower_better, config) if bicubic else None
    return Evaluation(
        config=config,
        methods=list(scores),
        image_ids=base.image_ids,
        photographs=photographs,
        num_candidates=base.num_candidates,
        sigma=float(stats.spread(rewards[base.name]).mean()),
        rewards=rewards,
        parts=parts,
        curves={name: stats.best_mean_worst(values) for name, values in rewards.items()},
        comparisons=[_compare(method.name, rewards[method.name], rewards[base.name], weights) for method in methods[1:]],
        rows=[_metric_row(name, methods, config, bicubic, weights) for name in _order(base.metrics, config)],
        bicubic_rewards=sum(bicubic_parts.values()) if bicubic else None,
        bicubic_parts=bicubic_parts,
        notes=_notes(photographs, base.image_ids),
    )


def _compare(name, policy, base, weights):
    return Comparison(
        name=name,
        gain=stats.gain(policy, base, weights),
        worst_raised=stats.worst_raised(policy, base, weights),
        images_improved=int((policy.mean(axis=1) > base.mean(axis=1)).sum()),
        per_image_gain=policy.mean(axis=1) - base.mean(axis=1),
    )


def _order(metrics, config):
    """FR of the reward, NR of the reward, then those outside it, FR first."""
    rewarded = [spec.name for spec in config.metrics]
    return rewarded + sorted((name for name in metrics if name not in rewarded), key=lambda name: (metrics[name]["mode"], name))


def _metric_row(name, methods, config, bicubic, weights):
    base = methods[0]
    entry = base.metrics[name]
    sign = -1 if entry["lower_better"] else 1
    aligned = {method.name: sign * method.scores[name] for method in methods}
    cells = {"bicubic": Cell(float(bicubic[name].mean()))} if bicubic else {}
    cells |= {method.name: _cell(method.scores[name]) for method in methods}
    gt = base.gt_scores.get(name)
    if entry["mode"] == "NR" and gt is not None and np.isfinite(gt).all():
        cells["GT"] = Cell(float(gt.mean()))
    over_bicubic = {}
    if bicubic:
        sigma = stats.spread(aligned[base.name])
        for method in methods:
            difference = aligned[method.name].mean(axis=1) - sign * bicubic[name]
            over_bicubic[method.name] = stats.ratio_of_means(difference, sigma, weights)
    return MetricRow(
        name=name,
        mode=entry["mode"],
        rewarded=name in {spec.name for spec in config.metrics},
        lower_better=entry["lower_better"],
        cells=cells,
        changes={method.name: stats.gain(aligned[method.name], aligned[base.name], weights) for method in methods[1:]},
        over_bicubic=over_bicubic,
    )


def _cell(values):
    return Cell(float(values.mean()), float(values.mean(axis=0).std(ddof=1)), float(stats.spread(values).mean()))


def _notes(photographs, image_ids):
    count = len(set(photographs))
    if count < 2:
        hint = "; if the images are different photographs, pass --crop_suffix ''" if len(image_ids) > 1 else ""
        return [f"One photograph ({photographs[0]}): no interval can be given{hint}."]
    if count < 10:
        return [f"Only {count} photographs: a bootstrap interval over so few is too narrow; read it as a rough guide."]
    return []


# ---------------------------------------------------------------- sentences


def headline(evaluation, comparison):
    """`G = 0.45 [0.31, 0.58] over 15 photographs x 16 seeds: policy better on 14 of 15 images`."""
    images = len(evaluation.image_ids)
    return (
        f"G = {interval(comparison.gain)} over {counted(evaluation.num_photographs, 'photograph')} x {evaluation.num_candidates} seeds: "
        f"{comparison.name} better on {comparison.images_improved} of {counted(images, 'image')}"
    )


def interval(estimate, digits=2, signed=False):
    """`0.45 [0.31, 0.58]`, without the brackets where there is no interval."""
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    if math.isnan(estimate.value):
        return "n/a"
    value = form.format(estimate.value)
    return value if math.isnan(estimate.low) else f"{value} [{form.format(estimate.low)}, {form.format(estimate.high)}]"


def counted(number, noun):
    return f"{number} {noun}" + ("" if number == 1 else "s")


def worst_sentence(evaluation, comparison):
    """How far the floor rose, in the paper's terms (its tuned Worst@64 reaches the base's Mean@64)."""
    total = evaluation.num_candidates
    estimate = comparison.worst_raised
    if math.isnan(estimate.value):
        return f"Worst@{total}: n/a"
    bounds = "" if math.isnan(estimate.low) else f" [{estimate.low:.0%}, {estimate.high:.0%}]"
    verb = "raised" if estimate.value >= 0 else "lowered"
    base = evaluation.base
    return f"Worst@{total} {verb} by {abs(estimate.value):.0%}{bounds} of the distance from {base}'s Worst to {base}'s Mean"


def verdicts(evaluation, comparison):
    """{"better": [metric, …], "worse": […], "unclear": […]} for one method against the base."""
    groups = {"better": [], "worse": [], "unclear": []}
    for row in evaluation.rows:
        groups[row.changes[comparison.name].verdict].append(row.name)
    return groups


def bicubic_sentence(evaluation, method):
    """On which metrics the method beats bicubic, and on which bicubic wins (by the mean, interval or not)."""
    said = []
    for rewarded, where in ((True, "of the reward"), (False, "outside it")):
        for mode in ("FR", "NR"):
            rows = [row for row in evaluation.rows if row.rewarded == rewarded and row.mode == mode]
            lost = [row.name for row in rows if not row.over_bicubic[method].value > 0]
            if rows:
                said.append(
                    f"{len(rows) - len(lost)} of {len(rows)} {mode} metrics {where}"
                    + (f" (bicubic wins: {', '.join(lost)})" if lost else "")
                )
    return f"By the mean, {method} beats bicubic on " + ", ".join(said)
