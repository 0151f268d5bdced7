"""report.html: one page that needs nothing but itself, in light or dark, on a screen of any width; and what all pages are made with."""

from __future__ import annotations

import base64
import colorsys
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dp2osr.evaluation import plots, summary
from dp2osr.evaluation.compare import BICUBIC, REWARD
from dp2osr.evaluation.tables import interval, number, with_direction

if TYPE_CHECKING:
    from PIL import Image

    from dp2osr.evaluation.pictures import Panel
    from dp2osr.rewards.config import RewardConfig
    from dp2osr.stats import Estimate

MARKS = {"better": "▲ better", "worse": "▼ worse", "unclear": "○ unclear"}


def render(template: str, **content: Any) -> str:
    """A page of `templates/`; texts are escaped."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"png": png_data, "setting": setting_text}
    environment.globals |= {"interval": interval, "number": number, "marks": MARKS}
    return environment.get_template(f"{template}.html.j2").render(**content)


def png_data(image: Image.Image) -> str:
    """A PIL image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def setting_text(value: object) -> str:
    """A setting as text; an absolute path keeps its last two parts, since the page travels and the sender's folders do not."""
    if isinstance(value, dict):
        return ", ".join(f"{key} = {setting_text(entry)}" for key, entry in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting_text(entry) for entry in value) or "–"
    text = str(value)
    name, equals, path = text.rpartition("=")
    if PurePath(path).is_absolute():
        return f"{name}{equals}…/" + "/".join(PurePath(path).parts[1:][-2:])
    return text


def metric_colours(config: RewardConfig) -> dict[str, str]:
    """{metric: CSS colour}: FR metrics in teals, NR metrics in ambers, darkest first."""
    colours = {}
    for metrics, hue in ((config.fr, 0.49), (config.nr, 0.09)):
        for i, spec in enumerate(metrics):
            lightness = 0.30 + 0.40 * i / (len(metrics) - 1) if len(metrics) > 1 else 0.5
            red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.62)
            colours[spec.name] = f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
    return colours


# ---------------------------------------------------------------- report.html


def report_html(
    evaluation: Any,
    panels: Sequence[Panel],
    settings: Mapping[str, Any],
    result_plots: Sequence[plots.Plot],
    training_plots: Sequence[plots.Plot],
) -> str:
    """The page as a string.

    Args:
        evaluation: `Evaluation`.
        panels: list of `pictures.Panel`.
        settings: {"flags": dict, "methods": {name: store settings}, "metrics": dict, "versions": dict}.
        result_plots, training_plots: of `plots`.
    """
    of_methods = [settings["methods"][name] for name in evaluation.methods]
    keys = dict.fromkeys(key for of_method in of_methods for key in of_method)
    return render(
        "report",
        evaluation=evaluation,
        headlines=summary.headlines(evaluation),
        sentences=summary.sentences(evaluation),
        cards=[_cards(evaluation, name) for name in evaluation.compared],
        result_plots=[Markup(plots.to_svg(*plot)) for plot in result_plots],
        training_plots=[Markup(plots.to_svg(*plot)) for plot in training_plots],
        reward_caption=_reward_caption(evaluation),
        legend=summary.LEGEND,
        rows=_rows(evaluation),
        panels=panels,
        colours=metric_colours(evaluation.config),
        settings=settings,
        sampling={key: [setting_text(of_method.get(key, "")) for of_method in of_methods] for key in keys},
    )


def _cards(evaluation: Any, name: str) -> list[tuple[str, str, str]]:
    """[(number, its interval or "", what it is)] of a method."""
    base, total, curves = evaluation.base, evaluation.num_candidates, evaluation.curves
    groups, raised, gain = evaluation.verdicts(name), evaluation.worst_raised[name], evaluation.gain(name).estimate
    rises = {key: f"{curves[base][key][-1]:.3f} → {curves[name][key][-1]:.3f}" for key in ("best", "mean", "worst")}
    where = f"of the way from {base}’s Worst@{total} to {base}’s Mean: where {name}’s Worst@{total} lies"
    worse = f"; worse: {', '.join(groups['worse'])}" if groups["worse"] else ""
    of_gain = f"G: Mean reward of {name} − {base}, in {base}’s spread within a group (σ = {evaluation.sigma:.3f})"
    improved = f"images where {name}’s Mean reward is above {base}’s"
    return [
        (*_big(gain, ".2f"), of_gain),
        (f"{evaluation.improved(name)} of {len(evaluation.image_ids)}", "", improved),
        (*_big(raised, ".0%"), where),
        (
            " ".join(f"{len(groups[key])} {MARKS[key][0]}" for key in ("better", "unclear", "worse")),
            "",
            f"metrics better, unclear, worse{worse}",
        ),
        (rises["mean"], "", f"Mean reward, {base} → {name}; Best {rises['best']}, Worst {rises['worst']}"),
    ]


def _big(estimate: Estimate, form: str) -> tuple[str, str]:
    value = "n/a" if math.isnan(estimate.value) else f"{estimate.value:{form}}"
    return value, "" if math.isnan(estimate.low) else f"[{estimate.low:{form}}, {estimate.high:{form}}]"


def _reward_caption(evaluation: Any) -> str:
    config = evaluation.config
    fr, nr = (", ".join(spec.name for spec in metrics) or "none" for metrics in (config.fr, config.nr))
    bound = ", NR scores bounded by the GT's own" if config.bounded else ""
    text = (
        f"Reward “{config.name}”: FR {fr}; NR {nr}. Every metric is normalised ({config.normalise}) per LR image "
        f"over the candidates of {', '.join(evaluation.methods)} together{bound}. "
        f"Best and Worst of m are expectations over all subsets of m of the {evaluation.num_candidates} candidates, "
        f"averaged over images. Brackets: 95 % interval over photographs."
    )
    if BICUBIC in evaluation.rewards:
        text += f" Bicubic on the same scale, not clipped: {evaluation.rewards[BICUBIC].mean():.3f}."
    return text


def _rows(evaluation: Any) -> list[dict[str, Any]]:
    """Rows of the table of metrics: `group`, a title above the first row of its kind; `cells`: (text, spread within a group)."""
    rows, last, about = [], None, evaluation.results.metrics
    for metric in about.index:
        kind = "Full reference" if about.loc[metric, "mode"] == "FR" else "No reference"
        group = "" if metric == REWARD else f"{kind}, in the reward" if about.loc[metric, "rewarded"] else "Outside the reward"
        rows.append(
            {
                "group": group if group != last else "",
                "label": with_direction(metric, about),
                "changes": [evaluation.changes[name][metric].estimate for name in evaluation.compared],
                "cells": [
                    (summary.cell_text(evaluation, metric, column), _within(evaluation, metric, column)) for column in evaluation.columns
                ],
                "over_bicubic": evaluation.over_bicubic.get(evaluation.base, {}).get(metric),
            }
        )
        last = group
    return rows


def _within(evaluation: Any, metric: str, column: str) -> str:
    if (metric, column) not in evaluation.cells.index:
        return ""
    cell = evaluation.cells.loc[(metric, column)]
    return number(cell["std_within_group"], cell["mean"])
