"""What an experiment leaves: tables in Markdown and CSV, figures, pictures, settings."""

import csv
import io
from dataclasses import asdict

from dp2osr.evaluation.summary import interval
from dp2osr.evaluation.tables import bold_if_clear, markdown
from dp2osr.files import write_json, write_text
from dp2osr.provenance import versions
from dp2osr.reproduce.drawing import draw_axis, draw_curves, draw_results
from dp2osr.reproduce.results import BASE, REWARD, collect
from dp2osr.sampling.candidate_sheet import contact_sheet


def write_results(grid, folders, output, resamples=2000, rivals=None, gt_path=None):
    """Write `results.csv`, `results.md`, `results.png`, `results.svg` and `settings.json` of a grid to `output`, and print the tables.

    Where the grid has an axis, also `axis.png` and `axis.svg`; where it asks for them, `best_mean_worst.png`, `.svg` and `.csv`, and
    `pictures.png`: LR, bicubic, base, each arm's first training and GT, the same seed for all.

    Args:
        grid, folders, resamples, rivals: of `collect`.
        gt_path: folder of the GT images, for pictures.
    """
    results = collect(grid, folders, resamples, rivals=rivals)
    output.mkdir(parents=True, exist_ok=True)
    text = results_markdown(results)
    write_text(output / "results.md", text)
    write_text(output / "results.csv", results_csv(results))
    draw_results(results, output)
    if grid.axis:
        draw_axis(results, output)
    if grid.best_mean_worst:
        write_text(output / "best_mean_worst.csv", curves_csv(results))
        draw_curves(results, output)
    if grid.pictures:
        shown = {BASE: folders[BASE]} | {arm.name: folders[arm.run_name(arm.seeds[0])] for arm in grid.arms}
        contact_sheet(shown, gt_path, output / "pictures.png", columns=1, zoom=2, image_ids=results.furthest_apart[: grid.pictures])
    about = asdict(grid) | {"arms": {arm.name: asdict(arm) for arm in grid.arms}}
    write_json(output / "settings.json", about | {"bootstrap": resamples, "runs": folders, "versions": versions()})
    print(f"\n{text}\nfiles: {output}/results.md, .csv, .png, .svg and settings.json")
    return results


def results_markdown(results):
    """Two tables: every arm against the base, and against the first arm."""
    first, *others = results.arms
    photographs, crops = results.num_photographs, results.num_images
    most = max(len(arm.seeds) for arm in results.arms)
    drawn = "photographs and trainings" if most > 1 else "photographs; one training each, whose own chance is not in it"
    lines = [
        f"# {results.grid.title}",
        f"{crops} images of {photographs} held-out photographs × {results.num_candidates} seeds. Change in units of the base's spread "
        f"within a group, + is better, 95 % interval over {drawn}; ± is the standard deviation over trainings. "
        f"The reward is `{results.grid.evaluated_by}`, pooled over all runs; metrics with * are in it.",
        *results.notes,
        "## Against the base",
        table(results, results.arms, lambda arm: arm.changes),
        "Mean reward, from 0 to 1 over the models pooled here: "
        + ", ".join(f"{name} {value:.3f}" for name, value in results.rewards.items()),
    ]
    if others:
        compared = [arm for arm in others if arm.differences]
        if compared:
            lines += [f"## Against {first.name}, the same training seeds", table(results, compared, lambda arm: arm.differences)]
    if results.rivals:
        lines += ["## Other methods against the base", table(results, results.rivals, lambda rival: rival.changes)]
    if results.grid.best_mean_worst:
        lines += ["## Best, Mean and Worst of m candidates", curves_table(results)]
    return "\n\n".join(lines) + "\n"


def table(results, arms, of_arm):
    """Metrics in rows, arms in columns."""
    rows = []
    for name, (mode, rewarded) in results.metrics.items():
        cells = [_cell(of_arm(arm)[name]) if name in of_arm(arm) else "" for arm in arms]
        rows.append([f"{name}{'*' if rewarded and name != REWARD else ''}", mode, *cells])
    return markdown(["metric", "set", *(arm.name for arm in arms)], rows)


def _cell(change):
    text = interval(change.estimate, signed=True)
    if len(change.by_seed) > 1:
        value, rest = text.split(" ", 1) if " " in text else (text, "")
        text = f"{value} ± {change.by_seed.std(ddof=1):.2f} {rest}".strip()
    return bold_if_clear(text, change.estimate)


def curves_table(results):
    """Markdown: Best, Mean and Worst of m in rows, base and arms in columns."""
    rows = [
        [f"{kind.capitalize()}@{m}", *(f"{curve[kind][place]:.3f}" for curve in results.curves.values())]
        for kind in ("best", "mean", "worst")
        for place, m in enumerate(results.curves[BASE]["m"])
        if kind != "mean" or not place
    ]
    return markdown(["", *results.curves], rows).replace("Mean@1 ", "Mean ")


def results_csv(results):
    """One row an arm and metric: change, interval, difference to the first arm, interval, and each training's change."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    seeds = sorted({seed for arm in results.arms for seed in arm.seeds})
    columns = ["arm", "metric", "mode", "in_reward", "change", "low", "high", "difference", "difference_low", "difference_high"]
    writer.writerow([*columns, *(f"seed_{seed}" for seed in seeds)])
    for arm in [*results.arms, *results.rivals]:
        for name, (mode, rewarded) in results.metrics.items():
            if name not in arm.changes:
                continue
            row = [arm.name, name, mode, rewarded]
            for change in (arm.changes[name], arm.differences.get(name)):
                estimate = change and change.estimate
                row += [f"{value:.6g}" for value in (estimate.value, estimate.low, estimate.high)] if estimate else ["", "", ""]
            by_seed = dict(zip(arm.seeds, arm.changes[name].by_seed, strict=True))
            writer.writerow([*row, *(f"{by_seed[seed]:.6g}" if seed in by_seed else "" for seed in seeds)])
    return stream.getvalue()


def curves_csv(results):
    """One row a model and m."""
    lines = ["model,m,best,mean,worst"]
    for name, curve in results.curves.items():
        lines += [
            ",".join([name, str(m), *(f"{curve[kind][i]:.6g}" for kind in ("best", "mean", "worst"))]) for i, m in enumerate(curve["m"])
        ]
    return "\n".join(lines) + "\n"
