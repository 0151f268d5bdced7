"""How well a probe before the training orders the settings of a sweep over M and N."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, spearmanr

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.evaluation.figures import METHODS, save_figure, style
from dp2osr.evaluation.summary import interval
from dp2osr.evaluation.tables import markdown
from dp2osr.files import read_json, write_text
from dp2osr.reproduce.capacity import line_folder, load_capacity
from dp2osr.reproduce.grid import read_experiment, read_grid
from dp2osr.reproduce.program import PredictionSettings, results_folder
from dp2osr.reproduce.results import REWARD
from dp2osr.reproduce.runs import locked, run_alone
from dp2osr.reproduce.tasks import CANDIDATES, Program, Task, fingerprint, plan_grid
from dp2osr.rewards.table import SCORES
from dp2osr.stats import Estimate

PROBE = "probe"
SWEPT = {"num_candidates", "top_n", "groups_per_step"}  # what the arms of a sweep may differ in


@dataclass(frozen=True)
class Predicted:
    """A setting of the sweep: `gain` of the probe, Cov(r̂, R) in σ of the reward, `change` of the held-out reward, σ, with its interval."""

    arm: str
    size: int
    top_n: int
    gain: float
    change: float
    low: float
    high: float


class Sweep:
    """A grid over M and N alone, and the probe of its settings.

    Args:
        model: its name where an experiment has several, else "".
        results: folder of the grid's results.
        output: of all experiments.

    Raises:
        UserError: the arms differ in more than M and N; what `GridTasks.check` refuses.
    """

    def __init__(self, model, grid, results, output):
        self.model, self.grid, self.results, self.output = model, grid, results, output
        tasks = plan_grid(grid, output)
        tasks.check()
        common = {key: value for key, value in grid.arms[0].train.items() if key not in SWEPT}
        self.flags = grid.flags("train") | common
        self.settings = {arm.name: tuple((self.flags | arm.train).get(flag) for flag in ("num_candidates", "top_n")) for arm in grid.arms}
        if any(None in setting for setting in self.settings.values()):
            raise UserError(f"{grid.name}: not every arm says its num_candidates and top_n; a probe is compared with a sweep over them")
        others = [{key: value for key, value in arm.train.items() if key not in SWEPT} for arm in grid.arms]
        alike = all(other == common for other in others) and all(not arm.reward and arm.rounds == 1 for arm in grid.arms)
        if len(tasks.shared) > 1 or len(set(self.settings.values())) < len(self.settings) or not alike:
            raise UserError(f"{grid.name}: its arms differ in more than M and N; a probe is compared with a sweep over these alone")
        [self.shared] = tasks.shared
        self.task().check(grid.name)

    def task(self):
        """The probe's `Task`, named by the scores that are there now."""
        fingerprint.cache_clear()  # they may have been made, or made anew, since it was last asked
        return probe_task(self.grid, self.flags, self.settings.values(), self.shared.folder / CANDIDATES, self.output)

    def run(self, measured, resamples):
        """Probe what is missing; (rows, proposals): a `Predicted` for each arm, and the probe's two records of `suggest`.

        Args:
            measured: of `read_measured`.
        """
        from dp2osr.training.probe import suggest

        with locked(self.shared):
            run_alone(self.shared)
        task = self.task()
        with locked(task):
            run_alone(task)
        by_setting = {(record["M"], record["N"]): record for record in read_json(task.folder / PROBE / "probe.json")}
        rows = [Predicted(arm, *setting, by_setting[setting]["gain"], *measured[arm]) for arm, setting in self.settings.items()]
        return rows, suggest([by_setting[setting] for setting in self.settings.values()], resamples)


def read_sweeps(args):
    """(title, folder of the comparison, list of `Sweep`): one, or the first line of each model of an experiment with `models`."""
    path, content = read_experiment(args.experiment or "fig4", args.preset)
    output, folder = Path(args.output_dir), results_folder(args, path.stem)
    if "models" not in content:
        grid = read_grid(path, content)
        return grid.title, folder, [Sweep("", grid, folder, output)]
    first = {}
    for (model, line), grid in load_capacity(path, args.preset).items():
        first.setdefault(model, (line, grid))
    return (
        content["title"],
        folder,
        [Sweep(model, grid, folder / line_folder(model, line), output) for model, (line, grid) in first.items()],
    )


