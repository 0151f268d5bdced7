"""What the runs of a grid say together: each arm's change of reward and of every metric, against the base and against the first arm."""

import csv
import io
import math
from dataclasses import asdict, dataclass
from itertools import cycle

import numpy as np

from dp2osr.config import write_json, write_text
from dp2osr.errors import UserError
from dp2osr.evaluation import statistics
from dp2osr.evaluation.figures import BETTER, METHODS, MUTED, WORSE, draw_curve, save_figure, style
from dp2osr.evaluation.image_folders import pair_images
from dp2osr.evaluation.image_scores import ImageScorer
from dp2osr.evaluation.methods import bicubic_scores, find_gt, load_methods
from dp2osr.evaluation.statistics import Estimate
from dp2osr.evaluation.summary import interval
from dp2osr.evaluation.tables import markdown
from dp2osr.provenance import versions
from dp2osr.reproduce.tasks import BICUBIC

BASE = "base"
REWARD = "reward"


@dataclass(frozen=True)
class Change:
    """In the base's spread within a group, + is better: the mean over trainings with its interval, and each training's."""

    estimate: Estimate
    by_seed: np.ndarray


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
        curves: name of the base or an arm → Best, Mean and Worst of m candidates, `statistics.best_mean_worst`.
        levels: name of the base, an arm or a rival → its mean reward.
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
    levels: dict


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
    parts = statistics.pooled_parts({method.name: method.scores for method in methods}, lower_better, config)
    values = {method.name: {REWARD: sum(parts[method.name].values())} for method in methods}  # sign aligned, (G, M)
    for method in methods:
        values[method.name] |= {name: (-1 if lower_better[name] else 1) * scores for name, scores in method.scores.items()}
    rewarded = [spec.name for spec in config.metrics]
    outside = sorted((name for name in base.metrics if name not in rewarded), key=lambda name: (base.metrics[name]["mode"], name))
    metrics = {REWARD: ("", True)} | {name: (base.metrics[name]["mode"], name in rewarded) for name in [*rewarded, *outside]}

    photographs = statistics.photographs_of(base.image_ids, grid.crop_suffix)
    weights = statistics.bootstrap_weights(photographs, resamples, seed)
    spreads = {name: statistics.spread(values[BASE][name]) for name in metrics}

    def means(arm, seeds, name):
        return np.stack([values[arm.run_name(number)][name].mean(axis=1) for number in seeds])

    def change(differences, name):
        of_seeds = statistics.seed_weights(len(differences), resamples, seed)
        estimate = statistics.mean_gain(differences, spreads[name], weights, of_seeds)
        return Change(estimate, differences.mean(axis=1) / spreads[name].mean())

    arms, first = [], grid.arms[0]
    for arm in grid.arms:
        changes = {name: change(means(arm, arm.seeds, name) - values[BASE][name].mean(axis=1), name) for name in metrics}
        common = [number for number in arm.seeds if number in first.seeds and arm is not first]
        over_first = {name: change(means(arm, common, name) - means(first, common, name), name) for name in metrics} if common else {}
        arms.append(ArmResult(arm.name, arm.seeds, changes, over_first))

    of_rivals, levels = [], {BASE: float(values[BASE][REWARD].mean())}
    pool = {method.name: method.scores for method in methods}
    for name, scores in (rivals or {}).items():
        raw = {metric: (-1 if lower_better[metric] else 1) * scores[metric].mean(axis=1) for metric in scores if metric in metrics}
        raw[REWARD] = _reward_of_outsider(scores, pool, lower_better, config)
        levels[name] = float(raw[REWARD].mean())
        changes = {metric: change((raw[metric] - values[BASE][metric].mean(axis=1))[None], metric) for metric in metrics if metric in raw}
        of_rivals.append(ArmResult(name, (0,), changes, {}))
    levels |= {arm.name: float(np.mean([values[arm.run_name(number)][REWARD].mean() for number in arm.seeds])) for arm in grid.arms}
    pooled = {arm.name: np.concatenate([values[arm.run_name(number)][REWARD] for number in arm.seeds]) for arm in grid.arms}
    curves = {name: statistics.best_mean_worst(rewards) for name, rewards in ({BASE: values[BASE][REWARD]} | pooled).items()}
    about = (len(base.image_ids), len(set(photographs)), base.num_candidates, notes)
    return GridResults(grid, metrics, arms, *about, of_rivals, curves, levels)


