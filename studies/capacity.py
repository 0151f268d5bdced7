"""One sweep on models of several capacities: does the best place on its axis move with the model's size, and where do trainings collapse?

    python studies/capacity.py

Read from one YAML, an experiment without `stages` of its own (configs/reproduce/tiny/capacity.yaml):

    models:
      small: {stages: configs/reproduce/tiny/sd2, base: preset/models/tiny-sd2-8, controlnet: preset/models/c-tiny-sd2-8}
      large: {stages: configs/reproduce/tiny/flux, seeds: [0]}

Every model's sweep has its own results; then come capacity.md, .csv, .png and .svg (the paper's third open question).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dp2osr.cli import parse
from dp2osr.errors import UserError, run
from dp2osr.evaluation import plots
from dp2osr.evaluation.compare import REWARD
from dp2osr.evaluation.tables import bold_if_clear, csv_text, fraction, interval, markdown
from dp2osr.experiments.settings import JobSettings
from dp2osr.experiments.spec import experiment_of, find_experiment
from dp2osr.fields import Count
from dp2osr.files import write_text
from dp2osr.schema import build, read_lines
from dp2osr.stats import Estimate


@dataclass(frozen=True)
class Model:
    """A model of the sweep: its stages, and what differs from them."""

    stages: str
    base: str | None = None
    controlnet: str | None = None
    num_candidates: Count | None = None
    seeds: tuple[int, ...] | None = None

    def networks(self):
        """Flags of every stage."""
        flags = {"pretrained_model_name_or_path": self.base, "controlnet_model_name_or_path": self.controlnet}
        return {flag: path for flag, path in flags.items() if path}


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
    """{(model, line): its `Experiment`}, in the YAML's order; each line is pooled with its model's base alone: a collapse stays its own.

    Raises:
        UserError: as `load_experiment`, and fewer than two models, no axis, two arms of a line at one place.
    """
    path = find_experiment(name_or_yaml, preset)
    content = read_lines(path, "an experiment")
    models = build(dict[str, Model], content.pop("models", None), f"{path}: 'models'")
    if len(models) < 2:
        raise UserError(f"{path}: 'models' must name at least two")
    if not content.get("axis"):
        raise UserError(f"{path}: 'axis' is missing, on which the models are compared")
    experiments = {}
    for name, model in models.items():
        own = {"stages": model.stages} | ({"seeds": list(model.seeds)} if model.seeds else {})
        experiment = _of_model(experiment_of(path, content | own), model)
        for line in dict.fromkeys(arm.line for arm in experiment.arms.values()):
            arms = {key: arm for key, arm in experiment.arms.items() if arm.line == line}
            if len({arm.at for arm in arms.values()}) < len(arms) or any(arm.train.get("lora_rank") for arm in arms.values()):
                raise UserError(f"{path}: line '{line}': its arms must be at different places, and train whole ControlNets")
            title = ", ".join(filter(None, (experiment.name, name, line)))
            experiments[name, line] = replace(experiment, name=title, arms=arms)
    if len({line_folder(*key) for key in experiments} - {""}) < len(experiments):
        raise UserError(f"{path}: names of models and lines must differ in more than signs: they name folders")
    return experiments


def _of_model(experiment, model):
    """The experiment with the model's networks in every stage, and as many candidates to train on as it says."""
    networks = model.networks()
    sample = networks | ({"num_candidates": model.num_candidates} if model.num_candidates else {})
    arms = {name: replace(arm, train=networks | arm.train, sample=sample | arm.sample) for name, arm in experiment.arms.items()}
    return replace(experiment, arms=arms, test=networks | experiment.test)


def trained_parameters(experiment):
    """How many numbers a training of the experiment changes: those of the ControlNet, by its files."""
    from dp2osr.backbones.loading import count_parameters

    key, arm = "controlnet_model_name_or_path", next(iter(experiment.arms.values()))
    return count_parameters(arm.train.get(key) or experiment.flags("train")[key])


