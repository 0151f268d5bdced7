"""Tables of SR methods on a test set: means, spread over samples, intervals over photographs, paired tests, beside published values."""

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from dp2osr import stats
from dp2osr.errors import UserError
from dp2osr.evaluation.summary import interval
from dp2osr.evaluation.tables import markdown, number, with_spread
from dp2osr.files import read_yaml
from dp2osr.places import CONFIGS
from dp2osr.rewards.config import nearest
from dp2osr.stats import Estimate

PUBLISHED_DIR = CONFIGS / "paper"
FEW = 10  # photographs; with fewer a percentile bootstrap's 95 % hold the truth in 90 % of cases or less


@dataclass(frozen=True)
class Result:
    """A method on one metric.

    Attributes:
        mean: over images and samples, with its interval.
        std: with several samples, the mean over images of the std over an image's samples: by its size what the paper's Table 2 has.
        std_of_means: the std over samples of the mean over images. Both are NaN for one sample.
        difference: against the reference method, paired: method − reference, raw, with its interval.
        p_value: of Wilcoxon's signed-rank test over photographs.
    """

    mean: Estimate
    std: float
    std_of_means: float
    difference: Estimate | None = None
    p_value: float = float("nan")


@dataclass(frozen=True)
class Benchmark:
    """`results[method][metric]`; `lower_better[metric]`; `left_out[metric]` images on which the metric failed."""

    methods: list
    reference: str
    metrics: list
    lower_better: dict
    results: dict
    num_images: int
    num_photographs: int
    num_samples: dict
    left_out: dict
    published: dict = field(default_factory=dict)


def compare(scores, image_ids, suite, resamples=2000, seed=0, crop_suffix=stats.CROP_SUFFIX, published=None):
    """A `Benchmark` of raw scores.

    Args:
        scores: {metric: {method: (G, S)}}, NaN where a metric failed; the first method is the reference.
        image_ids: G ids.
        suite: `MetricSuite`, for the directions.
        resamples, seed: of the bootstrap over photographs.
        crop_suffix: what an image id has beyond its photograph's name.
        published: of `load_published`, or None.
    """
    methods = list(next(iter(scores.values())))
    photographs = np.array(stats.photographs_of(image_ids, crop_suffix))
    results, left_out = {method: {} for method in methods}, {}
    for metric, of_metric in scores.items():
        whole = np.all([np.isfinite(values).all(axis=1) for values in of_metric.values()], axis=0)
        if not whole.all():
            left_out[metric] = [image_id for image_id, good in zip(image_ids, whole, strict=True) if not good]
        if not whole.any():
            continue
        weights = stats.bootstrap_weights(photographs[whole], resamples, seed)
        reference = of_metric[methods[0]][whole].mean(axis=1)
        for method in methods:
            values = of_metric[method][whole]
            against = {} if method == methods[0] else _against(values.mean(axis=1), reference, photographs[whole], weights)
            several = values.shape[1] > 1
            std = float(values.std(axis=1, ddof=1).mean()) if several else float("nan")
            std_of_means = float(values.mean(axis=0).std(ddof=1)) if several else float("nan")
            results[method][metric] = Result(_mean(values.mean(axis=1), weights), std, std_of_means, **against)
    return Benchmark(
        methods,
        methods[0],
        [metric for metric in scores if metric in results[methods[0]]],
        dict(suite.lower_better),
        results,
        len(image_ids),
        len(set(photographs)),
        {method: next(iter(scores.values()))[method].shape[1] for method in methods},
        left_out,
        published or {},
    )


def _mean(values, weights):
    return stats.ratio_of_means(values, np.ones_like(values), weights)


def _against(values, reference, photographs, weights):
    """{"difference", "p_value"} of paired values; crops of one photograph count as one in the test."""
    differences = values - reference
    of_photographs = [differences[photographs == name].mean() for name in np.unique(photographs)]
    tested = len(of_photographs) > 1 and np.any(of_photographs)
    return {
        "difference": _mean(differences, weights),
        "p_value": float(wilcoxon(of_photographs).pvalue) if tested else float("nan"),
    }


