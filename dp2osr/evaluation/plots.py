"""All plots: drawn once, saved as PNG and SVG files (light colours) or as inline SVG whose colours follow the page's theme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp2osr.evaluation.compare import REWARD
from dp2osr.evaluation.tables import fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dp2osr.evaluation.training_log import Records
    from dp2osr.stats import Estimate

    Plot = tuple[str, float, Callable[[Axes], None]]
    Points = Sequence[tuple[float, Estimate]]

INK, MUTED, GRID = "#1c1f23", "#6a7179", "#d9dce0"
METHODS = ("#747b84", "#1f6feb", "#c2570c", "#20834a", "#7c4dd8", "#b02a6b")  # the base is grey
BETTER, WORSE = "#1a7f37", "#cf222e"
VERDICTS = {"better": BETTER, "worse": WORSE, "unclear": MUTED}
CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", BETTER: "--better", WORSE: "--worse"} | {
    colour: f"--method-{i}" for i, colour in enumerate(METHODS)
}
SIZE = (4.4, 3.1)  # inches; at 72 dpi an SVG of 317 points: a phone enlarges it a little and its text stays legible
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "evaluation",  # the same ids, hence the same bytes, on every run
}


@contextmanager
def drawing(size: tuple[float, float] = SIZE, **grid: Any) -> Iterator[tuple[Figure, Any]]:
    """Within, (figure, its axes) in this style: one axes, or with `nrows` and `ncols` an array of them."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(squeeze=False, **grid) if grid else figure.add_subplot()


def save(figure: Figure, stem: str | Path, dpi: int = 150) -> None:
    """Write a figure as `stem`.png and .svg."""
    for kind in ("png", "svg"):
        save_figure(figure, Path(stem).with_name(f"{Path(stem).name}.{kind}"), dpi)


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure as what the path's suffix says, PNG or SVG, beside and then renamed; the same figure gives the same bytes."""
    path = Path(path)
    kind, part = path.suffix.removeprefix("."), path.with_name(f".{path.name}.part")
    figure.savefig(part, format=kind, dpi=dpi, metadata={"Software": None} if kind == "png" else {"Date": None})
    part.replace(path)


def other_colours() -> Iterator[str]:
    """The palette without the base's grey, over and over."""
    return cycle(METHODS[1:])


def halving_axis(axes: Axes, places: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each place, as a fraction where all are halves of halves."""
    axes.set_xscale("log", base=2)
    halves = all(math.log2(place).is_integer() for place in places)
    axes.set_xticks(places, [fraction(place) if halves else f"{place:g}" for place in places])
    axes.minorticks_off()


# ---------------------------------------------------------------- of an evaluation: each draws on one axes


def draw_curve(axes: Axes, name: str, curve: Mapping[str, Sequence[float]], colour: str) -> None:
    """One model's Best, Mean and Worst of m candidates, of `stats.best_mean_worst`."""
    axes.fill_between(curve["m"], curve["worst"], curve["best"], color=colour, alpha=0.10, linewidth=0)
    for key, marker, width in (("best", "^", 1.3), ("mean", None, 2.4), ("worst", "v", 1.3)):
        label = name if key == "mean" else None
        axes.plot(curve["m"], curve[key], color=colour, marker=marker, markersize=4.5, linewidth=width, label=label)


def colour_of(evaluation: Any, name: str) -> str:
    """A method's colour; the base is grey, further methods repeat the palette after the base's."""
    i = evaluation.methods.index(name)
    return METHODS[i if i < len(METHODS) else 1 + (i - 1) % (len(METHODS) - 1)]


def draw_best_mean_worst(axes: Axes, evaluation: Any) -> None:
    """Reward of the best, mean and worst of m candidates, averaged over images."""
    for name in evaluation.methods:
        draw_curve(axes, name, evaluation.curves[name], colour_of(evaluation, name))
    halving_axis(axes, evaluation.curves[evaluation.base]["m"])
    axes.set(xlabel="candidates drawn, m", ylabel="reward")
    axes.set_title("Best ▲, Mean —, Worst ▼ of m candidates", pad=22)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=min(4, len(evaluation.methods)), borderaxespad=0, handlelength=1.4)


def draw_metric_changes(axes: Axes, evaluation: Any) -> None:
    """Change of every metric against the base with its interval, aligned so that right is better; the reward on top."""
    several = len(evaluation.compared) > 1
    offsets = np.linspace(-0.22, 0.22, len(evaluation.compared)) if several else [0.0]
    about = evaluation.results.metrics
    for offset, method in zip(offsets, evaluation.compared, strict=True):
        for y, change in enumerate(evaluation.changes[method].values()):
            _interval_mark(axes, y + offset, change.estimate, colour_of(evaluation, method) if several else None)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(about)), [f"{name} *" if rewarded else name for name, rewarded in about["rewarded"].items()])
    axes.set_ylim(len(about) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"← worse · change in σ of {evaluation.base} · better →")
    axes.set_title("Change by metric (* in the reward)")


