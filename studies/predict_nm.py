"""Does a probe before the training order the settings of a sweep over M and N? Run the sweep first, `python scripts/reproduce.py fig4`.

python studies/predict_nm.py
"""

import pandas as pd
from scipy.stats import spearmanr

from dp2osr.cli import parse
from dp2osr.errors import UserError, run
from dp2osr.evaluation import plots
from dp2osr.evaluation.compare import REWARD
from dp2osr.evaluation.tables import csv_text, interval, markdown
from dp2osr.experiments.plan import plan_experiment
from dp2osr.experiments.settings import RunSettings
from dp2osr.experiments.spec import load_experiment
from dp2osr.experiments.steps import Step, run_alone
from dp2osr.files import read_json, write_text
from dp2osr.rewards.table import SCORES
from dp2osr.stats import Estimate

PROBE = "probe"
SWEPT = {"num_candidates", "top_n", "groups_per_step"}  # what the arms of a sweep may differ in


def settings_of(experiment):
    """{arm: (M, N)} of an experiment; `UserError` where its arms differ in more than M and N, or do not say them."""
    flags, arms = experiment.flags("train"), experiment.arms.values()
    settings = {arm.name: tuple((flags | arm.train).get(flag) for flag in ("num_candidates", "top_n")) for arm in arms}
    if any(None in setting for setting in settings.values()):
        raise UserError(f"{experiment.name}: not every arm says its num_candidates and top_n; a probe is compared with a sweep over them")
    others = [(common_flags(arm.train), arm.sample, arm.degradation) for arm in arms]
    alike = all(other == others[0] for other in others) and all(not arm.reward and arm.rounds == 1 for arm in arms)
    if len(set(settings.values())) < len(settings) or not alike:
        raise UserError(f"{experiment.name}: its arms differ in more than M and N; a probe is compared with a sweep over these alone")
    return settings


def common_flags(train):
    """The flags of training without those that are swept."""
    return {key: value for key, value in train.items() if key not in SWEPT}


def probe_step(experiment, settings, candidates, folder):
    """The `Step` of scripts/suggest_nm.py for the `settings`, {arm: (M, N)}, on an experiment's candidates."""
    sizes, tops = (sorted(set(numbers)) for numbers in zip(*settings.values(), strict=True))
    flags = common_flags(experiment.flags("train") | next(iter(experiment.arms.values())).train)
    flags.pop("max_train_steps", None)
    flags |= {"lr_scheduler": "constant_with_warmup", "sizes": sizes, "tops": tops, "crop_suffix": experiment.crop_suffix}
    flags |= {"candidates_dir": str(candidates), "scores": str(candidates / SCORES), "output_dir": str(folder / PROBE)}
    return Step("scripts/suggest_nm.py", PROBE, folder, flags, folder / PROBE / "probe.json")


def read_measured(path, arms, script):
    """A frame by arm of the reward's change, low and high in the sweep's results.csv; `UserError` where it was not run to its end."""
    if not path.is_file():
        raise UserError(f"{path}: is missing; run {script} first")
    rows = pd.read_csv(path)
    rows = rows[rows["metric"] == REWARD].set_index("arm")[["change", "low", "high"]]
    lacking = [arm for arm in arms if arm not in rows.index]
    if lacking:
        raise UserError(f"{path}: has no results of {', '.join(lacking)}; run {script} again")
    return rows


