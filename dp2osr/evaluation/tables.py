"""The evaluation as plain text, Markdown, CSV and JSON."""

import csv
import io
import json
import math

from dp2osr.evaluation import summary
from dp2osr.evaluation.summary import Cell

COLUMNS = ["metric", "set", "direction", "method", "mean", "std_over_seeds", "std_within_group"]
CHANGE_COLUMNS = ["change_in_sigma", "ci_low", "ci_high", "verdict", "over_bicubic_in_sigma", "over_bicubic_low", "over_bicubic_high"]


def columns_of(evaluation):
    """The columns of the per-metric table, in reading order."""
    present = {column for row in evaluation.rows for column in row.cells}
    return [name for name in ("bicubic", *evaluation.methods, "GT") if name in present]


def reward_cells(evaluation):
    """The reward as a metric: {column: Cell}."""
    cells = {} if evaluation.bicubic_rewards is None else {"bicubic": Cell(float(evaluation.bicubic_rewards.mean()))}
    for name, values in evaluation.rewards.items():
        seeds, within = values.mean(axis=0).std(ddof=1), values.std(axis=1, ddof=1).mean()
        cells[name] = Cell(float(values.mean()), float(seeds), float(within))
    return cells


def set_of(row):
    """`FR reward`, `NR reward` or `FR`, `NR` for a metric outside the reward."""
    return f"{row.mode} reward" if row.rewarded else f"{row.mode} outside"


def number(value, beside=None):
    """Four decimals where a metric lives around 1, two where it lives around 20; a spread takes the decimals of the mean it is `beside`."""
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if abs(value if beside is None else beside) >= 10 else f"{value:.4f}"


def fraction(place):
    """`1/16`, or the number where it is no fraction of 1."""
    return f"1/{1 / place:g}" if place < 1 and float(1 / place).is_integer() else f"{place:g}"


def with_spread(mean, std):
    """`0.3521 ± 0.0012`, or the mean alone where there is no spread."""
    return number(mean) + ("" if math.isnan(std) else f" ± {number(std, mean)}")


def cell_text(cell):
    """A metric's mean ± its spread over seeds, or the mean alone for a single image."""
    return "" if cell is None else with_spread(cell.mean, cell.std_over_seeds)


def bold_if_clear(text, estimate):
    """Markdown: bold where the estimate's interval leaves zero out."""
    return f"**{text}**" if estimate.verdict != "unclear" else text


# ---------------------------------------------------------------- text and Markdown


def metric_table(evaluation):
    """(header, rows of strings): the reward first, then one row a metric with every method's change and verdict."""
    columns = columns_of(evaluation)
    header = ["metric", "set", *columns]
    for comparison in evaluation.comparisons:
        header += [f"{comparison.name} − {evaluation.base}, σ", ""]
    cells = reward_cells(evaluation)
    first = ["reward ↑", "", *(cell_text(cells.get(column)) for column in columns)]
    for comparison in evaluation.comparisons:
        first += _change_texts(comparison.gain)
    rows = [first]
    for row in evaluation.rows:
        line = [f"{row.name} {'↓' if row.lower_better else '↑'}", set_of(row), *(cell_text(row.cells.get(column)) for column in columns)]
        for comparison in evaluation.comparisons:
            line += _change_texts(row.changes[comparison.name])
        rows.append(line)
    return header, rows


def _change_texts(estimate):
    verdict = estimate.verdict
    return [summary.interval(estimate, signed=True), verdict.upper() if verdict == "worse" else verdict]


def reward_table(evaluation):
    """(header, rows of strings): Best, Mean, Worst of M by method; bicubic is one image, so its three are one number."""
    total = evaluation.num_candidates
    header = ["reward (pooled)", f"Best@{total}", "Mean", f"Worst@{total}"]
    rows = []
    if evaluation.bicubic_rewards is not None:
        rows.append(["bicubic (one image)", "", f"{evaluation.bicubic_rewards.mean():.3f}", ""])
    for name, curve in evaluation.curves.items():
        rows.append([name, *(f"{curve[key][-1]:.3f}" for key in ("best", "mean", "worst"))])
    return header, rows