def run_prediction(description):
    """The whole of it, from the command line: probe, comparison, `prediction.md`, `.csv`, `.png` and `.svg` beside the sweep's results."""
    args = parse(PredictionSettings, description=description)
    title, folder, sweeps = read_sweeps(args)
    script = folder.name if not sweeps[0].model else "capacity"
    for sweep in sweeps:
        lacking = "" if (sweep.results / "results.csv").is_file() else f"; the sweep has to be run first: scripts/reproduce/{script}.py"
        done = "done" if sweep.task().is_done() else "missing"
        print(f"{sweep.grid.name}: a probe of {len(sweep.grid.arms)} settings, {done}{lacking}", flush=True)
    if args.plan:
        return
    measured = [read_measured(sweep.results / "results.csv", sweep.grid, script) for sweep in sweeps]
    found = {sweep.model: sweep.run(changes, args.bootstrap) for sweep, changes in zip(sweeps, measured, strict=True)}
    text = prediction_markdown(title, found)
    rows = {model: rows for model, (rows, _) in found.items()}
    write_text(folder / "prediction.md", text)
    write_text(folder / "prediction.csv", prediction_csv(rows))
    draw_prediction(rows, folder)
    print(f"\n{text}\nfiles: {folder}/prediction.md, .csv, .png and .svg")


def read_measured(path, grid, script):
    """{arm: (change of the reward, low, high)} of a sweep's results.csv; `UserError` where `script` has not run it to its end."""
    if not path.is_file():
        raise UserError(f"{path}: is missing; run scripts/reproduce/{script}.py first")
    rows = [row for row in csv.DictReader(path.open(encoding="utf-8")) if row["metric"] == REWARD]
    found = {row["arm"]: (float(row["change"]), float(row["low"]), float(row["high"])) for row in rows}
    lacking = [arm.name for arm in grid.arms if arm.name not in found]
    if lacking:
        raise UserError(f"{path}: has no results of {', '.join(lacking)}; run scripts/reproduce/{script}.py again")
    return found


def probe_task(grid, train, settings, candidates, output):
    """The `Task` of scripts/suggest_nm.py for the `settings`, (M, N), on a grid's candidates."""
    sizes, tops = (sorted(set(numbers)) for numbers in zip(*settings, strict=True))
    flags = {key: value for key, value in train.items() if key not in SWEPT | {"max_train_steps"}}
    flags |= {"lr_scheduler": "constant_with_warmup", "sizes": sizes, "tops": tops, "crop_suffix": grid.crop_suffix}
    paths = {"candidates_dir": str(candidates), "scores": str(candidates / SCORES)}
    program = Program("scripts/suggest_nm.py", PROBE, flags, {"output_dir": PROBE}, paths)
    return Task(
        output / "probes", [program], origin={"candidates": candidates.parent.name, "scores": fingerprint(str(candidates / SCORES))}
    )


def prediction_markdown(title, found):
    """Of each model a row a setting, rank correlations and what following the probe would have cost; of several their mean.

    Args:
        found: {model: (rows, proposals)} of `Sweep.run`.
    """
    parts = [
        f"# {title}: what a probe before the training said",
        "First-order gain on held-out photographs after a few steps (`scripts/suggest_nm.py`), the largest first, and the measured "
        "change of the held-out reward in σ of the base.",
    ]
    for model, (rows, proposals) in found.items():
        parts += [f"## {model}"] if model else []
        parts += _sweep_markdown(rows, proposals)
    if len(found) > 1:
        mean, p_value = mean_within([rows for rows, _ in found.values()])
        parts += ["## All models", f"Mean of the {len(found)} rank correlations: {mean:+.2f}, p = {p_value:.2g} (orders drawn at random)."]
    return "\n\n".join(parts) + "\n"


