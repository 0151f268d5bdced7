"""Does a probe before the training order the settings of a sweep over M and N? Run the sweep first, `python scripts/reproduce.py fig4`.

python studies/predict_nm.py
"""

from dataclasses import dataclass

import pandas as pd
from scipy.stats import spearmanr

from dp2osr.cli import parse
from dp2osr.errors import UserError, run
from dp2osr.evaluation import plots
from dp2osr.evaluation.compare import REWARD
from dp2osr.evaluation.tables import csv_text, interval, markdown
from dp2osr.experiments.plan import plan_experiment
from dp2osr.experiments.settings import RunSettings
from dp2osr.experiments.spec import experiment_of, find_experiment
from dp2osr.experiments.steps import Step, run_alone
from dp2osr.files import read_json, write_text
from dp2osr.rewards.table import SCORES
from dp2osr.schema import read_lines
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
    """An experiment over M and N alone, and the probe of its settings.

    Args:
        results: folder of the experiment's results.
        output: of all experiments.
        script: the command that runs the sweep.

    Raises:
        UserError: the arms differ in more than M and N; what `Plan` refuses.
    """

    def __init__(self, experiment, results, output, script):
        self.experiment, self.results, self.script = experiment, results, script
        plan, arms = plan_experiment(experiment, output, results), list(experiment.arms.values())
        plan.check_flags()
        plan.check_inputs(output)
        common = {key: value for key, value in arms[0].train.items() if key not in SWEPT}
        flags = experiment.flags("train") | common
        self.settings = {arm.name: tuple((flags | arm.train).get(flag) for flag in ("num_candidates", "top_n")) for arm in arms}
        if any(None in setting for setting in self.settings.values()):
            raise UserError(
                f"{experiment.name}: not every arm says its num_candidates and top_n; a probe is compared with a sweep over them"
            )
        others = [{key: value for key, value in arm.train.items() if key not in SWEPT} for arm in arms]
        alike = all(other == common for other in others) and all(not arm.reward and arm.rounds == 1 for arm in arms)
        if len(plan.shared) > 1 or len(set(self.settings.values())) < len(self.settings) or not alike:
            raise UserError(f"{experiment.name}: its arms differ in more than M and N; a probe is compared with a sweep over these alone")
        [self.shared] = plan.shared
        self.step = probe_step(experiment, flags, self.settings.values(), self.shared[-1].output.parent, results / PROBE)
        self.step.check(experiment.name)

    def measured(self):
        """{arm: (change of the reward, low, high)} of the sweep's results.csv; `UserError` where it was not run to its end."""
        path = self.results / "results.csv"
        if not path.is_file():
            raise UserError(f"{path}: is missing; run {self.script} first")
        rows = pd.read_csv(path)
        rows = rows[rows["metric"] == REWARD].set_index("arm")[["change", "low", "high"]]
        lacking = [arm for arm in self.settings if arm not in rows.index]
        if lacking:
            raise UserError(f"{path}: has no results of {', '.join(lacking)}; run {self.script} again")
        return {arm: tuple(row) for arm, row in rows.iterrows()}

    def run(self, measured, resamples):
        """Probe what is missing; (rows, proposals): a `Predicted` for each arm, and the probe's two records of `suggest`."""
        from studies.probe import suggest

        run_alone([*self.shared, self.step])
        by_setting = {(record["M"], record["N"]): record for record in read_json(self.step.output)}
        rows = [Predicted(arm, *setting, by_setting[setting]["gain"], *measured[arm]) for arm, setting in self.settings.items()]
        return rows, suggest([by_setting[setting] for setting in self.settings.values()], resamples)


def probe_step(experiment, train, settings, candidates, folder):
    """The `Step` of scripts/suggest_nm.py for the `settings`, (M, N), on an experiment's candidates."""
    sizes, tops = (sorted(set(numbers)) for numbers in zip(*settings, strict=True))
    flags = {key: value for key, value in train.items() if key not in SWEPT | {"max_train_steps"}}
    flags |= {"lr_scheduler": "constant_with_warmup", "sizes": sizes, "tops": tops, "crop_suffix": experiment.crop_suffix}
    flags |= {"candidates_dir": str(candidates), "scores": str(candidates / SCORES), "output_dir": str(folder / PROBE)}
    return Step("scripts/suggest_nm.py", PROBE, folder, flags, folder / PROBE / "probe.json")


def read_sweep(args):
    """(title, `Sweep`) of the experiment that `RunSettings` name."""
    path = find_experiment(args.experiment or "fig4", args.preset)
    experiment = experiment_of(path, read_lines(path, "an experiment"))
    script = f"scripts/reproduce.py {path.stem}"
    return experiment.title, Sweep(experiment, args.results_folder(path.stem), args.output_dir, script)


def prediction_markdown(title, rows, proposals):
    """A row a setting, rank correlations and what following the probe would have cost; of what `Sweep.run` returns."""
    parts = [
        f"# {title}: what a probe before the training said",
        "First-order gain on held-out photographs after a few steps (`scripts/suggest_nm.py`), the largest first, and the measured "
        "change of the held-out reward in σ of the base.",
        *_sweep_markdown(rows, proposals),
    ]
    return "\n\n".join(parts) + "\n"


def _sweep_markdown(rows, proposals):
    cells = [
        [row.arm, row.size, row.top_n, f"{row.gain:.3f}", interval(Estimate(row.change, row.low, row.high), signed=True)]
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
    return [markdown(pd.DataFrame(cells, columns=["setting", "M", "N", "probe", "measured"])), *lines]


def rank_correlation(rows):
    """Spearman's, of the probe's gains and the measured changes."""
    return spearmanr([row.gain for row in rows], [row.change for row in rows])


def draw_prediction(rows, output):
    """Measured against predicted, N beside each point, a colour for each M: `prediction.png` and `.svg`."""
    sizes = sorted({row.size for row in rows}, reverse=True)
    with plots.drawing() as (figure, axes):
        for size, colour in zip(sizes, plots.other_colours(), strict=False):
            line = [row for row in rows if row.size == size]
            axes.vlines([row.gain for row in line], [row.low for row in line], [row.high for row in line], color=colour, alpha=0.4)
            axes.plot([row.gain for row in line], [row.change for row in line], "o", color=colour, label=f"M = {size}")
            for row in line:
                axes.annotate(f"{row.top_n}", (row.gain, row.change), textcoords="offset points", xytext=(5, 3), fontsize=8)
        axes.set(xlabel="probe: first-order gain (N beside each point)", ylabel="measured change, σ of the base")
        axes.legend()
        plots.save(figure, output / "prediction")


def main():
    args = parse(RunSettings, description=__doc__)
    title, sweep = read_sweep(args)
    lacking = "" if (sweep.results / "results.csv").is_file() else f"; the sweep has to be run first: {sweep.script}"
    done = "done" if sweep.step.is_done() else "missing"
    print(f"{sweep.experiment.name}: a probe of {len(sweep.settings)} settings, {done}{lacking}", flush=True)
    if args.plan:
        return
    rows, proposals = sweep.run(sweep.measured(), args.bootstrap)
    text, folder = prediction_markdown(title, rows, proposals), sweep.results
    write_text(folder / "prediction.md", text)
    write_text(folder / "prediction.csv", csv_text(pd.DataFrame([vars(row) for row in rows]).rename(columns={"size": "M", "top_n": "N"})))
    draw_prediction(rows, folder)
    print(f"\n{text}\nfiles: {folder}/prediction.md, .csv, .png and .svg")


if __name__ == "__main__":
    run(main)
