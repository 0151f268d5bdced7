"""What the runs of a grid say together: each arm's change of reward and of every metric, against the base and against the first arm."""

import csv
import io
import math
from dataclasses import asdict, dataclass
from itertools import cycle

import numpy as np

from dp2osr.config import write_json, write_text
from dp2osr.evaluation import statistics
from dp2osr.evaluation.figures import BETTER, METHODS, MUTED, WORSE, save_figure, style
from dp2osr.evaluation.methods import load_methods
from dp2osr.evaluation.statistics import Estimate
from dp2osr.evaluation.summary import interval
from dp2osr.evaluation.tables import markdown
from dp2osr.provenance import versions

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
    """All arms; `metrics`: "reward" first, then name → (mode, whether the reward has it); `notes` for the reader."""

    grid: object
    metrics: dict
    arms: list
    num_images: int
    num_photographs: int
    num_candidates: int
    notes: list


def collect(grid, folders, resamples=2000, seed=0):
    """The `GridResults` of held-out candidates.

    The reward is normalised over the pooled candidates of base and all runs; a metric's change is in the base's spread within a group.

    Args:
        grid: `Grid`.
        folders: {"base" or run name: scored candidate folder}.
        resamples, seed: of the bootstrap over photographs and trainings.
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
    return GridResults(grid, metrics, arms, len(base.image_ids), len(set(photographs)), base.num_candidates, notes)


def write_results(grid, folders, output, resamples=2000):
    """Write `results.csv`, `results.md`, `results.png`, `results.svg` and `settings.json` of a grid to `output`, and print the tables."""
    results = collect(grid, folders, resamples)
    output.mkdir(parents=True, exist_ok=True)
    text = results_markdown(results)
    write_text(output / "results.md", text)
    write_text(output / "results.csv", results_csv(results))
    draw_results(results, output)
    if grid.axis:
        draw_axis(results, output)
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
        lines += [f"## Against {first.name}, the same training seeds", table(results, compared, lambda arm: arm.differences)]
    return "\n\n".join(lines) + "\n"


def table(results, arms, of_arm):
    """Metrics in rows, arms in columns."""
    rows = []
    for name, (mode, rewarded) in results.metrics.items():
        cells = [_cell(of_arm(arm)[name]) for arm in arms]
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
    for arm in results.arms:
        for name, (mode, rewarded) in results.metrics.items():
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
    """The reward's change against the experiment's axis, one curve a line of the grid, with intervals: `axis.png` and `axis.svg`."""
    from matplotlib.figure import Figure

    lines = {}
    for arm, setting in zip(results.arms, results.grid.arms, strict=True):
        lines.setdefault(setting.line, []).append((setting.at, arm.changes[REWARD].estimate))
    with style():
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for colour, (line, points) in zip(cycle(METHODS[1:]), lines.items(), strict=False):
            points = sorted(points, key=lambda point: point[0])
            places, estimates = zip(*points, strict=True)
            axes.plot(places, [estimate.value for estimate in estimates], marker="o", color=colour, label=line)
            axes.vlines(places, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.5)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_xscale("log", base=2)
        places = sorted({setting.at for setting in results.grid.arms})
        halves = all(math.log2(place).is_integer() for place in places)
        axes.set_xticks(places, [f"1/{1 / place:g}" if halves and place < 1 else f"{place:g}" for place in places])
        axes.minorticks_off()
        axes.set_xlabel(results.grid.axis)
        axes.set_ylabel("change of the reward, σ of the base")
        if len(lines) > 1:
            axes.legend()
        for kind in ("png", "svg"):
            save_figure(figure, output / f"axis.{kind}")


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
