"""One sweep on models of several capacities: does the best place on its axis move with the model's size, and where do trainings collapse?

Read from one YAML, an experiment without `stages` of its own:

    models:
      small: {stages: configs/reproduce/tiny/sd2, base: preset/models/tiny-sd2-8, controlnet: preset/models/c-tiny-sd2-8}
      large: {stages: configs/reproduce/tiny/flux, seeds: [0]}
"""

import csv
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dp2osr.errors import UserError
from dp2osr.evaluation.figures import METHODS, MUTED, save_figure, style
from dp2osr.evaluation.summary import interval
from dp2osr.evaluation.tables import bold_if_clear, fraction, markdown
from dp2osr.files import write_text
from dp2osr.reproduce.drawing import halving_axis
from dp2osr.reproduce.grid import check_keys, read_experiment, read_grid
from dp2osr.reproduce.results import REWARD
from dp2osr.stats import Estimate

MODEL_KEYS = ("stages", "base", "controlnet", "num_candidates", "seeds")


@dataclass(frozen=True)
class Point:
    """One setting of one model.

    Attributes:
        at: its place on the axis; change: of the held-out reward in σ of that model's base; draws: (B,) of the bootstrap.
        seeds: how many trainings it is the mean of.
    """

    model: str
    line: str
    at: float
    change: Estimate
    draws: np.ndarray
    seeds: int


@dataclass(frozen=True)
class Best:
    """The best place on the axis for one model and line: where it is, and in which share of the bootstrap's draws it is there."""

    model: str
    line: str
    at: float
    share: float
    draws: np.ndarray  # (B,) the best place of each draw


def load_capacity(name_or_yaml, preset):
    """{(model, line): its `Grid`}, in the YAML's order; each line is pooled with its model's base alone, so that a collapse stays its own.

    Raises:
        UserError: as `load_grid`, and fewer than two models, no axis, a model without stages, two arms of a line at one place.
    """
    path, content = read_experiment(name_or_yaml, preset)
    models = content.pop("models", None)
    if not isinstance(models, dict) or len(models) < 2:
        raise UserError(f"{path}: 'models' must name at least two")
    if not content.get("axis"):
        raise UserError(f"{path}: 'axis' is missing, on which the models are compared")
    grids = {}
    for name, model in models.items():
        check_keys(path, model, MODEL_KEYS, f"model '{name}'")
        if "stages" not in model:
            raise UserError(f"{path}: model '{name}': 'stages' is missing")
        own = {key: model[key] for key in ("stages", "seeds") if key in model}
        grid = _of_model(read_grid(path, content | own), model)
        for line in dict.fromkeys(arm.line for arm in grid.arms):
            arms = [arm for arm in grid.arms if arm.line == line]
            if len({arm.at for arm in arms}) < len(arms) or any(arm.train.get("lora_rank") for arm in arms):
                raise UserError(f"{path}: line '{line}': its arms must be at different places, and train whole ControlNets")
            grids[str(name), line] = replace(grid, name=", ".join(filter(None, (grid.name, str(name), line))), arms=arms)
    if len({line_folder(*key) for key in grids} - {""}) < len(grids):
        raise UserError(f"{path}: names of models and lines must differ in more than signs: they name folders")
    return grids


def _of_model(grid, model):
    """The grid with the model's networks in every stage, and as many candidates to train on as it says."""
    known = {"base": "pretrained_model_name_or_path", "controlnet": "controlnet_model_name_or_path"}
    networks = {flag: str(model[key]) for key, flag in known.items() if key in model}
    sample = networks | {key: model[key] for key in ("num_candidates",) if key in model}
    arms = [replace(arm, train=networks | arm.train, sample=sample | arm.sample) for arm in grid.arms]
    return replace(grid, arms=arms, test=networks | grid.test)


def trained_parameters(grid):
    """How many numbers a training of the grid changes: those of the ControlNet, by its files."""
    from dp2osr.backbones.loading import count_parameters

    arm = grid.arms[0]
    return count_parameters(arm.train.get("controlnet_model_name_or_path") or grid.flags("train")["controlnet_model_name_or_path"])


def points_of(model, line, results):
    """The `Point`s of the `GridResults` of a model and line."""
    places = {arm.name: arm.at for arm in results.grid.arms}
    changes = {arm.name: arm.changes[REWARD] for arm in results.arms}
    seeds = {arm.name: len(arm.seeds) for arm in results.arms}
    return [Point(model, line, places[name], change.estimate, change.draws, seeds[name]) for name, change in changes.items()]


def best_places(points):
    """A `Best` for every model and line, in the order of the points; draws in which a setting has no value have no part."""
    found = []
    for model, line in dict.fromkeys((point.model, point.line) for point in points):
        own = [point for point in points if (point.model, point.line) == (model, line)]
        best = max(own, key=lambda point: point.change.value).at
        draws = np.array([])
        if all(point.draws is not None for point in own):
            values = np.stack([point.draws for point in own])
            draws = np.array([point.at for point in own])[np.argmax(values, axis=0)][np.isfinite(values).all(axis=0)]
        found.append(Best(model, line, best, float(np.mean(draws == best)) if len(draws) else float("nan"), draws))
    return found


