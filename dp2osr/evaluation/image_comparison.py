"""Folders of SR images from files to tables: means, spread over samples, intervals over photographs, paired tests, published values."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from dp2osr import stats
from dp2osr.errors import UserError
from dp2osr.evaluation.compare import FEW, Comparison, metric_table, results_of
from dp2osr.evaluation.fid import build_fid, check_enough, frechet_distances
from dp2osr.evaluation.image_folders import pair_images, parse_folders
from dp2osr.evaluation.image_scores import ImageScorer, protocol_specs
from dp2osr.evaluation.published import load_published
from dp2osr.evaluation.tables import bold_if_clear, csv_text, interval, markdown, number, with_direction, with_spread
from dp2osr.files import write_json, write_text
from dp2osr.outputs import check_output
from dp2osr.provenance import versions
from dp2osr.results import check_own_files, own_files
from dp2osr.rewards.config import CONFIG_DIR, find_named, load_reward_config
from dp2osr.rewards.metrics import MetricSuite, check_modes

if TYPE_CHECKING:
    import torch

    from dp2osr.evaluation.compare import Results
    from dp2osr.evaluation.published import Published
    from dp2osr.evaluation.settings import EvaluateSettings
    from dp2osr.rewards.config import MetricSpec, RewardConfig

FILES = ("table.md", "table.tex", "table.csv", "per_image.csv", "settings.json")
PROTOCOL_DIR = CONFIG_DIR.parent / "evaluation"


class ImageTable:
    """Methods' images, compared with the first method's, metric by metric.

    Args:
        scores: {metric: {method: (G, S)}}, NaN where a metric failed; the first method is the reference.
        image_ids: G ids.
        lower_better: {metric: bool}.
        resamples, seed: of the bootstrap over photographs.
        crop_suffix: what an image id has beyond its photograph's name.

    Attributes:
        table: a row a method and metric: what table.csv has.
    """

    def __init__(
        self,
        scores: Mapping[str, Mapping[str, np.ndarray]],
        image_ids: Sequence[str],
        lower_better: Mapping[str, bool],
        resamples: int = 2000,
        seed: int = 0,
        crop_suffix: str = stats.CROP_SUFFIX,
        published: Published | None = None,
    ) -> None:
        about = {metric: {"mode": "", "lower_better": lower_better[metric]} for metric in scores}
        self.methods = list(next(iter(scores.values())))
        self.samples = {method: next(iter(scores.values()))[method].shape[1] for method in self.methods}
        arrays = {method: {metric: of[method] for metric, of in scores.items()} for method in self.methods}
        results = results_of(arrays, image_ids, metric_table(about).loc[list(scores)], crop_suffix)
        self.comparison = Comparison(results, self.methods[0], in_sigma=False, resamples=resamples, seed=seed)
        self.metrics = [metric for metric in scores if self.comparison.kept(metric).any()]
        self.published = published
        pairs = [(method, metric) for method in self.methods[1:] for metric in self.metrics]
        self.changes = {pair: change for pair in pairs if (change := self.comparison.change(*pair))}
        rows = [self._row(method, metric) for method in self.methods for metric in self.metrics]
        self.table = pd.DataFrame(rows).set_index(["method", "metric"], drop=False)

    @property
    def results(self) -> Results:
        return self.comparison.results

    @property
    def num_photographs(self) -> int:
        return len(set(self.results.photographs.values()))

    @property
    def left_out(self) -> dict[str, list[str]]:
        """{metric: images on which it failed}."""
        images, kept = np.array(self.results.images, dtype=object), self.comparison.kept
        return {metric: images[~kept(metric)].tolist() for metric in self.results.metrics.index if not kept(metric).all()}

    def _row(self, method: str, metric: str) -> dict[str, Any]:
        mean = self.comparison.level(method, metric)
        within, of_means = self.comparison.spreads(method, metric)
        row = {"method": method, "metric": metric, "lower_better": bool(self.results.metrics.loc[metric, "lower_better"])}
        row |= {"mean": mean.value, "mean_low": mean.low, "mean_high": mean.high, "std_within_image": within, "std_of_means": of_means}
        change = self.changes.get((method, metric))
        estimate = change.estimate if change else stats.Estimate(float("nan"))
        row |= {"difference": estimate.value, "difference_low": estimate.low, "difference_high": estimate.high}
        row["p_value"] = self.comparison.p_value(change, metric) if change else float("nan")
        values = self.published.methods.get(method, {}) if self.published else {}
        return row | {"published": values.get(metric, float("nan"))}

    def cell(self, method: str, metric: str) -> pd.Series:
        return cast("pd.Series", self.table.loc[(method, metric)])

    def best(self, metric: str, place: int) -> str | None:
        """The method with the best mean, or the next (`place` 1, 2); None where there is but one method."""
        means = self.table.xs(metric, level="metric")["mean"].loc[self.methods]
        order = means.sort_values(ascending=bool(self.results.metrics.loc[metric, "lower_better"]), kind="stable").index
        return order[place - 1] if len(order) > 1 else None

    def texts(self, best: str = "**{}**", second: str = "{}") -> pd.DataFrame:
        """A frame of texts, a row a method: its means ± the spread over its samples, the best and the second best marked."""
        rows = {method: {"method": method} for method in self.methods}
        for metric in self.metrics:
            marks = {self.best(metric, 1): best, self.best(metric, 2): second}
            for method in self.methods:
                cell = self.cell(method, metric)
                text = with_spread(cell["mean"], cell["std_within_image"])
                rows[method][metric] = marks.get(method, "{}").format(text)
        return pd.DataFrame(rows.values())


# ---------------------------------------------------------------- from folders to files


def run_image_evaluation(args: EvaluateSettings) -> ImageTable:
    """Score the folders of `args.images`; writes `FILES` to `args.output_dir`, and prints table.md."""
    from dp2osr.device import compute_device

    check_output(args.output_dir)
    check_own_files(args.output_dir, FILES)
    published = _published(args)
    config = load_protocol(args.protocol)
    specs = protocol_specs(config, args.channel, args.crop_border, args.exclude_metrics)
    methods, gt = pair_images(parse_folders(args.images or ()), args.gt_path, args.lr_path, suffix=args.suffix)
    if not gt:
        specs = [spec for spec in specs if spec in config.nr]
        if not specs:
            raise UserError(f"--protocol {args.protocol}: has no metric that does without GT; give --gt_path")
    device = compute_device()
    fid = _prepare_fid(args, gt, device) if args.fid else None  # before hours of scoring, not after
    suite = MetricSuite(specs, device, weights_dir=args.metrics_dir)
    check_modes(config, suite)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with own_files(output, FILES):
        scores = ImageScorer(suite, gt, output / "scores.jsonl", args.center_crop).score(methods)
        drawn = args.bootstrap, args.seed, args.crop_suffix
        found = ImageTable(scores, sorted(methods[0].samples), suite.lower_better, *drawn, published)
        distances = frechet_distances(methods, gt, fid) if fid else {}
        write_tables(found, args, specs, suite, distances, output)
    return found


def _published(args: EvaluateSettings) -> Published | None:
    """The `Published` that are asked for, or None; a warning where none of them is of a method."""
    if not args.published:
        return None
    published = load_published(args.published)
    if not set(published.methods) & {argument.partition("=")[0] for argument in args.images or ()}:
        named = ", ".join(published.methods)
        print(
            f"warning: --published {args.published}: no method has a name of that table ({named}), so that none is compared",
            file=sys.stderr,
        )
    return published


def write_tables(
    found: ImageTable,
    args: EvaluateSettings,
    specs: Sequence[MetricSpec],
    suite: MetricSuite,
    distances: Mapping[str, float],
    output: Path,
) -> None:
    """Write what `FILES` names of an `ImageTable`, and print table.md."""
    settings = {
        "images": " ".join(args.images or ()),
        "GT": args.gt_path or "none",
        "metrics": ", ".join(_named(spec) for spec in specs),
        "center crop": args.center_crop or "none",
        "photographs": f"image ids without /{args.crop_suffix}/" if args.crop_suffix else "every image is one",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("pyiqa", "torch")),
    }
    text = table_markdown(found, settings, distances)
    write_text(output / "table.md", text)
    write_text(output / "table.tex", table_latex(found))
    write_text(output / "table.csv", csv_text(found.table, 8))
    write_text(output / "per_image.csv", csv_text(per_image(found.results), 8, missing="nan"))
    about = {"flags": vars(args), "metrics": suite.describe(), "versions": versions()}
    write_json(output / "settings.json", about | ({"fid": distances} if distances else {}))
    print(f"\n{text}\nfiles: {output}/table.md, .tex, .csv, per_image.csv and settings.json")


def _prepare_fid(args: EvaluateSettings, gt: Collection[str], device: str) -> torch.nn.Module:
    if args.center_crop:
        raise UserError("--fid: is of whole images; leave --center_crop out")
    check_enough(gt)
    return build_fid(args.metrics_dir, device)


def load_protocol(name_or_yaml: str | Path) -> RewardConfig:
    """The metrics of a protocol by its name in `configs/evaluation` or the path of a YAML; UserError where there is none."""
    return load_reward_config(find_named(name_or_yaml, PROTOCOL_DIR, "protocol"))


def _named(spec: MetricSpec) -> str:
    return spec.name + (f" ({', '.join(f'{key} {value}' for key, value in spec.options.items())})" if spec.options else "")


# ---------------------------------------------------------------- what is written


def per_image(results: Results) -> pd.DataFrame:
    """One row an image, method and sample: every metric's raw score."""
    values = results.values.assign(method=pd.Categorical(results.values["method"], categories=results.methods))
    wide = values.set_index(["image", "method", "candidate", "metric"])["value"].unstack()[list(results.metrics.index)]
    return wide.reset_index().rename(columns={"candidate": "sample"})