def _interval_mark(axes: Axes, y: float, estimate: Estimate, colour: str | None) -> None:
    """A dot with its interval; filled if the interval leaves zero out."""
    if math.isnan(estimate.value):
        return
    colour = colour or VERDICTS[estimate.verdict]
    if not math.isnan(estimate.low):
        axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
    face = colour if estimate.verdict != "unclear" else "none"
    axes.plot(estimate.value, y, marker="o", markersize=6, color=colour, markerfacecolor=face)


def draw_image_gains(axes: Axes, evaluation: Any, method: str) -> None:
    """Gain of every image, sorted: how many improve, and by how much the others lose."""
    gains = np.sort(evaluation.gain(method).by_image / (evaluation.sigma or 1))[::-1]
    axes.bar(range(len(gains)), gains, width=0.8, color=[BETTER if value > 0 else WORSE for value in gains])
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.set_xticks([])
    axes.grid(axis="x", visible=False)
    axes.set(xlabel=f"{len(gains)} images, sorted", ylabel=f"Mean {method} − Mean {evaluation.base}, σ")
    axes.set_title(f"Gain by image: {evaluation.improved(method)} of {len(gains)} better ({method})")


def draw_validation(axes: Axes, validation: Records) -> None:
    """Reward on the validation images during training: Best, Mean, Worst."""
    for key, marker, width in (("best", "^", 1.3), ("mean", "o", 2.4), ("worst", "v", 1.3)):
        points = [(step, record[f"val_reward_{key}"]) for step, record in validation.items() if f"val_reward_{key}" in record]
        if points:
            axes.plot(*zip(*points), color=METHODS[1], marker=marker, markersize=4.5, linewidth=width)
    gains = [(step, record["G"]) for step, record in validation.items() if record.get("G") is not None]
    last = f" (G = {gains[-1][1]:.2f} at step {gains[-1][0]})" if gains else ""
    axes.set(xlabel="training step", ylabel="Best ▲  Mean ●  Worst ▼")
    axes.set_title(f"Validation reward{last}")