def _reward_of_outsider(scores, pool, lower_better, config):
    """(G,) mean reward of images outside the pool; `scores`: {metric: (G, S)}."""
    samples = [{metric: values[:, place] for metric, values in scores.items()} for place in range(next(iter(scores.values())).shape[1])]
    return np.mean([sum(statistics.parts_of_outsider(sample, pool, lower_better, config).values()) for sample in samples], axis=0)


def score_rivals(grid, folders, candidates, gt_path, output):
    """{rival: {metric: (G, S) raw}}.

    Args:
        folders: of `collect`; the rivals' images are those of the base's LR images, and get the base's metrics.
        candidates: {name: scored candidate folder} of the rivals that are another base.
        gt_path: folder of the GT images.
        output: folder that keeps the scores of images.
    """
    from dp2osr.rewards.config import MetricSpec, load_reward_config
    from dp2osr.rewards.metrics import MetricSuite

    if not grid.rivals:
        return {}
    config = load_reward_config(grid.evaluated_by)
    [base, *others], _ = load_methods([f"{name}={folder}" for name, folder in {BASE: folders[BASE], **candidates}.items()], config, "")
    found = {method.name: method.scores for method in others}
    suite = MetricSuite([MetricSpec(name, about.get("options") or {}) for name, about in base.metrics.items()])
    for name, where in grid.rivals.items():
        if where == BICUBIC:
            scores = bicubic_scores(base, find_gt(gt_path, base.image_ids))
            found[name] = {metric: values[:, None] for metric, values in scores.items()}
        elif name not in candidates:
            images, gt = pair_images({name: [where]}, gt_path)
            if sorted(gt) != sorted(base.image_ids):
                raise UserError(f"{gt_path}: has other images than the base's candidates; a rival's images are of all of them")
            found[name] = {metric: of[name] for metric, of in ImageScorer(suite, gt, output / "rivals.jsonl").score(images).items()}
    return {name: found[name] for name in grid.rivals}


def write_results(grid, folders, output, resamples=2000, rivals=None):
    """Write `results.csv`, `results.md`, `results.png`, `results.svg` and `settings.json` of a grid to `output`, and print the tables.

    Where the grid has an axis, also `axis.png` and `axis.svg`; where it asks for them, `best_mean_worst.png`, `.svg` and `.csv`.

    Args:
        grid, folders, resamples, rivals: of `collect`.
    """
    results = collect(grid, folders, resamples, rivals=rivals)
    output.mkdir(parents=True, exist_ok=True)
    text = results_markdown(results)
    write_text(output / "results.md", text)
    write_text(output / "results.csv", results_csv(results))
    draw_results(results, output)
    if grid.axis:
        draw_axis(results, output)
    if grid.best_mean_worst:
        write_text(output / "best_mean_worst.csv", curves_csv(results))
        draw_curves(results, output)
    arms = {arm.name: asdict(arm) for arm in grid.arms}
    about = {"title": grid.title, "stages": {stage: str(path) for stage, path in grid.stages.items()}, "evaluated_by": grid.evaluated_by}
    write_json(output / "settings.json", about | {"arms": arms, "bootstrap": resamples, "runs": folders, "versions": versions()})
    print(f"\n{text}\nfiles: {output}/results.md, .csv, .png, .svg and settings.json")
    return results