def load_published(name_or_yaml):
    """Published values: a name in `configs/paper` or a YAML {source, metrics, methods: {method: {metric: value}}}.

    Raises:
        UserError: no such file, not of this form, a value that is no number or of a metric that is not listed.
    """
    path = Path(name_or_yaml) if str(name_or_yaml).endswith((".yaml", ".yml")) else PUBLISHED_DIR / f"{name_or_yaml}.yaml"
    if not path.exists():
        hint = nearest(path.stem, [file.stem for file in PUBLISHED_DIR.glob("*.yaml")])
        raise UserError(f"{path}: no such published table{hint}")
    content = read_yaml(path, "a readable YAML")
    kinds = {"metrics": list, "methods": dict, "spreads": dict}
    content = {"spreads": {}} | content if isinstance(content, dict) else {}
    if not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise UserError(
            f"{path}: must have 'metrics', a list, and 'methods' (and 'spreads', if there are any), a name with its values each"
        )
    for method, values in [*content["methods"].items(), *content["spreads"].items()]:
        if not isinstance(values, dict):
            raise UserError(f"{path}: '{method}' must have its values by metric")
        for metric, value in values.items():
            if metric not in content["metrics"] or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise UserError(f"{path}: '{method}', '{metric}': {value!r} is no number of a metric of this table")
    return content


# ---------------------------------------------------------------- what is written


def arrow(benchmark, metric):
    return "↓" if benchmark.lower_better[metric] else "↑"


def places(benchmark):
    """{metric: {method: 1 for the best mean, 2 for the next}}, of at least two methods."""
    found = {}
    for metric in benchmark.metrics:
        sign = 1 if benchmark.lower_better[metric] else -1
        order = sorted(benchmark.methods, key=lambda method: sign * benchmark.results[method][metric].mean.value)
        found[metric] = {method: place for place, method in enumerate(order[:2], 1)} if len(order) > 1 else {}
    return found


def cell(result):
    """A method's mean ± the spread over its samples, where it has several."""
    return with_spread(result.mean.value, result.std)


def benchmark_markdown(benchmark, settings, distances=None):
    """The text of table.md: means, differences to the reference, FID by method if there are `distances`, published values, settings."""
    header = ["method", *(f"{metric} {arrow(benchmark, metric)}" for metric in benchmark.metrics)]
    place = places(benchmark)
    rows = []
    for method in benchmark.methods:
        texts = {metric: cell(benchmark.results[method][metric]) for metric in benchmark.metrics}
        rows.append([method, *(f"**{text}**" if place[metric].get(method) == 1 else text for metric, text in texts.items())])
    count = f"{benchmark.num_images} images" + (
        f" of {benchmark.num_photographs} photographs" if benchmark.num_photographs < benchmark.num_images else ""
    )
    samples = ", ".join(f"{name} {count}" for name, count in benchmark.num_samples.items() if count > 1)
    blocks = [
        f"# {count}",
        "Mean over images and samples"
        + (f" ± standard deviation over an image's samples, averaged over images ({samples} samples)" if samples else ""),
        markdown(header, rows),
    ]
    if len(benchmark.methods) > 1:
        blocks += [
            f"## Against {benchmark.reference}",
            "Difference of the means, 95 % bootstrap interval over photographs, p of Wilcoxon's signed-rank test over photographs; "
            "bold where the interval leaves zero out. Neither is corrected for the number of cells."
            + (f" Intervals over {benchmark.num_photographs} photographs are too narrow." if benchmark.num_photographs < FEW else ""),
            markdown(header, [[method, *_differences(benchmark, method)] for method in benchmark.methods[1:]]),
        ]
    if distances:
        rows = [[method, f"{value:.2f}", str(benchmark.num_images * benchmark.num_samples[method])] for method, value in distances.items()]
        blocks += ["## FID", "Of sets: it falls with the number of images, so that only rows of one number can be compared."]
        blocks.append(markdown(["method", "FID ↓", "images"], rows))
    if benchmark.published:
        blocks += _published_blocks(benchmark, header)
    if benchmark.left_out:
        blocks.append("Left out: " + "; ".join(f"{metric} on {', '.join(ids)}" for metric, ids in benchmark.left_out.items()))
    blocks += ["## Protocol", "\n".join(f"- {key}: {value}" for key, value in settings.items())]
    return "\n\n".join(blocks) + "\n"