def _sweep_markdown(rows, proposals):
    cells = [
        [row.arm, str(row.size), str(row.top_n), f"{row.gain:.3f}", interval(Estimate(row.change, row.low, row.high), signed=True)]
        for row in sorted(rows, key=lambda row: -row.gain)
    ]
    found = rank_correlation(rows)
    lines = [f"All {len(rows)} settings: rank correlation {found.statistic:+.2f}, p = {found.pvalue:.2g}."]
    sizes = sorted({row.size for row in rows}, reverse=True)
    for size in sizes if len(sizes) > 1 else ():
        line = [row for row in rows if row.size == size]
        if len(line) > 2:
            lines.append(f"M = {size}, {len(line)} N: {rank_correlation(line).statistic:+.2f}.")
    best = max(rows, key=lambda row: row.change)
    for title, record in zip(("Its best", "The smallest M that it cannot tell from it"), proposals, strict=True):
        [row] = [row for row in rows if (row.size, row.top_n) == (record["M"], record["N"])]
        lost = f"{best.change - row.change:.2f} below the sweep's best, {best.arm}"
        lines.append(f"{title}: N = {row.top_n} of M = {row.size}, measured {row.change:+.2f}, {lost}.")
    return [markdown(["setting", "M", "N", "probe", "measured"], cells), *lines]


def rank_correlation(rows):
    """Spearman's, of the probe's gains and the measured changes."""
    return spearmanr([row.gain for row in rows], [row.change for row in rows])


def mean_within(sweeps, draws=20000, seed=0):
    """(mean rank correlation within sweeps, how often gains in a random order within each have as large a mean)."""
    rng, mean = np.random.default_rng(seed), float(np.mean([rank_correlation(rows).statistic for rows in sweeps]))
    chance = np.zeros(draws)
    for rows in sweeps:
        changes = rankdata([row.change for row in rows])
        shuffled = rng.permuted(np.tile(rankdata([row.gain for row in rows]), (draws, 1)), axis=1)
        centred = shuffled - shuffled.mean(axis=1, keepdims=True), changes - changes.mean()
        chance += centred[0] @ centred[1] / np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum())
    return mean, float((1 + (chance / len(sweeps) >= mean - 1e-9).sum()) / (1 + draws))


def prediction_csv(found):
    """Args: {model: rows}."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    several = len(found) > 1
    writer.writerow([*(["model"] if several else []), "arm", "M", "N", "gain", "change", "low", "high"])
    for model, rows in found.items():
        for row in rows:
            numbers = (f"{value:.6g}" for value in (row.gain, row.change, row.low, row.high))
            writer.writerow([*([model] if several else []), row.arm, row.size, row.top_n, *numbers])
    return stream.getvalue()


def draw_prediction(found, output):
    """Measured against predicted, N beside each point, a colour for each M or each model: `prediction.png` and `.svg`.

    Args:
        found: {model: rows}.
    """
    from matplotlib.figure import Figure

    lines = [(model, size) for model, rows in found.items() for size in sorted({row.size for row in rows}, reverse=True)]
    with style():
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for place, (model, size) in enumerate(lines):
            line = [row for row in found[model] if row.size == size]
            colour = METHODS[1 + place % (len(METHODS) - 1)]
            label = ", ".join([model] * bool(model) + [f"M = {size}"] * (len(lines) > len(found) or not model))
            axes.vlines([row.gain for row in line], [row.low for row in line], [row.high for row in line], color=colour, alpha=0.4)
            axes.plot([row.gain for row in line], [row.change for row in line], "o", color=colour, label=label)
            for row in line:
                axes.annotate(f"{row.top_n}", (row.gain, row.change), textcoords="offset points", xytext=(5, 3), fontsize=8)
        axes.set_xlabel("probe: first-order gain (N beside each point)")
        axes.set_ylabel("measured change, σ of the base")
        axes.legend()
        for kind in ("png", "svg"):
            save_figure(figure, output / f"prediction.{kind}")