def results_markdown(results):
    """Two tables: every arm against the base, and against the first arm."""
    first, *others = results.arms
    photographs, crops = results.num_photographs, results.num_images
    most = max(len(arm.seeds) for arm in results.arms)
    drawn = "photographs and trainings" if most > 1 else "photographs; one training each, whose own chance is not in it"
    lines = [
        f"# {results.grid.title}",
        f"{crops} images of {photographs} held-out photographs × {results.num_candidates} seeds. Change in units of the base's spread "
        f"within a group, + is better, 95 % interval over {drawn}; ± is the standard deviation over trainings. "
        f"The reward is `{results.grid.evaluated_by}`, pooled over all runs; metrics with * are in it.",
        *results.notes,
        "## Against the base",
        table(results, results.arms, lambda arm: arm.changes),
    ]
    if others:
        compared = [arm for arm in others if arm.differences]
        if compared:
            lines += [f"## Against {first.name}, the same training seeds", table(results, compared, lambda arm: arm.differences)]
    if results.rivals:
        lines += ["## Other methods against the base", table(results, results.rivals, lambda rival: rival.changes)]
    if results.grid.best_mean_worst:
        lines += ["## Best, Mean and Worst of m candidates", curves_table(results)]
    return "\n\n".join(lines) + "\n"


def table(results, arms, of_arm):
    """Metrics in rows, arms in columns."""
    rows = []
    for name, (mode, rewarded) in results.metrics.items():
        cells = [_cell(of_arm(arm)[name]) if name in of_arm(arm) else "" for arm in arms]
        rows.append([f"{name}{'*' if rewarded and name != REWARD else ''}", mode, *cells])
    return markdown(["metric", "set", *(arm.name for arm in arms)], rows)


def _cell(change):
    text = interval(change.estimate, signed=True)
    if len(change.by_seed) > 1:
        value, rest = text.split(" ", 1) if " " in text else (text, "")
        text = f"{value} ± {change.by_seed.std(ddof=1):.2f} {rest}".strip()
    return f"**{text}**" if change.estimate.verdict != "unclear" else text


