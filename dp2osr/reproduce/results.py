"""What the runs of a grid say together: each arm's change of reward and of every metric, against the base and against the first arm."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dp2osr import stats
from dp2osr.data.inputs import find_gt
from dp2osr.evaluation.image_folders import pair_images
from dp2osr.evaluation.image_scores import ImageScorer
from dp2osr.evaluation.methods import bicubic_scores, load_methods, suites_of
from dp2osr.reproduce.tasks import BICUBIC
from dp2osr.stats import Estimate

BASE = "base"
REWARD = "reward"


@dataclass(frozen=True)
class Change:
    """In the base's spread within a group, + is better: the mean over trainings with its interval, each training's, each resample's."""

    estimate: Estimate
    by_seed: np.ndarray
    draws: np.ndarray | None = None


@dataclass(frozen=True)
class ArmResult:
    """One arm: `changes[metric]` against the base, `differences[metric]` against the first arm (empty for that arm), both `Change`s."""

    name: str
    seeds: tuple
    changes: dict
    differences: dict


@dataclass(frozen=True)
class GridResults:
    """All arms.

    Attributes:
        metrics: "reward" first, then name → (mode, whether the reward has it).
        notes: for the reader.
        rivals: other methods, as `ArmResult`s of one training; they have no part in the normalisation.
        curves: name of the base or an arm → Best, Mean and Worst of m candidates, `stats.best_mean_worst`.
        furthest_apart: image ids, first those on which the mean rewards of the arms' first trainings have the widest range.
        rewards: {base, arm or rival: mean pooled reward}, as the paper's plots have it; it moves with the models that are pooled.
    """

    grid: object
    metrics: dict
    arms: list
    num_images: int
    num_photographs: int
    num_candidates: int
    notes: list
    rivals: list
    curves: dict
    furthest_apart: list
    rewards: dict


def collect(grid, folders, resamples=2000, seed=0, rivals=None):
    """The `GridResults` of held-out candidates.

    The reward is normalised over the pooled candidates of base and all runs; a metric's change is in the base's spread within a group.

    Args:
        grid: `Grid`.
        folders: {"base" or run name: scored candidate folder}.
        resamples, seed: of the bootstrap over photographs and trainings.
        rivals: {name: {metric: (G, S) raw}} of other methods' images.
    """
    from dp2osr.rewards.config import load_reward_config

    config = load_reward_config(grid.evaluated_by)
    command = "python label_rewards.py --config {folder}/../label.yaml"
    methods, notes = load_methods([f"{name}={folder}" for name, folder in folders.items()], config, command)
    base = methods[0]
    lower_better = {name: about["lower_better"] for name, about in base.metrics.items()}
    parts = stats.pooled_parts({method.name: method.scores for method in methods}, lower_better, config)
    values = {method.name: {REWARD: sum(parts[method.name].values())} for method in methods}  # sign aligned, (G, M)
    for method in methods:
        values[method.name] |= {name: (-1 if lower_better[name] else 1) * scores for name, scores in method.scores.items()}
    rewarded = [spec.name for spec in config.metrics]
    outside = sorted((name for name in base.metrics if name not in rewarded), key=lambda name: (base.metrics[name]["mode"], name))
    metrics = {REWARD: ("", True)} | {name: (base.metrics[name]["mode"], name in rewarded) for name in [*rewarded, *outside]}

    photographs = stats.photographs_of(base.image_ids, grid.crop_suffix)
    weights = stats.bootstrap_weights(photographs, resamples, seed)
    spreads = {name: stats.spread(values[BASE][name]) for name in metrics}

    def means(arm, seeds, name):
        return np.stack([values[arm.run_name(number)][name].mean(axis=1) for number in seeds])

    def change(differences, name):
        of_seeds = stats.seed_weights(len(differences), resamples, seed)
        estimate, draws = stats.mean_gain(differences, spreads[name], weights, of_seeds)
        return Change(estimate, differences.mean(axis=1) / spreads[name].mean(), draws)

    arms, first = [], grid.arms[0]
    for arm in grid.arms:
        changes = {name: change(means(arm, arm.seeds, name) - values[BASE][name].mean(axis=1), name) for name in metrics}
        common = [number for number in arm.seeds if number in first.seeds and arm is not first]
        over_first = {name: change(means(arm, common, name) - means(first, common, name), name) for name in metrics} if common else {}
        arms.append(ArmResult(arm.name, arm.seeds, changes, over_first))

    of_rivals, rewards = [], {BASE: float(values[BASE][REWARD].mean())}
    rewards |= {arm.name: float(np.mean([means(arm, arm.seeds, REWARD)])) for arm in grid.arms}
    pool = {method.name: method.scores for method in methods}
    for name, scores in (rivals or {}).items():
        raw = {metric: (-1 if lower_better[metric] else 1) * scores[metric].mean(axis=1) for metric in scores if metric in metrics}
        raw[REWARD] = _reward_of_outsider(scores, pool, lower_better, config)
        rewards[name] = float(raw[REWARD].mean())
        changes = {metric: change((raw[metric] - values[BASE][metric].mean(axis=1))[None], metric) for metric in metrics if metric in raw}
        of_rivals.append(ArmResult(name, (0,), changes, {}))
    pooled = {arm.name: np.concatenate([values[arm.run_name(number)][REWARD] for number in arm.seeds]) for arm in grid.arms}
    curves = {name: stats.best_mean_worst(rewards) for name, rewards in ({BASE: values[BASE][REWARD]} | pooled).items()}
    ranges = np.ptp([means(arm, arm.seeds[:1], REWARD)[0] for arm in grid.arms], axis=0)
    furthest_apart = [base.image_ids[index] for index in np.argsort(-ranges, kind="stable")]
    about = (len(base.image_ids), len(set(photographs)), base.num_candidates, notes)
    return GridResults(grid, metrics, arms, *about, of_rivals, curves, furthest_apart, rewards)


