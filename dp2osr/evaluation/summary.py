"""What is written of an `Evaluation` beside its page: sentences, tables, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from dp2osr.errors import counted
from dp2osr.evaluation.compare import BICUBIC, REWARD
from dp2osr.evaluation.tables import aligned, interval, markdown, with_direction, with_spread

if TYPE_CHECKING:
    from dp2osr.stats import Estimate

# ---------------------------------------------------------------- sentences


def headlines(evaluation: Any) -> list[str]:
    """`G = 0.45 [0.31, 0.58] over 15 photographs x 16 seeds: policy better on 14 of 15 images`, a line a compared method."""
    over = f"over {counted(evaluation.num_photographs, 'photograph')} x {evaluation.num_candidates} seeds"
    if not evaluation.compared:
        return [f"{evaluation.base}: spread within a group σ = {evaluation.sigma:.3f} {over}"]
    images = counted(len(evaluation.image_ids), "image")
    return [
        f"G = {interval(evaluation.gain(name).estimate)} {over}: {name} better on {evaluation.improved(name)} of {images}"
        for name in evaluation.compared
    ]


def worst_sentence(evaluation: Any, method: str) -> str:
    """How far the floor rose, in the paper's terms (its tuned Worst@64 reaches the base's Mean@64)."""
    total, estimate, base = evaluation.num_candidates, evaluation.worst_raised[method], evaluation.base
    if math.isnan(estimate.value):
        return f"Worst@{total}: n/a"
    bounds = "" if math.isnan(estimate.low) else f" [{estimate.low:.0%}, {estimate.high:.0%}]"
    verb = "raised" if estimate.value >= 0 else "lowered"
    return f"Worst@{total} {verb} by {abs(estimate.value):.0%}{bounds} of the distance from {base}'s Worst to {base}'s Mean"


def bicubic_sentence(evaluation: Any, method: str) -> str:
    """On which metrics the method beats bicubic, and on which bicubic wins (by the mean, interval or not)."""
    said, about = [], evaluation.results.metrics
    for rewarded, where in ((True, "of the reward"), (False, "outside it")):
        for mode in ("FR", "NR"):
            names = [name for name in evaluation.metrics if (about.loc[name, "rewarded"], about.loc[name, "mode"]) == (rewarded, mode)]
            lost = [name for name in names if not evaluation.over_bicubic[method][name].value > 0]
            if names:
                wins = f" (bicubic wins: {', '.join(lost)})" if lost else ""
                said.append(f"{len(names) - len(lost)} of {len(names)} {mode} metrics {where}{wins}")
    return f"By the mean, {method} beats bicubic on " + ", ".join(said)


def sentences(evaluation: Any) -> list[str]:
    """What the tables say, in words: the worse metrics by name, bicubic's wins, the notes."""
    lines = []
    for name in evaluation.compared:
        lines.append(worst_sentence(evaluation, name) + f" ({name}).")
        groups = evaluation.verdicts(name)
        worse = f"worse on {', '.join(groups['worse'])}" if groups["worse"] else "worse on none"
        unclear = f", unclear on {', '.join(groups['unclear'])}" if groups["unclear"] else ""
        lines.append(f"By metric, {name} is better on {len(groups['better'])} of {len(evaluation.metrics)}, {worse}{unclear}.")
    lines += [bicubic_sentence(evaluation, method) + "." for method in evaluation.over_bicubic]
    return lines + evaluation.notes


# ---------------------------------------------------------------- tables

LEGEND = (
    "Mean over images and candidates ± std over seeds of the mean over images. Change: in units of the base's std within a group, "
    "sign aligned so that + is better, 95 % interval over photographs (cluster bootstrap); better or WORSE if the interval leaves zero out."
)


def set_of(evaluation: Any, metric: str) -> str:
    """`FR reward`, `NR reward` or `FR outside`, `NR outside`; "" for the reward itself."""
    about = evaluation.results.metrics.loc[metric]
    return "" if metric == REWARD else f"{about['mode']} {'reward' if about['rewarded'] else 'outside'}"


def cell_text(evaluation: Any, metric: str, column: str) -> str:
    """A metric's mean ± its spread over seeds, or the mean alone for a single image; "" where there is none."""
    if (metric, column) not in evaluation.cells.index:
        return ""
    cell = evaluation.cells.loc[metric, column]
    return with_spread(cell["mean"], cell["std_over_seeds"])


def text_table(evaluation: Any) -> pd.DataFrame:
    """A row a metric, the reward first: every column's mean, every method's change and verdict."""
    rows = []
    for metric in evaluation.results.metrics.index:
        row = [with_direction(metric, evaluation.results.metrics), set_of(evaluation, metric)]
        row += [cell_text(evaluation, metric, column) for column in evaluation.columns]
        for name in evaluation.compared:
            estimate = evaluation.changes[name][metric].estimate
            row += [interval(estimate, signed=True), estimate.verdict.upper() if estimate.verdict == "worse" else estimate.verdict]
        rows.append(row)
    changes = [title for name in evaluation.compared for title in (f"{name} − {evaluation.base}, σ", "")]
    return pd.DataFrame(rows, columns=["metric", "set", *evaluation.columns, *changes])


