"""Models by their candidates: rewards, gains with intervals, curves; from folders to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dp2osr import stats
from dp2osr.data.inputs import find_gt
from dp2osr.evaluation.compare import BICUBIC, REWARD, Comparison, metric_table, notes_on_photographs, results_of, tidy, with_reward
from dp2osr.evaluation.methods import bicubic_scores, load_methods, parse_candidates, suites_of
from dp2osr.evaluation.tables import csv_text
from dp2osr.evaluation.training_log import read_training_logs
from dp2osr.files import write_text
from dp2osr.outputs import check_output
from dp2osr.provenance import versions
from dp2osr.results import check_own_files, own_files

if TYPE_CHECKING:
    from dp2osr.evaluation.compare import Change, Results
    from dp2osr.evaluation.methods import Method
    from dp2osr.evaluation.settings import EvaluateSettings
    from dp2osr.rewards.config import RewardConfig

FILES = ("curves.png", "metrics.csv", "summary.json", "summary.md", "report.html")
GT = "GT"


@dataclass(frozen=True)
class Evaluation:
    """Candidates of methods, compared with the first of them.

    Attributes:
        comparison: `Comparison` in σ of the base; the metric "reward" among its metrics, bicubic and GT among its methods.
        config: `RewardConfig`; methods: those that are compared, the base first.
        parts: {method: {metric: (G, M) part of the reward}}, of bicubic too.
        notes: for the reader.
    """

    comparison: Comparison
    config: RewardConfig
    methods: list[str]
    parts: dict[str, dict[str, np.ndarray]]
    notes: list[str] = field(default_factory=list)

    @property
    def results(self) -> Results:
        return self.comparison.results

    @property
    def base(self) -> str:
        return self.methods[0]

    @property
    def compared(self) -> list[str]:
        """The methods but the base."""
        return self.methods[1:]

    @property
    def image_ids(self) -> list[str]:
        return self.results.images

    @property
    def photographs(self) -> list[str]:
        return list(self.results.photographs.values())

    @property
    def num_photographs(self) -> int:
        return len(set(self.photographs))

    @cached_property
    def rewards(self) -> dict[str, np.ndarray]:
        """{method: (G, M)}, bicubic's (G, 1)."""
        return {name: sum(parts.values(), np.zeros(())) for name, parts in self.parts.items()}

    @property
    def num_candidates(self) -> int:
        return self.rewards[self.base].shape[1]

    @property
    def sigma(self) -> float:
        """The base's mean spread of the reward over the candidates of an image."""
        return float(stats.spread(self.rewards[self.base]).mean())

    @cached_property
    def curves(self) -> dict[str, dict[str, Sequence[float]]]:
        """{method: `stats.best_mean_worst`}."""
        return {name: stats.best_mean_worst(self.rewards[name]) for name in self.methods}

    @cached_property
    def worst_raised(self) -> dict[str, stats.Estimate]:
        """{method: `Estimate`}."""
        return {name: self.comparison.worst_raised(name) for name in self.compared}

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, without the reward."""
        return [name for name in self.results.metrics.index if name != REWARD]

    @cached_property
    def changes(self) -> dict[str, dict[str, Change]]:
        """{method: {metric: `Change` against the base}}, the reward among them."""
        metrics, change = self.results.metrics.index, self.comparison.change
        return {name: {metric: found for metric in metrics if (found := change(name, metric))} for name in self.compared}

    @cached_property
    def over_bicubic(self) -> dict[str, dict[str, stats.Estimate]]:
        """{method: {metric: `Estimate` of the change against bicubic}}; empty without bicubic."""
        names = [metric for metric in self.metrics if self.results.has(BICUBIC, metric)]
        change = self.comparison.change
        return {
            name: {metric: found.estimate for metric in names if (found := change(name, metric, BICUBIC))} for name in self.methods if names
        }

    def gain(self, method: str) -> Change:
        """The `Change` of the reward."""
        return self.changes[method][REWARD]

    def improved(self, method: str) -> int:
        """On how many images the mean reward is above the base's."""
        return int((self.gain(method).by_image > 0).sum())

    def verdicts(self, method: str) -> dict[str, list[str]]:
        """{"better": [metric, …], "worse": […], "unclear": […]}."""
        groups: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
        for metric in self.metrics:
            groups[self.changes[method][metric].estimate.verdict].append(metric)
        return groups

    @cached_property
    def columns(self) -> list[str]:
        """The columns of the table of metrics, in reading order."""
        return [name for name in (BICUBIC, *self.methods, GT) if name in self.results.methods]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row a metric and column: mean, std_over_seeds (of the mean over images), std_within_group."""
        rows = []
        for metric in self.results.metrics.index:
            for column in self.columns:
                if self.results.has(column, metric):
                    within, over_seeds = self.comparison.spreads(column, metric)
                    rows.append((metric, column, float(self.results.array(column, metric).mean()), over_seeds, within))
        return pd.DataFrame(rows, columns=["metric", "method", "mean", "std_over_seeds", "std_within_group"]).set_index(
            ["metric", "method"]
        )


def evaluate(
    methods: Sequence[Method],
    config: RewardConfig,
    bicubic: Mapping[str, np.ndarray] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    crop_suffix: str = stats.CROP_SUFFIX,
) -> Evaluation:
    """The `Evaluation` of methods, the first being the base.

    Args:
        bicubic: {metric: (G,) raw}.
        resamples, seed: of the bootstrap over photographs.
        crop_suffix: regular expression of what an image id has beyond its photograph's name.
    """
    base, names = methods[0], [method.name for method in methods]
    scores = {method.name: method.scores for method in methods}
    if bicubic:
        scores[BICUBIC] = {name: values[:, None] for name, values in bicubic.items()}
    about = metric_table(base.metrics, [spec.name for spec in config.metrics])
    results, parts = with_reward(results_of(scores, base.image_ids, about, crop_suffix), config, [BICUBIC], base.gt_scores)
    of_gt = {name: values[:, None] for name, values in base.gt_scores.items() if about["mode"].get(name) == "NR"}
    of_gt = {name: values for name, values in of_gt.items() if np.isfinite(values).all()}
    if of_gt:
        results = results.joined(tidy({GT: of_gt}, base.image_ids))
    comparison = Comparison(results, base.name, resamples=resamples, seed=seed)
    notes = notes_on_photographs(list(results.photographs.values()), base.image_ids)
    return Evaluation(comparison, config, names, {name: of for (name, _), of in parts.items()}, notes)


def run_evaluation(args: EvaluateSettings) -> Evaluation:
    """Compare the folders of `args.candidates`; writes `FILES` to `args.output_dir`, and prints what they say."""
    from dp2osr.device import compute_device
    from dp2osr.evaluation import pictures, plots, report, summary
    from dp2osr.rewards.chosen import label_command, reward_of
    from dp2osr.rewards.table import SCORES, read_metadata
    from dp2osr.sampling.store import reading

    assert args.candidates and args.gt_path
    check_output(args.output_dir)
    check_own_files(args.output_dir, FILES)
    paths = [folder / SCORES for folder in parse_candidates(args.candidates).values()]
    scored = {path: read_metadata(path) for path in paths if path.is_file()}
    config = reward_of(args.reward_config, scored)
    training, validation = read_training_logs(args.training_log) if args.training_log else ({}, {})

    def label(folder: Path) -> str:
        return label_command(folder, config, next(iter(scored.values()), None), gt_path=args.gt_path, given=args.reward_config)

    with reading(parse_candidates(args.candidates).values(), "evaluation"):
        methods, notes = load_methods(args.candidates, config, label, args.num_candidates)
        gt_paths = find_gt(args.gt_path, methods[0].image_ids)
        output = Path(args.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        device, bicubic = compute_device(), None
        columns = [spec.name for spec in config.metrics if methods[0].metrics[spec.name].get("column")]
        if columns:
            own = ", ".join(columns)
            notes.append(f"Bicubic is left out: the reward has {own}, a column of the score tables, and bicubic is in none.")
        elif not args.no_bicubic:
            bicubic = bicubic_scores(methods[0], gt_paths, suites_of(methods[0].metrics, device, args.metrics_dir, config.imports))
        evaluation = evaluate(methods, config, bicubic, resamples=args.bootstrap, seed=args.seed, crop_suffix=args.crop_suffix)
        evaluation.notes[:0] = notes
        panels = pictures.make_panels(evaluation, methods, bicubic, args.gt_path, args.max_images_in_report, device)
        settings = _settings(args, methods)
        drawn = plots.result_plots(evaluation), plots.training_plots(training, validation)
        with own_files(output, FILES):
            plots.save_png(output / "curves.png", [*drawn[0], *drawn[1]])
            write_text(output / "metrics.csv", csv_text(summary.metrics_frame(evaluation)))
            write_text(output / "summary.json", summary.summary_json(evaluation, settings))
            write_text(output / "summary.md", summary.summary_markdown(evaluation))
            write_text(output / "report.html", report.report_html(evaluation, panels, settings, *drawn))
        print(f"\n{summary.terminal(evaluation)}\n\nreport: {output / 'report.html'}")
        return evaluation


def _settings(args: EvaluateSettings, methods: Sequence[Method]) -> dict[str, Any]:
    return {
        "flags": {key: value for key, value in vars(args).items() if value is not None},
        "methods": {method.name: dict(method.store.settings) for method in methods},
        "metrics": methods[0].metrics,
        "versions": versions() | {"pyiqa (scores)": methods[0].pyiqa},
    }