def _reward_of_outsider(scores, pool, lower_better, config):
    """(G,) mean reward of images outside the pool; `scores`: {metric: (G, S)}."""
    samples = [{metric: values[:, place] for metric, values in scores.items()} for place in range(next(iter(scores.values())).shape[1])]
    return np.mean([sum(stats.parts_of_outsider(sample, pool, lower_better, config).values()) for sample in samples], axis=0)


def score_rivals(grid, folders, candidates, label, output):
    """{rival: {metric: (G, S) raw}}.

    Args:
        folders: of `collect`; the rivals' images are those of the base's LR images, and get the base's metrics.
        candidates: {name: scored candidate folder} of the rivals that are another base.
        label: flags with which the held-out candidates were scored: gt_path, the folder of GT images, and metrics_dir.
        output: folder that keeps the scores of images.
    """
    from dp2osr.device import compute_device
    from dp2osr.rewards.config import load_reward_config

    if not grid.rivals:
        return {}
    config = load_reward_config(grid.evaluated_by)
    [base, *others], _ = load_methods([f"{name}={folder}" for name, folder in {BASE: folders[BASE], **candidates}.items()], config, "")
    found = {method.name: method.scores for method in others}
    device = compute_device()
    suites = suites_of(base.metrics, device, label.get("metrics_dir"), config.imports) if set(grid.rivals) - set(candidates) else []
    for name, where in grid.rivals.items():
        if where == BICUBIC:
            scores = bicubic_scores(base, find_gt(label["gt_path"], base.image_ids), suites)
            found[name] = {metric: values[:, None] for metric, values in scores.items()}
        elif name not in candidates:
            images, gt = pair_images({name: [Path(where)]}, label["gt_path"], only=base.image_ids)
            scored = [ImageScorer(suite, gt, output / "rivals.jsonl").score(images) for suite in suites]
            found[name] = {metric: of[name] for part in scored for metric, of in part.items()}
    return {name: found[name] for name in grid.rivals}