def points_of(model, line, results):
    """The `Point`s of the `ExperimentResults` of a model and line."""
    arms = results.experiment.arms
    changes = {name: of[REWARD] for name, of in results.changes.items()}
    return [Point(model, line, arms[name].at, of.estimate, of.draws, len(arms[name].seeds)) for name, of in changes.items()]


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
    places, best, rows = sorted({point.at for point in points}), best_places(points), []
    for one in best:
        own = {point.at: point.change for point in points if (point.model, point.line) == (one.model, one.line)}
        row = {"model": one.model, "trained parameters": f"{sizes[one.model]:,}", "": one.line}
        for place in places:
            row[f"{axis} {fraction(place)}"] = bold_if_clear(interval(own[place], signed=True), own[place]) if place in own else ""
        share = "" if math.isnan(one.share) else f" ({one.share:.0%})"
        rows.append(row | {"best (share of draws)": fraction(one.at) + share})
    about = "Change of the held-out reward in σ of each model's own base, 95 % interval over photographs and trainings."
    lines = [f"# {title}", about, markdown(pd.DataFrame(rows)), *_slopes(axis, best, sizes)]
    worse = [f"{point.model}, {point.line or axis} {fraction(point.at)}" for point in points if point.change.verdict == "worse"]
    lines.append("Worse than its base: " + ("; ".join(worse) if worse else "none") + ".")
    alone = dict.fromkeys(point.model for point in points if point.seeds == 1)
    lines += [f"One training each, whose own chance is in no interval: {', '.join(alone)}."] if alone else []
    return "\n\n".join(lines) + "\n"


def _slopes(axis, best, sizes):
    """A sentence a line of which there are more than two models, of more than one size."""
    lines = []
    for line in dict.fromkeys(one.line for one in best):
        of_line = [one for one in best if one.line == line]
        found = slope(of_line, sizes) if len(of_line) > 2 else None
        if found:
            told = {"better": "rises with capacity", "worse": "falls with capacity", "unclear": "cannot be told from not moving"}
            moves = f"for each doubling of the trained parameters the best {axis} moves by {interval(found, signed=True)} doublings"
            lines.append(f"{line or 'All'}: {moves}: it {told[found.verdict]}.")
    return lines


def points_frame(points, sizes):
    """A row a point."""
    rows = [(point.model, sizes[point.model], point.line, point.at, *vars(point.change).values()) for point in points]
    return pd.DataFrame(rows, columns=["model", "trained_parameters", "line", "at", "change", "low", "high"])


def draw_capacity(points, axis, output):
    """A panel for each line, a curve for each model: `capacity.png` and `.svg`."""
    lines, models = (list(dict.fromkeys(getattr(point, key) for point in points)) for key in ("line", "model"))
    with plots.drawing((4.0 * len(lines), 3.1), nrows=1, ncols=len(lines), sharey=True) as (figure, panels):
        for axes, line in zip(panels[0], lines, strict=True):
            for model, colour in zip(models, plots.other_colours(), strict=False):
                own = [(point.at, point.change) for point in points if (point.model, point.line) == (model, line)]
                plots.draw_line(axes, model, own, colour)
            axes.axhline(0, color=plots.MUTED, linewidth=1)
            plots.halving_axis(axes, sorted({point.at for point in points}))
            axes.set_xlabel(axis)
            axes.set_title(line)
        panels[0][0].set_ylabel("change of the reward, σ of the base")
        panels[0][0].legend()
        plots.save(figure, output / "capacity")


def line_folder(model, line):
    """The folder of the results of a model and line, in the experiment's."""
    return "_".join("".join(sign if sign.isalnum() else "_" for sign in name).strip("_") for name in (model, line) if name)


def main():
    args = parse(JobSettings, description=__doc__)
    from dp2osr.experiments.run import run_experiments

    name = args.experiment or "capacity"
    experiments = load_capacity(name, args.preset)
    first, output = next(iter(experiments.values())), args.results_folder(Path(name).stem)
    found = run_experiments(args, {output / line_folder(*key): experiment for key, experiment in experiments.items()})
    if args.plan:
        return
    sizes = {model: trained_parameters(experiment) for (model, _), experiment in experiments.items()}
    points = [point for key, results in zip(experiments, found, strict=True) for point in points_of(*key, results)]
    text = capacity_markdown(first.title, first.axis, points, sizes)
    write_text(output / "capacity.md", text)
    write_text(output / "capacity.csv", csv_text(points_frame(points, sizes)))
    draw_capacity(points, first.axis, output)
    print(f"\n{text}\nfiles: {output}/capacity.md, .csv, .png and .svg")


if __name__ == "__main__":
    run(main)