def table_markdown(found: ImageTable, settings: Mapping[str, object], distances: Mapping[str, float] | None = None) -> str:
    """The text of table.md: means, differences to the reference, FID by method if there are `distances`, published values, settings."""
    titles = {metric: with_direction(metric, found.results.metrics) for metric in found.metrics}
    images, photographs, reference = len(found.results.images), found.num_photographs, found.methods[0]
    samples = ", ".join(f"{name} {count}" for name, count in found.samples.items() if count > 1)
    spread = f" ± standard deviation over an image's samples, averaged over images ({samples} samples)" if samples else ""
    blocks = [
        f"# {images} images" + (f" of {photographs} photographs" if photographs < images else ""),
        f"Mean over images and samples{spread}",
        markdown(found.texts().rename(columns=titles)),
    ]
    if len(found.methods) > 1:
        narrow = f" Intervals over {photographs} photographs are too narrow." if photographs < FEW else ""
        differences = [
            {"method": method} | {metric: _difference(found, method, metric) for metric in titles} for method in found.methods[1:]
        ]
        blocks += [
            f"## Against {reference}",
            "Difference of the means, 95 % bootstrap interval over photographs, p of Wilcoxon's signed-rank test over photographs; "
            f"bold where the interval leaves zero out. Neither is corrected for the number of cells.{narrow}",
            markdown(pd.DataFrame(differences).rename(columns=titles)),
        ]
    if distances:
        rows = [[method, f"{value:.2f}", str(images * found.samples[method])] for method, value in distances.items()]
        blocks += ["## FID", "Of sets: it falls with the number of images, so that only rows of one number can be compared."]
        blocks.append(markdown(pd.DataFrame(rows, columns=["method", "FID ↓", "images"])))
    if found.published:
        blocks += _published_blocks(found, found.published, titles)
    if found.left_out:
        blocks.append("Left out: " + "; ".join(f"{metric} on {', '.join(ids)}" for metric, ids in found.left_out.items()))
    blocks += ["## Protocol", "\n".join(f"- {key}: {value}" for key, value in settings.items())]
    return "\n\n".join(blocks) + "\n"