def _differences(benchmark, method):
    texts = []
    for metric in benchmark.metrics:
        result = benchmark.results[method][metric]
        digits = 2 if abs(result.mean.value) >= 10 else 4
        p = "" if np.isnan(result.p_value) else f", p = {result.p_value:.2g}"
        text = interval(result.difference, digits, signed=True) + p
        texts.append(f"**{text}**" if result.difference.verdict != "unclear" else text)
    return texts


def _published_blocks(benchmark, header):
    """The published rows, and for a method of the same name ours − published."""
    rows = []
    for method, values in benchmark.published["methods"].items():
        spreads = benchmark.published.get("spreads", {}).get(method, {})
        rows.append([method, *(_published_cell(values.get(metric), spreads.get(metric)) for metric in benchmark.metrics)])
        if method in benchmark.methods:
            rows.append([f"ours − {method}", *_distances(benchmark, method, values)])
    legend = "! is where the published value is further from ours than ours varies: by two standard deviations of the mean over seeds where"
    legend += " there are several samples, else outside of the interval over photographs, which is wider."
    return [f"## Published: {benchmark.published.get('source', '')}", markdown(header, rows), legend]


def _published_cell(value, spread):
    if value is None:
        return ""
    return number(value) + ("" if spread is None else f" ± {number(spread, value)}")


def _distances(benchmark, method, values):
    """Ours − published; ! where the published value is further away than ours varies: over seeds, or else over photographs."""
    texts = []
    for metric in benchmark.metrics:
        mean, of_seeds = benchmark.results[method][metric].mean, benchmark.results[method][metric].std_of_means
        if metric not in values:
            texts.append("")
            continue
        low, high = (mean.low, mean.high) if np.isnan(of_seeds) else (mean.value - 2 * of_seeds, mean.value + 2 * of_seeds)
        outside = not np.isnan(low) and not low <= values[metric] <= high
        texts.append(f"{mean.value - values[metric]:+.{2 if abs(mean.value) >= 10 else 4}f}" + (" !" if outside else ""))
    return texts


def benchmark_latex(benchmark):
    """A booktabs table: the best mean bold, the next underlined."""
    place = places(benchmark)
    wraps = {1: r"\textbf{%s}", 2: r"\underline{%s}"}
    lines = [r"\begin{tabular}{l" + "c" * len(benchmark.metrics) + "}", r"\toprule"]
    arrows = {True: r"$\downarrow$", False: r"$\uparrow$"}
    lines.append(
        " & ".join(["Method", *(f"{_tex(metric)} {arrows[benchmark.lower_better[metric]]}" for metric in benchmark.metrics)]) + r" \\"
    )
    lines.append(r"\midrule")
    for method in benchmark.methods:
        cells = []
        for metric in benchmark.metrics:
            text = cell(benchmark.results[method][metric]).replace("-", r"$-$").replace("±", r"$\pm$")
            cells.append(wraps.get(place[metric].get(method), "%s") % text)
        lines.append(" & ".join([_tex(method), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text):
    return "".join(f"\\{letter}" if letter in "_&%#$" else letter for letter in text)


def benchmark_csv(benchmark):
    """One row a method and metric."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    of_mean = ["mean", "mean_low", "mean_high", "std_within_image", "std_of_means"]
    columns = [*of_mean, "difference", "difference_low", "difference_high", "p_value", "published"]
    writer.writerow(["method", "metric", "lower_better", *columns])
    published = benchmark.published.get("methods", {})
    for method in benchmark.methods:
        for metric in benchmark.metrics:
            result = benchmark.results[method][metric]
            difference = result.difference or Estimate(float("nan"))
            values = [result.mean.value, result.mean.low, result.mean.high, result.std, result.std_of_means]
            values += [difference.value, difference.low, difference.high, result.p_value]
            values += [published.get(method, {}).get(metric, float("nan"))]
            writer.writerow(
                [method, metric, benchmark.lower_better[metric], *("" if np.isnan(value) else f"{value:.8g}" for value in values)]
            )
    return stream.getvalue()


def per_image_csv(scores, image_ids):
    """One row an image, method and sample: every metric's raw score."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "method", "sample", *scores])
    for row, image_id in enumerate(image_ids):
        for method, values in next(iter(scores.values())).items():
            for sample in range(values.shape[1]):
                writer.writerow([image_id, method, sample, *(f"{scores[metric][method][row, sample]:.8g}" for metric in scores)])
    return stream.getvalue()
