"""How well a probe before the training orders the settings of a sweep over M and N."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import spearmanr

from dp2osr.config import parse_args, read_json, write_text
from dp2osr.errors import UserError
from dp2osr.evaluation.figures import METHODS, save_figure, style
from dp2osr.evaluation.statistics import Estimate
from dp2osr.evaluation.summary import interval
from dp2osr.evaluation.tables import markdown
from dp2osr.reproduce.grid import load_grid
from dp2osr.reproduce.program import build_parser, results_folder
from dp2osr.reproduce.results import REWARD
from dp2osr.reproduce.runs import locked, run_alone
from dp2osr.reproduce.tasks import CANDIDATES, Program, Task, fingerprint, plan_grid
from dp2osr.rewards.table import SCORES

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


def run_prediction(description):
    """The whole of it, from the command line: probe, comparison, `prediction.md`, `.csv`, `.png` and `.svg` beside the sweep's results."""
    args = parse_args(build_parser(description, jobs=False))
    from dp2osr.training.probe import suggest

    grid = load_grid(args.experiment or "fig4", args.preset)
    tasks = plan_grid(grid, Path(args.output_dir))
    tasks.check()
    output = results_folder(args, grid.name)
    train = grid.flags("train")
    settings = {arm.name: tuple((train | arm.train).get(flag) for flag in ("num_candidates", "top_n")) for arm in grid.arms}
    if any(None in setting for setting in settings.values()):
        raise UserError(f"{grid.name}: not every arm says its num_candidates and top_n; a probe is compared with a sweep over them")
    alike = all(set(arm.train) <= SWEPT and not arm.reward and arm.rounds == 1 for arm in grid.arms)
    if len(tasks.shared) > 1 or len(set(settings.values())) < len(settings) or not alike:
        raise UserError(f"{grid.name}: its arms differ in more than M and N; a probe is compared with a sweep over these alone")
    print(f"{grid.name}: a probe of {len(grid.arms)} settings", flush=True)
    [shared] = tasks.shared
    what = (grid, train, settings.values(), shared.folder / CANDIDATES, Path(args.output_dir))
    probe_task(*what).check(grid.name)
    if args.plan:
        return
    measured = read_measured(output / "results.csv", grid)
    with locked(shared):
        run_alone(shared)
    task = probe_task(*what)  # named by the scores that are there now
    with locked(task):
        run_alone(task)
    records = read_json(task.folder / PROBE / "probe.json")
    by_setting = {(record["M"], record["N"]): record for record in records}
    rows = [Predicted(name, *setting, by_setting[setting]["gain"], *measured[name]) for name, setting in settings.items()]
    text = prediction_markdown(grid, rows, suggest([by_setting[setting] for setting in settings.values()], args.bootstrap))
    write_text(output / "prediction.md", text)
    write_text(output / "prediction.csv", prediction_csv(rows))
    draw_prediction(rows, output)
    print(f"\n{text}\nfiles: {output}/prediction.md, .csv, .png and .svg")


def read_measured(path, grid):
    """{arm: (change of the reward, low, high)} of a sweep's results.csv; `UserError` where it was not run to its end."""
    if not path.is_file():
        raise UserError(f"{path}: is missing; run scripts/reproduce/{grid.name}.py first")
    rows = [row for row in csv.DictReader(path.open(encoding="utf-8")) if row["metric"] == REWARD]
    found = {row["arm"]: (float(row["change"]), float(row["low"]), float(row["high"])) for row in rows}
    lacking = [arm.name for arm in grid.arms if arm.name not in found]
    if lacking:
        raise UserError(f"{path}: has no results of {', '.join(lacking)}; run scripts/reproduce/{grid.name}.py again")
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


def prediction_markdown(grid, rows, proposals):
    """A row a setting, then rank correlations and what following the probe would have cost."""
    cells = [
        [row.arm, str(row.size), str(row.top_n), f"{row.gain:.3f}", interval(Estimate(row.change, row.low, row.high), signed=True)]
        for row in sorted(rows, key=lambda row: -row.gain)
    ]
    found = spearmanr([row.gain for row in rows], [row.change for row in rows])
    lines = [f"All {len(rows)} settings: rank correlation {found.statistic:+.2f}, p = {found.pvalue:.2g}."]
    for size in sorted({row.size for row in rows}, reverse=True):
        line = [row for row in rows if row.size == size]
        if len(line) > 2:
            within = spearmanr([row.gain for row in line], [row.change for row in line])
            lines.append(f"M = {size}, {len(line)} N: {within.statistic:+.2f}.")
    best = max(rows, key=lambda row: row.change)
    for title, record in zip(("Its best", "The smallest M that it cannot tell from it"), proposals, strict=True):
        [row] = [row for row in rows if (row.size, row.top_n) == (record["M"], record["N"])]
        lost = f"{best.change - row.change:.2f} below the sweep's best, {best.arm}"
        lines.append(f"{title}: N = {row.top_n} of M = {row.size}, measured {row.change:+.2f}, {lost}.")
    return (
        "\n\n".join(
            [
                f"# {grid.title}: what a probe before the training said",
                "First-order gain on held-out photographs after a few steps (`scripts/suggest_nm.py`), the largest first, and the measured "
                "change of the held-out reward in σ of the base.",
                markdown(["setting", "M", "N", "probe", "measured"], cells),
                *lines,
            ]
        )
        + "\n"
    )


def prediction_csv(rows):
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["arm", "M", "N", "gain", "change", "low", "high"])
    for row in rows:
        writer.writerow([row.arm, row.size, row.top_n, *(f"{value:.6g}" for value in (row.gain, row.change, row.low, row.high))])
    return stream.getvalue()


def draw_prediction(rows, output):
    """Measured against predicted, a colour for each M, N beside each point: `prediction.png` and `.svg`."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for place, size in enumerate(sorted({row.size for row in rows}, reverse=True)):
            line = [row for row in rows if row.size == size]
            colour = METHODS[1 + place % (len(METHODS) - 1)]
            axes.vlines([row.gain for row in line], [row.low for row in line], [row.high for row in line], color=colour, alpha=0.4)
            axes.plot([row.gain for row in line], [row.change for row in line], "o", color=colour, label=f"M = {size}")
            for row in line:
                axes.annotate(f"{row.top_n}", (row.gain, row.change), textcoords="offset points", xytext=(5, 3), fontsize=8)
        axes.set_xlabel("probe: first-order gain (N beside each point)")
        axes.set_ylabel("measured change, σ of the base")
        axes.legend()
        for kind in ("png", "svg"):
            save_figure(figure, output / f"prediction.{kind}")
