"""Figures of a grid: every metric's change by arm, the reward along the experiment's axis, Best, Mean and Worst of m candidates."""

import math
from itertools import cycle

from dp2osr.evaluation.figures import BETTER, METHODS, MUTED, WORSE, draw_curve, save_figure, style
from dp2osr.evaluation.tables import fraction
from dp2osr.reproduce.results import BASE, REWARD
from dp2osr.stats import Estimate


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
            halving_axis(axes, sorted({setting.at for setting in results.grid.arms}))
        axes.set_xlabel(results.grid.axis)
        axes.set_ylabel("change of the reward, σ of the base")
        if len(lines) + len(results.rivals) > 1:
            axes.legend()
        for kind in ("png", "svg"):
            save_figure(figure, output / f"axis.{kind}")


def halving_axis(axes, places):
    """A logarithmic axis with a tick at each place, as a fraction where all are halves of halves."""
    axes.set_xscale("log", base=2)
    halves = all(math.log2(place).is_integer() for place in places)
    axes.set_xticks(places, [fraction(place) if halves else f"{place:g}" for place in places])
    axes.minorticks_off()


def draw_curves(results, output):
    """Best, Mean and Worst of m candidates of the base and every arm: `best_mean_worst.png` and `.svg`."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for (name, curve), colour in zip(results.curves.items(), cycle(METHODS), strict=False):
            draw_curve(axes, name, curve, colour)
        halving_axis(axes, results.curves[BASE]["m"])
        axes.set_xlabel("candidates drawn, m")
        axes.set_ylabel("reward: Best ▲  Mean —  Worst ▼")
        axes.legend()
        for kind in ("png", "svg"):
            save_figure(figure, output / f"best_mean_worst.{kind}")
