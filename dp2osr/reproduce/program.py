"""What every program of scripts/reproduce does: read the experiment, say what is missing, run it, write its results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dp2osr.cli import Settings, parse
from dp2osr.errors import UserError
from dp2osr.fields import Count, default_is


@dataclass(kw_only=True)
class PredictionSettings(Settings):
    """Which experiment, where, and how its intervals are drawn."""

    preset: Literal["tiny", "paper"] = "tiny"
    """configs/reproduce/<preset>."""
    experiment: Annotated[str | None, default_is("the program's")] = None
    """Another experiment of the same form, a YAML or a name of the preset's."""
    output_dir: str = "runs/reproduce"
    """Of all experiments, which share runs."""
    plan: bool = False
    """Say what is missing and stop."""
    bootstrap: Count = 2000
    """Resamples for the intervals."""


@dataclass(kw_only=True)
class ExperimentSettings(PredictionSettings):
    """The same, and how many of its trainings run at once."""

    jobs: Annotated[Count | None, default_is("the cores, eight at most; with a GPU 1")] = None
    """Runs side by side."""


def run_experiment(name, description):
    """The whole of an experiment of `configs/reproduce/<preset>/<name>.yaml`, from the command line."""
    args = parse(ExperimentSettings, description=description)
    from dp2osr.outputs import check_output
    from dp2osr.reproduce.grid import load_grid

    check_output(args.output_dir)

    grid = load_grid(args.experiment or name, args.preset)
    run_grids(args, {results_folder(args, grid.name): grid})


def run_grids(args, grids):
    """Say what is missing of grids, check all, and unless it is but a plan run them one after the other; returns their `GridResults`.

    Args:
        args: `ExperimentSettings`.
        grids: {folder of the results: `Grid`}.
    """
    from dp2osr.reproduce.cost import expected, read_costs
    from dp2osr.reproduce.results import score_rivals
    from dp2osr.reproduce.runs import run_grid
    from dp2osr.reproduce.tasks import plan_grid
    from dp2osr.reproduce.writing import write_results

    planned = {output: plan_grid(grid, Path(args.output_dir)) for output, grid in grids.items()}
    for tasks in planned.values():
        tasks.check_flags()
        print(tasks.summary() + expected(tasks.missing(), read_costs(tasks.grid.stages["train"].parent)), flush=True)
    for tasks in planned.values():
        tasks.check_inputs()
    if args.plan:
        return []
    found, failed = [], []
    for output, tasks in planned.items():
        try:
            folders, other_bases = run_grid(tasks, args.jobs)
        except UserError as error:  # the next experiment may go well
            failed.append(f"{tasks.grid.name}: {error}")
            continue
        output.mkdir(parents=True, exist_ok=True)
        rivals = score_rivals(tasks.grid, folders, other_bases, tasks.label, output)
        found.append(write_results(tasks.grid, folders, output, args.bootstrap, rivals, tasks.label.get("gt_path")))
    if failed:
        raise UserError("; ".join(failed))
    return found


def run_image_table(name, description):
    """The whole of an image table of `configs/reproduce/<preset>/<name>.yaml`, from the command line."""
    args = parse(ExperimentSettings, description=description)
    from dp2osr.evaluation.run_images import run_image_evaluation
    from dp2osr.outputs import check_output
    from dp2osr.reproduce import image_tables

    check_output(args.output_dir)
    table, absent = image_tables.without_absent(image_tables.load_image_table(args.experiment or name, args.preset))
    for said in absent:
        print(said)
    tasks = image_tables.plan_images(table, Path(args.output_dir))
    print(image_tables.summary(table, tasks), flush=True)
    image_tables.check(table, tasks)
    if args.plan:
        return
    for set_name, folders in image_tables.make_images(table, tasks, args.jobs).items():
        run_image_evaluation(image_tables.evaluation_flags(table, set_name, folders, results_folder(args, table.name), args.bootstrap))


def results_folder(args, name):
    """Where tables and figures go: an experiment of one's own is beside the presets', not over them."""
    return Path(args.output_dir) / ("own" if str(args.experiment).endswith((".yaml", ".yml")) else args.preset) / name