def _digits(mean: float) -> int:
    return 2 if abs(mean) >= 10 else 4


def _difference(found: ImageTable, method: str, metric: str) -> str:
    row, estimate = found.cell(method, metric), found.changes[method, metric].estimate
    p = "" if np.isnan(row["p_value"]) else f", p = {row['p_value']:.2g}"
    return bold_if_clear(interval(estimate, _digits(row["mean"]), signed=True) + p, estimate)


def _published_blocks(found: ImageTable, published: Published, titles: Mapping[str, str]) -> list[str]:
    """The published rows, and for a method of the same name ours − published."""
    rows = []
    for method, values in published.methods.items():
        spreads = published.spreads.get(method, {})
        rows.append({"method": method} | {metric: _published_cell(values.get(metric), spreads.get(metric)) for metric in titles})
        if method in found.methods:
            rows.append({"method": f"ours − {method}"} | {metric: _distance(found.cell(method, metric)) for metric in titles})
    legend = "! is where the published value is further from ours than ours varies: by two standard deviations of the mean over seeds where"
    legend += " there are several samples, else outside of the interval over photographs, which is wider."
    return [f"## Published: {published.source}", markdown(pd.DataFrame(rows).rename(columns=titles)), legend]


def _published_cell(value: float | None, spread: float | None) -> str:
    if value is None:
        return ""
    return number(value) + ("" if spread is None else f" ± {number(spread, value)}")


def _distance(row: pd.Series) -> str:
    """Ours − published; ! where the published value is further away than ours varies: over seeds, or else over photographs."""
    mean, of_seeds, published = row["mean"], row["std_of_means"], row["published"]
    if np.isnan(published):
        return ""
    low, high = (row["mean_low"], row["mean_high"]) if np.isnan(of_seeds) else (mean - 2 * of_seeds, mean + 2 * of_seeds)
    outside = not np.isnan(low) and not low <= published <= high
    return f"{mean - published:+.{_digits(mean)}f}" + (" !" if outside else "")


def table_latex(found: ImageTable) -> str:
    """A booktabs table: the best mean bold, the next underlined."""
    arrows = {metric: r" $\downarrow$" if lower else r" $\uparrow$" for metric, lower in found.results.metrics["lower_better"].items()}
    frame = found.texts(r"\textbf{{{}}}", r"\underline{{{}}}").replace({"-": "$-$", "±": r"$\\pm$"}, regex=True)
    frame["method"] = [_tex(method) for method in found.methods]
    frame = frame.rename(columns={metric: _tex(metric) + arrows[metric] for metric in found.metrics} | {"method": "Method"})
    return frame.to_latex(index=False, escape=False, column_format="l" + "c" * len(found.metrics))


def _tex(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "_&%#$" else letter for letter in text)