def draw_training(
    axes: Axes, training: Records, series: Mapping[str, tuple[str, str]], title: str, level: tuple[float, str] | None = None
) -> None:
    """One or more keys of the training log against the step, as logged (faint) and as a running mean.

    Args:
        series: {key: (label, colour)}.
        level: (value, label) of a reference line, or `None`.
    """
    for key, (label, colour) in series.items():
        points = [(step, record[key]) for step, record in training.items() if isinstance(record.get(key), (int, float))]
        if not points:
            continue
        steps, values = map(np.array, zip(*points))
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.9)
        axes.plot(steps, running_mean(values), color=colour, linewidth=2, label=label)
    if level is not None:
        axes.axhline(level[0], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(level[1], (1, level[0]), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=MUTED, fontsize=8)
    if len(series) > 1:
        axes.legend(loc="best")
    axes.set_xlabel("training step")
    axes.set_title(title)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a tenth of the points; shorter windows at the ends. (n,) → (n,)"""
    half = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


# ---------------------------------------------------------------- which plots a report has, and into what


def result_plots(evaluation: Any) -> list[Plot]:
    """[(name, height in inches, draw(axes))] of the results."""
    plots: list[Plot] = [("curves", SIZE[1], lambda axes: draw_best_mean_worst(axes, evaluation))]
    if evaluation.compared:
        height = max(SIZE[1], 1.1 + 0.22 * len(evaluation.results.metrics))
        plots.append(("changes", height, lambda axes: draw_metric_changes(axes, evaluation)))
    for method in evaluation.compared:
        plots.append((f"images-{method}", SIZE[1], partial(draw_image_gains, evaluation=evaluation, method=method)))
    return plots


def training_plots(training: Records, validation: Records) -> list[Plot]:
    """[(name, height in inches, draw(axes))] of the training log; only what the log has."""
    plots: list[Plot] = []
    if validation:
        plots.append(("validation", SIZE[1], lambda axes: draw_validation(axes, validation)))
    blue, grey, orange = METHODS[1], METHODS[0], METHODS[2]
    wanted = [
        ({"loss": ("loss", blue)}, "Loss", (math.log(2), "ln 2: policy = reference")),
        ({"implicit_accuracy": ("implicit accuracy", blue)}, "Implicit accuracy (pairs ordered rightly)", (0.5, "chance")),
        ({"winner_error": ("preferred", blue), "loser_error": ("dispreferred", orange)}, "Denoising error", None),
        ({"grad_norm": ("gradient norm", grey)}, "Gradient norm", None),
    ]
    for series, title, level in wanted:
        if any(key in record for record in training.values() for key in series):
            plots.append((next(iter(series)), SIZE[1], partial(draw_training, training=training, series=series, title=title, level=level)))
    return plots


def to_svg(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    """Inline SVG: no XML header, no namespace addresses, colours as CSS variables, the page's own font."""
    with drawing((SIZE[0], height)) as (figure, axes):
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    title = re.sub(r"[<>&]", "", axes.get_title(loc="left"))
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit-font", svg).replace("inherit-font", "system-ui, sans-serif")
    svg = re.sub(r'(?<=[\s"#(])([mp][0-9a-f]{10})(?=[")])', rf"{name}-\1", svg)  # several SVGs share the page's id space
    for colour, variable in CSS_VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def save_png(path: str | Path, plots: Sequence[Plot]) -> None:
    """All plots in one PNG, light colours, two a line."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(2, len(plots))
    lines = [plots[i : i + columns] for i in range(0, len(plots), columns)]
    heights = [max(height for _, height, _ in line) for line in lines]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0] * columns, sum(heights)), layout="constrained")
        grid = figure.add_gridspec(len(lines), columns, height_ratios=heights)
        for row, line in enumerate(lines):
            for column, (_, _, draw) in enumerate(line):
                draw(figure.add_subplot(grid[row, column]))
        save_figure(figure, path, dpi=180)


# ---------------------------------------------------------------- of an experiment


def draw_arms(results: Any, stem: str | Path) -> None:
    """One panel a metric: arms from top to bottom, a dot with its interval, each training as a small mark."""
    metrics, arms = results.metrics, list(results.changes)
    columns = min(4, len(metrics))
    size = (2.7 * columns, (0.7 + 0.26 * len(arms)) * -(-len(metrics) // columns))
    with drawing(size, nrows=-(-len(metrics) // columns), ncols=columns, sharey=True) as (figure, panels):
        for panel in panels.flat[len(metrics) :]:
            panel.axis("off")
        for panel, (name, rewarded) in zip(panels.flat, metrics["rewarded"].items(), strict=False):
            for y, arm in enumerate(arms):
                change = results.changes[arm][name]
                colour = VERDICTS[change.estimate.verdict] if change.estimate.verdict != "unclear" else METHODS[0]
                panel.plot([change.estimate.low, change.estimate.high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
                panel.plot(change.estimate.value, y, marker="o", color=colour, markersize=5)
                marks = change.by_training
                panel.plot(marks, [y] * len(marks), marker="|", linestyle="", color=METHODS[0], markersize=7)
            panel.axvline(0, color=MUTED, linewidth=1)
            panel.set_yticks(range(len(arms)), arms)
            panel.set_ylim(len(arms) - 0.5, -0.5)
            panel.grid(axis="y", visible=False)
            panel.set_title(f"{name} *" if rewarded and name != REWARD else name)
        figure.supxlabel("change in σ of the base, right is better (* in the reward)", fontsize=9, color=MUTED)
        save(figure, stem)


def draw_lines(lines: Mapping[str, Points], levels: Mapping[str, float], axis: str, stem: str | Path, logarithmic: bool = True) -> None:
    """Changes of the reward against an axis: {line: [(place, `Estimate`)]}, with intervals; {name: value} as level lines."""
    with drawing() as (figure, axes):
        colours = other_colours()
        for (line, points), colour in zip(lines.items(), colours, strict=False):
            places, estimates = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            axes.plot(places, [estimate.value for estimate in estimates], marker="o", color=colour, label=line)
            axes.vlines(places, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.5)
        for (name, value), colour in zip(levels.items(), colours, strict=False):
            axes.axhline(value, color=colour, linestyle="--", linewidth=1.2, label=name)
        axes.axhline(0, color=MUTED, linewidth=1)
        if logarithmic:
            halving_axis(axes, sorted({place for points in lines.values() for place, _ in points}))
        axes.set(xlabel=axis, ylabel="change of the reward, σ of the base")
        if len(lines) + len(levels) > 1:
            axes.legend()
        save(figure, stem)


def draw_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], stem: str | Path) -> None:
    """Best, Mean and Worst of m candidates of {model: `stats.best_mean_worst`}."""
    with drawing() as (figure, axes):
        for (name, curve), colour in zip(curves.items(), cycle(METHODS), strict=False):
            draw_curve(axes, name, curve, colour)
        halving_axis(axes, next(iter(curves.values()))["m"])
        axes.set(xlabel="candidates drawn, m", ylabel="reward: Best ▲  Mean —  Worst ▼")
        axes.legend()
        save(figure, stem)