def aligned(header, rows):
    """Columns padded to one width: text left, the rest right-aligned."""
    table = [header, *rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    lines = [
        "  ".join(text.ljust(width) if i < 2 else text.rjust(width) for i, (text, width) in enumerate(zip(line, widths))).rstrip()
        for line in table
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def sentences(evaluation):
    """What the tables say, in words: the worse metrics by name, bicubic's wins, the notes."""
    lines = []
    for comparison in evaluation.comparisons:
        lines.append(summary.worst_sentence(evaluation, comparison) + f" ({comparison.name}).")
        groups = summary.verdicts(evaluation, comparison)
        worse = f"worse on {', '.join(groups['worse'])}" if groups["worse"] else "worse on none"
        unclear = f", unclear on {', '.join(groups['unclear'])}" if groups["unclear"] else ""
        lines.append(f"By metric, {comparison.name} is better on {len(groups['better'])} of {len(evaluation.rows)}, {worse}{unclear}.")
    if evaluation.bicubic_rewards is not None:
        lines += [summary.bicubic_sentence(evaluation, method) + "." for method in evaluation.methods]
    return lines + evaluation.notes


def headlines(evaluation):
    """One line a compared method; with a single method, its reward."""
    if evaluation.comparisons:
        return [summary.headline(evaluation, comparison) for comparison in evaluation.comparisons]
    photographs = summary.counted(evaluation.num_photographs, "photograph")
    return [f"{evaluation.base}: spread within a group σ = {evaluation.sigma:.3f} over {photographs} x {evaluation.num_candidates} seeds"]


LEGEND = (
    "Mean over images and candidates ± std over seeds of the mean over images. Change: in units of the base's std within a group, "
    "sign aligned so that + is better, 95 % interval over photographs (cluster bootstrap); better or WORSE if the interval leaves zero out."
)


def terminal(evaluation):
    """The summary a run ends with on the terminal; the last lines are the headlines."""
    blocks = [
        aligned(*metric_table(evaluation)),
        aligned(*reward_table(evaluation)),
        "\n".join(sentences(evaluation)),
        "\n".join(headlines(evaluation)),
    ]
    return "\n\n".join(blocks)


def summary_markdown(evaluation):
    """The text of summary.md."""
    config = evaluation.config
    blocks = [
        "# Evaluation",
        "\n".join(f"**{line}**  " for line in headlines(evaluation)),
        "\n".join(f"- {line}" for line in sentences(evaluation)),
        "## Metrics",
        markdown(*metric_table(evaluation)),
        LEGEND,
        "## Reward",
        markdown(*reward_table(evaluation)),
        f"Reward `{config.name}`: FR {', '.join(spec.name for spec in config.fr) or 'none'}; "
        f"NR {', '.join(spec.name for spec in config.nr) or 'none'}. "
        f"Normalised per LR image over the candidates of {', '.join(evaluation.methods)} together; bicubic on the same scale, not clipped.",
    ]
    return "\n\n".join(blocks) + "\n"


# ---------------------------------------------------------------- CSV and JSON


def metrics_csv(evaluation):
    """One line a metric and column; empty fields where a number does not exist."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS + CHANGE_COLUMNS)
    gains = {comparison.name: comparison.gain for comparison in evaluation.comparisons}
    for column, cell in reward_cells(evaluation).items():
        writer.writerow(["reward", "", "higher", column, *_numbers(cell), *_change_fields(gains.get(column)), "", "", ""])
    for row in evaluation.rows:
        for column, cell in row.cells.items():
            over = row.over_bicubic.get(column)
            fields = ["lower" if row.lower_better else "higher", column, *_numbers(cell), *_change_fields(row.changes.get(column))]
            writer.writerow([row.name, set_of(row), *fields, *(_bounds(over) if over else ("", "", ""))])
    return buffer.getvalue()


def _field(value):
    return "" if math.isnan(value) else f"{value:.6g}"


def _numbers(cell):
    return [_field(cell.mean), _field(cell.std_over_seeds), _field(cell.std_within_group)]


def _bounds(estimate):
    return [_field(estimate.value), _field(estimate.low), _field(estimate.high)]


def _change_fields(estimate):
    return [*_bounds(estimate), estimate.verdict] if estimate else ["", "", "", ""]


def summary_json(evaluation, settings):
    """Everything a program may want to read: gains, curves, metrics, per-image rewards, settings. NaN is written as null."""
    document = {
        "base": evaluation.base,
        "methods": evaluation.methods,
        "num_images": len(evaluation.image_ids),
        "num_photographs": evaluation.num_photographs,
        "num_candidates": evaluation.num_candidates,
        "sigma": evaluation.sigma,
        "comparisons": {comparison.name: _comparison(evaluation, comparison) for comparison in evaluation.comparisons},
        "curves": evaluation.curves,
        "bicubic_reward": None if evaluation.bicubic_rewards is None else float(evaluation.bicubic_rewards.mean()),
        "metrics": {row.name: _row(row) for row in evaluation.rows},
        "images": {image_id: _image(evaluation, i) for i, image_id in enumerate(evaluation.image_ids)},
        "notes": evaluation.notes,
        "settings": settings,
    }
    return json.dumps(_without_nan(document), indent=2, ensure_ascii=False) + "\n"


def _comparison(evaluation, comparison):
    return {
        "G": vars(comparison.gain),
        "worst_raised": vars(comparison.worst_raised),
        "images_improved": comparison.images_improved,
        "share_improved": comparison.images_improved / len(evaluation.image_ids),
    }


def _row(row):
    return {
        "mode": row.mode,
        "in_reward": row.rewarded,
        "lower_better": row.lower_better,
        "values": {column: vars(cell) for column, cell in row.cells.items()},
        "change_in_sigma": {name: vars(estimate) | {"verdict": estimate.verdict} for name, estimate in row.changes.items()},
        "over_bicubic_in_sigma": {name: vars(estimate) | {"verdict": estimate.verdict} for name, estimate in row.over_bicubic.items()},
    }


def _image(evaluation, i):
    rewards = {
        name: {"best": values[i].max(), "mean": values[i].mean(), "worst": values[i].min()} for name, values in evaluation.rewards.items()
    }
    if evaluation.bicubic_rewards is not None:
        rewards["bicubic"] = {"mean": evaluation.bicubic_rewards[i]}
    return {"photograph": evaluation.photographs[i], "reward": rewards}


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float):  # numpy's float64 included
        return None if not math.isfinite(value) else float(value)
    return value
