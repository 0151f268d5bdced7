"""What the trainings of an experiment say together: each arm's change of reward and of every metric; tables, figures, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dp2osr import stats
from dp2osr.data.inputs import find_gt
from dp2osr.evaluation import plots
from dp2osr.evaluation.compare import BICUBIC, REWARD, Change, Comparison, metric_table, results_of, with_reward
from dp2osr.evaluation.image_folders import pair_images
from dp2osr.evaluation.image_scores import ImageScorer
from dp2osr.evaluation.methods import bicubic_scores, load_methods, suites_of
from dp2osr.evaluation.tables import bold_if_clear, csv_text, interval, markdown
from dp2osr.experiments.spec import BASE, Experiment
from dp2osr.files import write_json, write_text
from dp2osr.provenance import versions
from dp2osr.rewards.config import load_reward_config
from dp2osr.sampling.candidate_sheet import contact_sheet

if TYPE_CHECKING:
    from dp2osr.experiments.plan import Plan


@dataclass(frozen=True)
class ExperimentResults:
    """All arms.

    Attributes:
        comparison: `Comparison` with the base in its σ; the arms and rivals are its methods.
        changes: {arm: {metric: `Change` against the base}}; differences: the same against the first arm, where seeds are common.
        rivals: {rival: {metric: `Change`}}; they have no part in the normalisation.
        curves: name of the base or an arm → Best, Mean and Worst of m candidates, `stats.best_mean_worst`.
        furthest_apart: image ids, first those on which the mean rewards of the arms' first trainings have the widest range.
        rewards: {base, arm or rival: mean pooled reward}, as the paper's plots have it; it moves with the models that are pooled.
        notes: for the reader.
    """

    experiment: Experiment
    comparison: Comparison
    changes: dict[str, dict[str, Change]]
    differences: dict[str, dict[str, Change]]
    rivals: dict[str, dict[str, Change]]
    curves: dict[str, dict[str, Sequence[float]]]
    furthest_apart: list[str]
    rewards: dict[str, float]
    notes: list[str]

    @property
    def metrics(self) -> pd.DataFrame:
        return self.comparison.results.metrics

    @property
    def several(self) -> bool:
        """Whether an arm has several trainings."""
        return max(len(self.experiment.seeds_of(arm)) for arm in self.experiment.arms.values()) > 1


def collect(
    experiment: Experiment,
    folders: Mapping[str, Path],
    resamples: int = 2000,
    rivals: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> ExperimentResults:
    """The `ExperimentResults` of held-out candidates.

    The reward is normalised over the pooled candidates of base and all runs; a metric's change is in the base's spread within a group.

    Args:
        folders: {"base" or run name: scored candidate folder}.
        resamples: of the bootstrap over photographs and trainings.
        rivals: {name: {metric: (G, S) raw}} of other methods' images.
    """
    config = load_reward_config(experiment.evaluated_by)
    command = "python label_rewards.py --config {folder}/../label.yaml"
    methods, notes = load_methods([f"{name}={folder}" for name, folder in folders.items()], config, command)
    base, found = methods[0], {method.name: method.scores for method in methods}
    about = metric_table(base.metrics, [spec.name for spec in config.metrics])
    scores = {BASE: found[BASE]} | {(arm.name, number): found[arm.run_name(number)] for arm, number in experiment.runs}
    for name, of_rival in (rivals or {}).items():
        scores[name] = {metric: values for metric, values in of_rival.items() if metric in about.index}
    results, _ = with_reward(results_of(scores, base.image_ids, about, experiment.crop_suffix), config, rivals or (), base.gt_scores)
    comparison = Comparison(results, BASE, resamples=resamples)
    arms, metrics = list(experiment.arms), results.metrics.index

    def changes_of(method: str, against: str | None = None) -> dict[str, Change]:
        found = {metric: comparison.change(method, metric, against) for metric in metrics if results.has(method, metric)}
        return {metric: change for metric, change in found.items() if change}

    differences = {arm: changes_of(arm, arms[0]) for arm in arms[1:] if _common(experiment, arm, arms[0])}
    rewards = {name: results.array(name, REWARD) for name in [BASE, *arms, *(rivals or {})]}
    ranges = np.ptp([rewards[arm][0].mean(axis=1) for arm in arms], axis=0)
    return ExperimentResults(
        experiment,
        comparison,
        {arm: changes_of(arm) for arm in arms},
        differences,
        {name: changes_of(name) for name in rivals or {}},
        {name: stats.best_mean_worst(np.concatenate(rewards[name])) for name in [BASE, *arms]},
        [base.image_ids[place] for place in np.argsort(-ranges, kind="stable")],
        {name: float(values.mean()) for name, values in rewards.items()},
        notes,
    )


def _common(experiment: Experiment, arm: str, first: str) -> set[int]:
    return set.intersection(*(set(experiment.seeds_of(experiment.arms[name])) for name in (arm, first)))


def score_rivals(plan: Plan, output: Path) -> dict[str, dict[str, np.ndarray]]:
    """{rival: {metric: (G, S) raw}}: the base's metrics on images of the base's LR images; `output` keeps the scores."""
    from dp2osr.device import compute_device

    experiment, label = plan.experiment, plan.label
    if not experiment.rivals:
        return {}
    config = load_reward_config(experiment.evaluated_by)
    scored = {BASE: plan.held_out[BASE], **plan.rivals}
    [base, *others], _ = load_methods([f"{name}={folder}" for name, folder in scored.items()], config, "")
    found = {method.name: method.scores for method in others}
    asked = set(experiment.rivals) - set(plan.rivals)
    suites = suites_of(base.metrics, compute_device(), label.get("metrics_dir"), config.imports) if asked else []
    for name in asked:
        if experiment.rivals[name] == BICUBIC:
            scores = bicubic_scores(base, find_gt(label["gt_path"], base.image_ids), suites)
            found[name] = {metric: values[:, None] for metric, values in scores.items()}
        else:
            images, gt = pair_images({name: [Path(experiment.rivals[name])]}, label["gt_path"], only=base.image_ids)
            of_suites = [ImageScorer(suite, gt, output / "rivals.jsonl").score(images) for suite in suites]
            found[name] = {metric: of[name] for part in of_suites for metric, of in part.items()}
    return {name: found[name] for name in experiment.rivals}


# ---------------------------------------------------------------- what is written


def write_results(plan: Plan, output: Path, resamples: int = 2000) -> ExperimentResults:
    """Write `results.csv`, `results.md`, `results.png`, `results.svg` and `settings.json` of a `Plan` to `output`, and print the tables.

    Where the experiment has an axis, also `axis.png` and `axis.svg`; where it asks for them, `best_mean_worst.png`, `.svg` and `.csv`,
    and `pictures.png`: LR, bicubic, base, each arm's first training and GT, the same seed for all.
    """
    output.mkdir(parents=True, exist_ok=True)
    experiment, folders = plan.experiment, plan.held_out
    results = collect(experiment, folders, resamples, rivals=score_rivals(plan, output))
    text = results_markdown(results)
    write_text(output / "results.md", text)
    write_text(output / "results.csv", csv_text(results_frame(results)))
    plots.draw_arms(results, output / "results")
    if experiment.axis:
        draw_axis(results, output)
    if experiment.best_mean_worst:
        write_text(output / "best_mean_worst.csv", csv_text(curves_frame(results)))
        plots.draw_curves(results.curves, output / "best_mean_worst")
    if experiment.pictures:
        shown = {BASE: folders[BASE]} | {arm.name: folders[arm.run_name(experiment.seeds_of(arm)[0])] for arm in experiment.arms.values()}
        ids = results.furthest_apart[: experiment.pictures]
        contact_sheet(shown, plan.label["gt_path"], output / "pictures.png", columns=1, zoom=2, image_ids=ids)
    write_json(output / "settings.json", asdict(experiment) | {"bootstrap": resamples, "runs": folders, "versions": versions()})
    print(f"\n{text}\nfiles: {output}/results.md, .csv, .png, .svg and settings.json")
    return results


def draw_axis(results: ExperimentResults, output: Path) -> None:
    """The reward's change against the experiment's axis, one curve a line, rivals as level lines; steps of training begin with the base."""
    steps = bool(results.experiment.checkpoints)
    lines: dict[str, list[tuple[float, stats.Estimate]]] = {}
    for arm in results.experiment.arms.values():
        start = [(0.0, stats.Estimate(0.0, 0.0, 0.0))] if steps else []
        lines.setdefault(arm.line, start).append((arm.at or 0, results.changes[arm.name][REWARD].estimate))
    levels = {name: changes[REWARD].estimate.value for name, changes in results.rivals.items()}
    plots.draw_lines(lines, levels, results.experiment.axis or "", output / "axis", logarithmic=not steps)


def results_markdown(results: ExperimentResults) -> str:
    """Tables: every arm against the base, and against the first arm; other methods."""
    experiment, photographs = results.experiment, results.comparison.results.photographs
    first, count = next(iter(experiment.arms)), results.comparison.values(BASE, REWARD).shape[2]
    drawn = "photographs and trainings" if results.several else "photographs; one training each, whose own chance is not in it"
    lines = [
        f"# {experiment.title}",
        f"{len(photographs)} images of {len(set(photographs.values()))} held-out photographs × {count} seeds. Change in units of the "
        f"base's spread within a group, + is better, 95 % interval over {drawn}; ± is the standard deviation over trainings. "
        f"The reward is `{experiment.evaluated_by}`, pooled over all runs; metrics with * are in it.",
        *results.notes,
        "## Against the base",
        markdown(text_table(results, results.changes)),
        "Mean reward, from 0 to 1 over the models pooled here: "
        + ", ".join(f"{name} {value:.3f}" for name, value in results.rewards.items()),
    ]
    if results.differences:
        lines += [f"## Against {first}, the same training seeds", markdown(text_table(results, results.differences))]
    if results.rivals:
        lines += ["## Other methods against the base", markdown(text_table(results, results.rivals))]
    if experiment.best_mean_worst:
        lines += ["## Best, Mean and Worst of m candidates", markdown(curves_table(results))]
    return "\n\n".join(lines) + "\n"


def text_table(results: ExperimentResults, changes: Mapping[str, Mapping[str, Change]]) -> pd.DataFrame:
    """A frame of texts of {arm: {metric: `Change`}}: metrics in rows, arms in columns."""
    rows = []
    for name in results.metrics.index:
        about = results.metrics.loc[name]
        cells = {arm: _cell(of[name]) if name in of else "" for arm, of in changes.items()}
        rows.append({"metric": f"{name}{'*' if about['rewarded'] and name != REWARD else ''}", "set": about["mode"], **cells})
    return pd.DataFrame(rows)


def _cell(change: Change) -> str:
    text = interval(change.estimate, signed=True)
    if len(change.by_training) > 1:
        value, _, rest = text.partition(" ")
        text = f"{value} ± {change.by_training.std(ddof=1):.2f} {rest}".strip()
    return bold_if_clear(text, change.estimate)


def curves_table(results: ExperimentResults) -> pd.DataFrame:
    """A frame of texts: Best, Mean and Worst of m in rows, base and arms in columns."""
    rows = []
    for kind in ("best", "mean", "worst"):
        for place, m in enumerate(results.curves[BASE]["m"]):
            if kind != "mean" or not place:
                title = "Mean" if kind == "mean" else f"{kind.capitalize()}@{m}"
                rows.append({"": title} | {name: f"{curve[kind][place]:.3f}" for name, curve in results.curves.items()})
    return pd.DataFrame(rows)


def results_frame(results: ExperimentResults) -> pd.DataFrame:
    """One row an arm and metric: change, interval, difference to the first arm, interval, and each training's change."""
    experiment = results.experiment
    seeds = dict.fromkeys(sorted({seed for _, seed in experiment.runs}))
    rows = []
    for arm, changes in {**results.changes, **results.rivals}.items():
        own = experiment.seeds_of(experiment.arms[arm]) if arm in results.changes else (0,)
        for name, change in changes.items():
            about = results.metrics.loc[name]
            row = {"arm": arm, "metric": name, "mode": about["mode"], "in_reward": about["rewarded"]}
            for key, of in (("change", change), ("difference", results.differences.get(arm, {}).get(name))):
                low, high = ("low", "high") if key == "change" else ("difference_low", "difference_high")
                row |= {key: of.estimate.value, low: of.estimate.low, high: of.estimate.high} if of else dict.fromkeys((key, low, high))
            by_seed = dict(zip(sorted(own), change.by_training, strict=True))
            rows.append(row | {f"seed_{seed}": by_seed.get(seed) for seed in seeds})
    return pd.DataFrame(rows)


def curves_frame(results: ExperimentResults) -> pd.DataFrame:
    """One row a model and m."""
    return pd.concat(
        [pd.DataFrame(curve).assign(model=name)[["model", "m", "best", "mean", "worst"]] for name, curve in results.curves.items()]
    )