def reward_table(evaluation: Any) -> pd.DataFrame:
    """Best, Mean, Worst of M by method; bicubic is one image, so its three are one number."""
    total, rows = evaluation.num_candidates, []
    if BICUBIC in evaluation.rewards:
        rows.append(["bicubic (one image)", "", f"{evaluation.rewards[BICUBIC].mean():.3f}", ""])
    for name, curve in evaluation.curves.items():
        rows.append([name, *(f"{curve[key][-1]:.3f}" for key in ("best", "mean", "worst"))])
    return pd.DataFrame(rows, columns=["reward (pooled)", f"Best@{total}", "Mean", f"Worst@{total}"])


def terminal(evaluation: Any) -> str:
    """The summary a run ends with on the terminal; the last lines are the headlines."""
    texts = [aligned(text_table(evaluation)), aligned(reward_table(evaluation))]
    return "\n\n".join([*texts, "\n".join(sentences(evaluation)), "\n".join(headlines(evaluation))])


def summary_markdown(evaluation: Any) -> str:
    """The text of summary.md."""
    config = evaluation.config
    fr, nr = (", ".join(spec.name for spec in specs) or "none" for specs in (config.fr, config.nr))
    blocks = [
        "# Evaluation",
        "\n".join(f"**{line}**  " for line in headlines(evaluation)),
        "\n".join(f"- {line}" for line in sentences(evaluation)),
        "## Metrics",
        markdown(text_table(evaluation)),
        LEGEND,
        "## Reward",
        markdown(reward_table(evaluation)),
        f"Reward `{config.name}`: FR {fr}; NR {nr}. "
        f"Normalised per LR image over the candidates of {', '.join(evaluation.methods)} together; bicubic on the same scale, not clipped.",
    ]
    return "\n\n".join(blocks) + "\n"


def metrics_frame(evaluation: Any) -> pd.DataFrame:
    """A row a metric and column, as metrics.csv has them."""
    rows = []
    for (metric, column), cell in evaluation.cells.iterrows():
        direction = "lower" if evaluation.results.metrics.loc[metric, "lower_better"] else "higher"
        row = {"metric": metric, "set": set_of(evaluation, metric), "direction": direction, "method": column, **cell}
        change = evaluation.changes[column][metric].estimate if column in evaluation.changes else None
        over = evaluation.over_bicubic.get(column, {}).get(metric)
        row |= dict(zip(("change_in_sigma", "ci_low", "ci_high"), _bounds(change), strict=True))
        row["verdict"] = change.verdict if change else None
        names = ("over_bicubic_in_sigma", "over_bicubic_low", "over_bicubic_high")
        rows.append(row | dict(zip(names, _bounds(over), strict=True)))
    return pd.DataFrame(rows)


def _bounds(estimate: Estimate | None) -> tuple[float, float, float]:
    return (estimate.value, estimate.low, estimate.high) if estimate else (float("nan"),) * 3


# ---------------------------------------------------------------- JSON


def summary_json(evaluation: Any, settings: Mapping[str, Any]) -> str:
    """Everything a program may want to read: gains, curves, metrics, per-image rewards, settings. NaN is written as null."""
    rewards = evaluation.rewards
    document = {
        "base": evaluation.base,
        "methods": evaluation.methods,
        "num_images": len(evaluation.image_ids),
        "num_photographs": evaluation.num_photographs,
        "num_candidates": evaluation.num_candidates,
        "sigma": evaluation.sigma,
        "comparisons": {name: _comparison(evaluation, name) for name in evaluation.compared},
        "curves": evaluation.curves,
        "bicubic_reward": float(rewards[BICUBIC].mean()) if BICUBIC in rewards else None,
        "metrics": {metric: _metric(evaluation, metric) for metric in evaluation.metrics},
        "images": {image_id: _image(evaluation, place) for place, image_id in enumerate(evaluation.image_ids)},
        "notes": evaluation.notes,
        "settings": settings,
    }
    return json.dumps(_without_nan(document), indent=2, ensure_ascii=False) + "\n"


def _comparison(evaluation: Any, method: str) -> dict[str, Any]:
    improved = evaluation.improved(method)
    return {
        "G": vars(evaluation.gain(method).estimate),
        "worst_raised": vars(evaluation.worst_raised[method]),
        "images_improved": improved,
        "share_improved": improved / len(evaluation.image_ids),
    }


def _metric(evaluation: Any, metric: str) -> dict[str, Any]:
    about = evaluation.results.metrics.loc[metric]
    changes = {name: of[metric].estimate for name, of in evaluation.changes.items()}
    over = {name: of[metric] for name, of in evaluation.over_bicubic.items()}
    return {
        "mode": about["mode"],
        "in_reward": bool(about["rewarded"]),
        "lower_better": bool(about["lower_better"]),
        "values": {column: cell.to_dict() for column, cell in evaluation.cells.loc[metric].iterrows()},
        "change_in_sigma": {name: vars(estimate) | {"verdict": estimate.verdict} for name, estimate in changes.items()},
        "over_bicubic_in_sigma": {name: vars(estimate) | {"verdict": estimate.verdict} for name, estimate in over.items()},
    }


def _image(evaluation: Any, place: int) -> dict[str, Any]:
    of_image = {name: evaluation.rewards[name][place] for name in evaluation.methods}
    rewards = {name: {"best": values.max(), "mean": values.mean(), "worst": values.min()} for name, values in of_image.items()}
    if BICUBIC in evaluation.rewards:
        rewards[BICUBIC] = {"mean": evaluation.rewards[BICUBIC][place, 0]}
    return {"photograph": evaluation.photographs[place], "reward": rewards}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float):  # numpy's float64 included
        return None if not math.isfinite(value) else float(value)
    return value