def prediction_markdown(title, table, proposals):
    """What a probe said beside what was measured, rank correlations, and what following the probe would have cost.

    Args:
        table: a row a setting: arm, M, N, `gain` of the probe (Cov(r̂, R) in σ of the reward), `change` of the held-out reward, low, high.
        proposals: the probe's two records of `suggest`.
    """
    largest_first = table.sort_values("gain", ascending=False, kind="stable")
    measured = [interval(Estimate(row.change, row.low, row.high), signed=True) for row in largest_first.itertuples()]
    shown = pd.DataFrame({"setting": largest_first["arm"], "M": largest_first["M"], "N": largest_first["N"]})
    shown = shown.assign(probe=largest_first["gain"].map("{:.3f}".format), measured=measured)
    found = spearmanr(table["gain"], table["change"])
    blocks = [
        f"# {title}: what a probe before the training said",
        "First-order gain on held-out photographs after a few steps (`scripts/suggest_nm.py`), the largest first, and the measured "
        "change of the held-out reward in σ of the base.",
        markdown(shown),
        f"All {len(table)} settings: rank correlation {found.statistic:+.2f}, p = {found.pvalue:.2g}.",
    ]
    of_sizes = list(table.groupby("M"))
    for size, rows in reversed(of_sizes) if len(of_sizes) > 1 else ():
        if len(rows) > 2:
            blocks.append(f"M = {size}, {len(rows)} N: {spearmanr(rows['gain'], rows['change']).statistic:+.2f}.")
    best = table.loc[table["change"].idxmax()]
    for what, record in zip(("Its best", "The smallest M that it cannot tell from it"), proposals, strict=True):
        change = table.set_index(["M", "N"]).loc[(record["M"], record["N"]), "change"]
        lost = f"{best['change'] - change:.2f} below the sweep's best, {best['arm']}"
        blocks.append(f"{what}: N = {record['N']} of M = {record['M']}, measured {change:+.2f}, {lost}.")
    return "\n\n".join(blocks) + "\n"


def draw_prediction(table, output):
    """Measured against predicted, N beside each point, a colour for each M: `prediction.png` and `.svg`."""
    with plots.drawing() as (figure, axes):
        for (size, rows), colour in zip(reversed(list(table.groupby("M"))), plots.other_colours(), strict=False):
            axes.vlines(rows["gain"], rows["low"], rows["high"], color=colour, alpha=0.4)
            axes.plot(rows["gain"], rows["change"], "o", color=colour, label=f"M = {size}")
            for row in rows.itertuples():
                axes.annotate(f"{row.N}", (row.gain, row.change), textcoords="offset points", xytext=(5, 3), fontsize=8)
        axes.set(xlabel="probe: first-order gain (N beside each point)", ylabel="measured change, σ of the base")
        axes.legend()
        plots.save(figure, output / "prediction")


def main():
    args = parse(RunSettings, description=__doc__)
    experiment = load_experiment(args.experiment or "fig4", args.preset)
    results, script = args.results_folder(experiment.name), f"scripts/reproduce.py {experiment.name}"
    plan = plan_experiment(experiment, args.output_dir, results)
    plan.check_flags()
    plan.check_inputs(args.output_dir)
    settings, [candidates] = settings_of(experiment), plan.shared
    step = probe_step(experiment, settings, candidates[-1].output.parent, results / PROBE)
    step.check(experiment.name)
    lacking = "" if (results / "results.csv").is_file() else f"; the sweep has to be run first: {script}"
    done = "done" if step.is_done() else "missing"
    print(f"{experiment.name}: a probe of {len(settings)} settings, {done}{lacking}", flush=True)
    if args.plan:
        return
    measured = read_measured(results / "results.csv", settings, script)
    run_alone([*candidates, step])
    from studies.probe import suggest

    records = {(record["M"], record["N"]): record for record in read_json(step.output)}
    rows = [(arm, *setting, records[setting]["gain"], *measured.loc[arm]) for arm, setting in settings.items()]
    table = pd.DataFrame(rows, columns=["arm", "M", "N", "gain", "change", "low", "high"])
    text = prediction_markdown(experiment.title, table, suggest([records[setting] for setting in settings.values()], args.bootstrap))
    write_text(results / "prediction.md", text)
    write_text(results / "prediction.csv", csv_text(table))
    draw_prediction(table, results)
    print(f"\n{text}\nfiles: {results}/prediction.md, .csv, .png and .svg")


if __name__ == "__main__":
    run(main)