def results_csv(results):
    """One row an arm and metric: change, interval, difference to the first arm, interval, and each training's change."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    seeds = sorted({seed for arm in results.arms for seed in arm.seeds})
    columns = ["arm", "metric", "mode", "in_reward", "change", "low", "high", "difference", "difference_low", "difference_high"]
    writer.writerow([*columns, *(f"seed_{seed}" for seed in seeds)])
    for arm in [*results.arms, *results.rivals]:
        for name, (mode, rewarded) in results.metrics.items():
            if name not in arm.changes:
                continue
            row = [arm.name, name, mode, rewarded]
            for change in (arm.changes[name], arm.differences.get(name)):
                estimate = change and change.estimate
                row += [f"{value:.6g}" for value in (estimate.value, estimate.low, estimate.high)] if estimate else ["", "", ""]
            by_seed = dict(zip(arm.seeds, arm.changes[name].by_seed, strict=True))
            writer.writerow([*row, *(f"{by_seed[seed]:.6g}" if seed in by_seed else "" for seed in seeds)])
    return stream.getvalue()


def draw_results(results, output):
    """One panel a metric: arms from top to bottom, a dot with its interval, each training as a small mark."""
    from matplotlib.figure import Figure

    columns = min(4, len(results.metrics))
    lines = -(-len(results.metrics) // columns)
    height = 0.7 + 0.26 * len(results.arms)
    with style():
        figure = Figure(figsize=(2.7 * columns, height * lines), layout="constrained")
        axes = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
        for panel, (name, (_, rewarded)) in zip(axes, results.metrics.items(), strict=False):
            _draw_metric(panel, results, name)
            panel.set_title(f"{name} *" if rewarded and name != REWARD else name)
        for panel in axes[len(results.metrics) :]:
            panel.axis("off")
        figure.supxlabel("change in σ of the base, right is better (* in the reward)", fontsize=9, color=MUTED)
        for kind in ("png", "svg"):
            save_figure(figure, output / f"results.{kind}")


def draw_axis(results, output):
    """The reward's change against the experiment's axis, one curve a line of the grid, with intervals: `axis.png` and `axis.svg`.

    Rivals are level lines. Steps of training begin with the base, at 0.
    """
    from matplotlib.figure import Figure

    lines, steps = {}, results.grid.checkpoints
    for arm, setting in zip(results.arms, results.grid.arms, strict=True):
        lines.setdefault(setting.line, []).append((setting.at, arm.changes[REWARD].estimate))
    with style():
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        colours = cycle(METHODS[1:])
        for (line, points), colour in zip(lines.items(), colours, strict=False):
            points = sorted([*points, *([(0, Estimate(0.0, 0.0, 0.0))] if steps else [])], key=lambda point: point[0])
            places, estimates = zip(*points, strict=True)
            axes.plot(places, [estimate.value for estimate in estimates], marker="o", color=colour, label=line)
            axes.vlines(places, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.5)
        for rival, colour in zip(results.rivals, colours, strict=False):
            axes.axhline(rival.changes[REWARD].estimate.value, color=colour, linestyle="--", linewidth=1.2, label=rival.name)
        axes.axhline(0, color=MUTED, linewidth=1)
        if not steps:
            _halving_axis(axes, sorted({setting.at for setting in results.grid.arms}))
        axes.set_xlabel(results.grid.axis)
        axes.set_ylabel("change of the reward, σ of the base")
        if len(lines) + len(results.rivals) > 1:
            axes.legend()
        for kind in ("png", "svg"):
            save_figure(figure, output / f"axis.{kind}")


def _halving_axis(axes, places):
    """A logarithmic axis with a tick at each place, as a fraction where all are halves of halves."""
    axes.set_xscale("log", base=2)
    halves = all(math.log2(place).is_integer() for place in places)
    axes.set_xticks(places, [f"1/{1 / place:g}" if halves and place < 1 else f"{place:g}" for place in places])
    axes.minorticks_off()


def curves_table(results):
    """Markdown: Best, Mean and Worst of m in rows, base and arms in columns."""
    rows = [
        [f"{kind.capitalize()}@{m}", *(f"{curve[kind][place]:.3f}" for curve in results.curves.values())]
        for kind in ("best", "mean", "worst")
        for place, m in enumerate(results.curves[BASE]["m"])
        if kind != "mean" or not place
    ]
    return markdown(["", *results.curves], rows).replace("Mean@1 ", "Mean ")


def curves_csv(results):
    """One row a model and m."""
    lines = ["model,m,best,mean,worst"]
    for name, curve in results.curves.items():
        lines += [
            ",".join([name, str(m), *(f"{curve[kind][i]:.6g}" for kind in ("best", "mean", "worst"))]) for i, m in enumerate(curve["m"])
        ]
    return "\n".join(lines) + "\n"


def draw_curves(results, output):
    """Best, Mean and Worst of m candidates of the base and every arm: `best_mean_worst.png` and `.svg`."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for (name, curve), colour in zip(results.curves.items(), cycle(METHODS), strict=False):
            draw_curve(axes, name, curve, colour)
        _halving_axis(axes, results.curves[BASE]["m"])
        axes.set_xlabel("candidates drawn, m")
        axes.set_ylabel("reward: Best ▲  Mean —  Worst ▼")
        axes.legend()
        for kind in ("png", "svg"):
            save_figure(figure, output / f"best_mean_worst.{kind}")


def _draw_metric(axes, results, name):
    for y, arm in enumerate(results.arms):
        estimate = arm.changes[name].estimate
        colour = {"better": BETTER, "worse": WORSE, "unclear": METHODS[0]}[estimate.verdict]
        axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(estimate.value, y, marker="o", color=colour, markersize=5)
        axes.plot(arm.changes[name].by_seed, [y] * len(arm.seeds), marker="|", linestyle="", color=METHODS[0], markersize=7)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(results.arms)), [arm.name for arm in results.arms])
    axes.set_ylim(len(results.arms) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