def slope(best, sizes):
    """By how many doublings the best place moves for each doubling of a model's size: least squares, with the bootstrap's interval.

    Args:
        best: `Best` of one line, a model each.
        sizes: {model: trained parameters}.

    Returns:
        `Estimate`; None where all models are of one size.
    """
    doublings = np.log2([sizes[one.model] for one in best])
    centred = doublings - doublings.mean()
    if not centred.any():
        return None

    def of(places):
        return centred @ np.log2(places) / (centred @ centred)

    value, count = float(of(np.array([one.at for one in best]))), min(len(one.draws) for one in best)
    if not count:
        return Estimate(value)
    low, high = np.percentile(of(np.stack([one.draws[:count] for one in best])), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def capacity_markdown(title, axis, points, sizes):
    """A row a model and line: the change at each place, the best place and how sure it is; then the slopes and the collapses."""
    places = sorted({point.at for point in points})
    best, rows = best_places(points), []
    for one in best:
        own = {point.at: point.change for point in points if (point.model, point.line) == (one.model, one.line)}
        cells = [bold_if_clear(interval(own[place], signed=True), own[place]) if place in own else "" for place in places]
        share = "" if math.isnan(one.share) else f" ({one.share:.0%})"
        rows.append([one.model, f"{sizes[one.model]:,}", one.line, *cells, fraction(one.at) + share])
    lines = []
    for line in dict.fromkeys(one.line for one in best):
        of_line = [one for one in best if one.line == line]
        found = slope(of_line, sizes) if len(of_line) > 2 else None
        if found:
            told = {"better": "rises with capacity", "worse": "falls with capacity", "unclear": "cannot be told from not moving"}
            moves = f"for each doubling of the trained parameters the best {axis} moves by {interval(found, signed=True)} doublings"
            lines.append(f"{line or 'All'}: {moves}: it {told[found.verdict]}.")
    worse = [f"{point.model}, {point.line or axis} {fraction(point.at)}" for point in points if point.change.verdict == "worse"]
    lines.append("Worse than its base: " + ("; ".join(worse) if worse else "none") + ".")
    alone = dict.fromkeys(point.model for point in points if point.seeds == 1)
    lines += [f"One training each, whose own chance is in no interval: {', '.join(alone)}."] if alone else []
    header = ["model", "trained parameters", "", *(f"{axis} {fraction(place)}" for place in places), "best (share of draws)"]
    about = "Change of the held-out reward in σ of each model's own base, 95 % interval over photographs and trainings."
    return "\n\n".join([f"# {title}", about, markdown(header, rows), *lines]) + "\n"


def capacity_csv(points, sizes):
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "trained_parameters", "line", "at", "change", "low", "high"])
    for point in points:
        estimate = (f"{value:.6g}" for value in (point.change.value, point.change.low, point.change.high))
        writer.writerow([point.model, sizes[point.model], point.line, f"{point.at:g}", *estimate])
    return stream.getvalue()


def draw_capacity(points, axis, output):
    """A panel for each line, a curve for each model: `capacity.png` and `.svg`."""
    from matplotlib.figure import Figure

    lines, models = (list(dict.fromkeys(getattr(point, key) for point in points)) for key in ("line", "model"))
    with style():
        figure = Figure(figsize=(4.0 * len(lines), 3.1), layout="constrained")
        for axes, line in zip(figure.subplots(1, len(lines), sharey=True, squeeze=False)[0], lines, strict=True):
            for number, model in enumerate(models):
                own = sorted((point for point in points if (point.model, point.line) == (model, line)), key=lambda point: point.at)
                colour, places = METHODS[1 + number % (len(METHODS) - 1)], [point.at for point in own]
                axes.plot(places, [point.change.value for point in own], marker="o", color=colour, label=model)
                axes.vlines(places, [p.change.low for p in own], [p.change.high for p in own], color=colour, alpha=0.5)
            axes.axhline(0, color=MUTED, linewidth=1)
            halving_axis(axes, sorted({point.at for point in points}))
            axes.set_xlabel(axis)
            axes.set_title(line)
        figure.axes[0].set_ylabel("change of the reward, σ of the base")
        figure.axes[0].legend()
        for kind in ("png", "svg"):
            save_figure(figure, output / f"capacity.{kind}")


def run_capacity(name, description):
    """The whole of it, from the command line: every model's sweep with its own results, then `capacity.md`, `.csv`, `.png` and `.svg`."""
    from dp2osr.cli import parse
    from dp2osr.reproduce.program import ExperimentSettings, results_folder, run_grids

    args = parse(ExperimentSettings, description=description)
    grids = load_capacity(args.experiment or name, args.preset)
    first = next(iter(grids.values()))
    output = results_folder(args, Path(args.experiment or name).stem)
    sizes = {} if args.plan else {model: trained_parameters(grid) for (model, _), grid in grids.items()}
    found = run_grids(args, {output / line_folder(*key): grid for key, grid in grids.items()})
    if args.plan:
        return
    points = [point for key, results in zip(grids, found, strict=True) for point in points_of(*key, results)]
    title, axis = first.title, first.axis
    text = capacity_markdown(title, axis, points, sizes)
    write_text(output / "capacity.md", text)
    write_text(output / "capacity.csv", capacity_csv(points, sizes))
    draw_capacity(points, axis, output)
    print(f"\n{text}\nfiles: {output}/capacity.md, .csv, .png and .svg")


def line_folder(model, line):
    """The folder of the results of a model and line, in the experiment's."""
    return "_".join("".join(sign if sign.isalnum() else "_" for sign in name).strip("_") for name in (model, line) if name)
