"""An experiment from its YAML to its tables: say what is missing, check everything, run it, write the results."""

from collections.abc import Mapping
from pathlib import Path

from dp2osr.errors import UserError
from dp2osr.experiments.arm_results import ExperimentResults, write_results
from dp2osr.experiments.cost import expected, read_costs
from dp2osr.experiments.image_tables import load_image_table, run_image_table
from dp2osr.experiments.plan import Plan, plan_experiment
from dp2osr.experiments.settings import ExperimentSettings
from dp2osr.experiments.spec import Experiment, experiment_of, find_experiment
from dp2osr.experiments.steps import Pool, default_jobs, run_alone
from dp2osr.outputs import check_output
from dp2osr.schema import read_lines


def run_experiment(args: ExperimentSettings) -> None:
    """The whole of the experiment or image table that `ExperimentSettings` name."""
    check_output(args.output_dir)
    path = find_experiment(args.experiment or args.name, args.preset)
    content, results = read_lines(path, "an experiment"), args.results_folder(path.stem)
    if "sets" in content:
        run_image_table(load_image_table(path, args.preset), results, args)
    else:
        run_experiments(args, {results: experiment_of(path, content)})


def run_experiments(args: ExperimentSettings, experiments: Mapping[Path, Experiment]) -> list[ExperimentResults]:
    """Say what is missing, check all, and unless it is but a plan run them one after the other.

    Args:
        experiments: by the folder of their results.
    """
    plans = {results: plan_experiment(experiment, args.output_dir, results) for results, experiment in experiments.items()}
    for plan in plans.values():
        plan.check_flags()
        print(plan.summary() + expected(plan.missing(), read_costs(plan.experiment.stages)), flush=True)
    for plan in plans.values():
        plan.check_inputs(args.output_dir)
    if args.plan:
        return []
    found, failed = [], []
    for results, plan in plans.items():
        try:
            run_plan(plan, args.jobs)
        except UserError as error:  # the next experiment may go well
            failed.append(f"{plan.experiment.name}: {error}")
            continue
        found.append(write_results(plan, results, args.bootstrap))
    if failed:
        raise UserError("; ".join(failed))
    return found


def run_plan(plan: Plan, jobs: int | None) -> None:
    """Do what is missing, in `jobs` of `Pool`, by default `default_jobs`; `UserError` where a program failed, which names its log."""
    for steps in plan.shared:
        run_alone(steps)
    Pool(jobs or default_jobs()).run(plan.chains, plan.experiment.name)
