"""report.html: one page that needs nothing but itself, in light or dark, on a screen of any width."""

import base64
import colorsys
import io
import math
from html import escape
from pathlib import Path, PurePath

from dp2osr.evaluation import figures, summary, tables

CSS = Path(__file__).with_name("report.css")
MARK = {"better": "▲ better", "worse": "▼ worse", "unclear": "○ unclear"}


def report_html(evaluation, panels, settings, training=None, validation=None):
    """The page as a string.

    Args:
        evaluation: `Evaluation`.
        panels: list of `pictures.Panel`.
        settings: {"flags": dict, "methods": {name: store settings}, "metrics": dict, "versions": dict}.
        training, validation: of `read_training_log`, or `None`.
    """
    sections = [
        _head(evaluation),
        _plots("Reward", figures.result_plots(evaluation), _reward_caption(evaluation)),
        _plots(
            "Training",
            figures.training_plots(training or {}, validation or {}),
            "Faint: as logged. Strong: running mean over a tenth of the run.",
        ),
        _metrics(evaluation),
        _pictures(evaluation, panels),
        _settings(evaluation, settings),
    ]
    return page(_title(evaluation), sections)


def page(title, sections):
    """A self-contained page from sections of HTML; empty ones are left out."""
    title = escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{CSS.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _title(evaluation):
    return " vs ".join([*evaluation.methods[1:], evaluation.base]) + ": super-resolution by reward"


# ---------------------------------------------------------------- headline


def _head(evaluation):
    cards = "".join(_cards(evaluation, comparison) for comparison in evaluation.comparisons)
    notes = "".join(f"<li>{escape(line)}</li>" for line in tables.sentences(evaluation))
    lines = "".join(f"<p>{escape(line)}.</p>" for line in tables.headlines(evaluation))
    return f"<h1>{escape(_title(evaluation))}</h1>\n{lines}\n{cards}\n<ul>{notes}</ul>"


def _cards(evaluation, comparison):
    base, name, total = escape(evaluation.base), escape(comparison.name), evaluation.num_candidates
    groups = summary.verdicts(evaluation, comparison)
    gain, raised = comparison.gain, comparison.worst_raised
    share = "n/a" if math.isnan(raised.value) else f"{raised.value:.0%}"
    curves = evaluation.curves
    cards = [
        (f"{_big(gain)}", f"G: Mean reward of {name} − {base}, in {base}’s spread within a group (σ = {evaluation.sigma:.3f})"),
        (f"{comparison.images_improved} of {len(evaluation.image_ids)}", f"images where {name}’s Mean reward is above {base}’s"),
        (share + _bounds(raised, ".0%"), f"of the way from {base}’s Worst@{total} to {base}’s Mean: where {name}’s Worst@{total} lies"),
        (
            f"{len(groups['better'])} ▲ {len(groups['unclear'])} ○ {len(groups['worse'])} ▼",
            "metrics better, unclear, worse" + (f"; worse: {escape(', '.join(groups['worse']))}" if groups["worse"] else ""),
        ),
        (
            f"{curves[evaluation.base]['mean'][-1]:.3f} → {curves[comparison.name]['mean'][-1]:.3f}",
            f"Mean reward, {base} → {name}; Best {curves[evaluation.base]['best'][-1]:.3f} → {curves[comparison.name]['best'][-1]:.3f}, "
            f"Worst {curves[evaluation.base]['worst'][-1]:.3f} → {curves[comparison.name]['worst'][-1]:.3f}",
        ),
    ]
    return '<div class="cards">' + "".join(f'<div class="card"><b>{big}</b><span>{text}</span></div>' for big, text in cards) + "</div>"


def _big(estimate):
    return "n/a" if math.isnan(estimate.value) else f"{estimate.value:.2f}" + _bounds(estimate, ".2f")


def _bounds(estimate, form):
    return "" if math.isnan(estimate.low) else f" <small>[{estimate.low:{form}}, {estimate.high:{form}}]</small>"


# ---------------------------------------------------------------- plots


def _plots(title, plots, caption):
    if not plots:
        return ""
    shown = "\n".join(f'<figure class="plot">{figures.to_svg(*plot)}</figure>' for plot in plots)
    return f'<h2>{title}</h2>\n<p class="small">{caption}</p>\n<div class="plots">\n{shown}\n</div>'


def _reward_caption(evaluation):
    config = evaluation.config
    fr, nr = (", ".join(spec.name for spec in metrics) or "none" for metrics in (config.fr, config.nr))
    text = (
        f"Reward “{config.name}”: FR {fr}; NR {nr}. Every metric is normalised ({config.normalise}) per LR image "
        f"over the candidates of {', '.join(evaluation.methods)} together. "
        f"Best and Worst of m are expectations over all subsets of m of the {evaluation.num_candidates} candidates, "
        f"averaged over images. Brackets: 95 % interval over photographs."
    )
    if evaluation.bicubic_rewards is not None:
        text += f" Bicubic on the same scale, not clipped: {evaluation.bicubic_rewards.mean():.3f}."
    return escape(text)


# ---------------------------------------------------------------- per-metric table


def _metrics(evaluation):
    columns = tables.columns_of(evaluation)
    head = "".join(f"<th>{escape(comparison.name)} − {escape(evaluation.base)}, σ</th>" for comparison in evaluation.comparisons)
    head += "".join(f"<th>{escape(name)}</th>" for name in columns)
    beside_bicubic = evaluation.bicubic_rewards is not None
    head += f"<th>{escape(evaluation.base)} − bicubic, σ</th>" if beside_bicubic else ""
    body = [
        _metric_line("reward ↑", tables.reward_cells(evaluation), columns, [c.gain for c in evaluation.comparisons], None, beside_bicubic)
    ]
    group = None
    for row in evaluation.rows:
        if group != (group := _group_title(row)):
            body.append(f'<tr class="group"><th colspan="{2 + len(columns) + len(evaluation.comparisons)}">{group}</th></tr>')
        changes = [row.changes[comparison.name] for comparison in evaluation.comparisons]
        label = f"{row.name} {'↓' if row.lower_better else '↑'}"
        body.append(_metric_line(label, row.cells, columns, changes, row.over_bicubic.get(evaluation.base), beside_bicubic))
    return (
        f'<h2>Metrics</h2>\n<p class="small">{escape(tables.LEGEND)} Second line of a cell: std over candidates within a group.</p>\n'
        f'<div class="scroll"><table><thead><tr><th>metric</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _group_title(row):
    kind = "Full reference" if row.mode == "FR" else "No reference"
    return f"{kind}, in the reward" if row.rewarded else "Outside the reward"


def _metric_line(label, cells, columns, changes, over_bicubic, beside_bicubic):
    fields = "".join(_change(estimate) for estimate in changes) + "".join(f"<td>{_cell(cells.get(column))}</td>" for column in columns)
    if beside_bicubic:
        fields += _change(over_bicubic) if over_bicubic else "<td></td>"
    return f"<tr><td>{escape(label)}</td>{fields}</tr>"


def _cell(cell):
    if cell is None:
        return "–"
    within = "" if math.isnan(cell.std_within_group) else f"<small>within {tables.number(cell.std_within_group, cell.mean)}</small>"
    return escape(tables.cell_text(cell)) + within


def _change(estimate):
    return f'<td>{summary.interval(estimate, signed=True)}<small class="{estimate.verdict}">{MARK[estimate.verdict]}</small></td>'


# ---------------------------------------------------------------- pictures


def metric_colours(config):
    """{metric: CSS colour}: FR metrics in teals, NR metrics in ambers, darkest first."""
    colours = {}
    for metrics, hue in ((config.fr, 0.49), (config.nr, 0.09)):
        for i, spec in enumerate(metrics):
            lightness = 0.30 + 0.40 * i / (len(metrics) - 1) if len(metrics) > 1 else 0.5
            red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.62)
            colours[spec.name] = f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
    return colours


def _pictures(evaluation, panels):
    if not panels:
        return ""
    colours = metric_colours(evaluation.config)
    legend = "".join(f'<span><i class="swatch" style="background:{colour}"></i>{escape(name)}</span>' for name, colour in colours.items())
    chosen = (
        "all images"
        if len(panels) == len(evaluation.image_ids)
        else f"{len(panels)} of {len(evaluation.image_ids)} images, evenly over the gains"
    )
    text = (
        f"{chosen[0].upper()}{chosen[1:]}, from the largest gain to the smallest. "
        "Upper row: candidate 0 of each method, the same seed for all. "
        "R is the reward; the bar beneath splits it into its metrics, its full width being 1. "
        "A part below 0 (bicubic under every candidate) is not drawn."
    )
    body = "\n".join(_panel(evaluation, panel, colours) for panel in panels)
    return f'<h2>Pictures</h2>\n<p class="small">{escape(text)}</p>\n<div class="legend">{legend}</div>\n{body}'


def _panel(evaluation, panel, colours):
    base = panel.means[evaluation.base]
    means = [f"Mean {evaluation.base} {base:.3f}"]
    means += [f"{name} {panel.means[name]:.3f} ({panel.means[name] - base:+.3f})" for name in evaluation.methods[1:]]
    crop = (
        ""
        if panel.crop is None
        else f"<span class='small'>window {panel.crop[0]}, {panel.crop[1]} – {panel.crop[2]}, {panel.crop[3]}</span>"
    )
    pairs = "".join(
        f'<div><h4>{escape(heading)}</h4><div class="tiles">{"".join(_tile(tile, colours) for tile in tiles)}</div></div>'
        for heading, tiles in panel.pairs
    )
    first = "".join(_tile(tile, colours) for tile in panel.side_by_side)
    return (
        f'<section class="panel"><header><h3>{escape(panel.image_id)}</h3>'
        f'<span class="small">{escape(" · ".join(means))}</span>{crop}</header>'
        f'<div class="tiles">{first}</div><div class="pairs">{pairs}</div>{_raw_scores(evaluation, panel)}</section>'
    )


def _tile(tile, colours):
    reward = "" if tile.reward is None else f"<b>R {tile.reward:.3f}</b>"
    bar = "" if tile.parts is None else stacked_bar(tile.parts, colours)
    title = escape(tile.title)
    caption = f"<figcaption><span>{title}</span>{reward}</figcaption>"
    return f'<figure class="tile"><img src="{png_data(tile.image)}" alt="{title}">{caption}{bar}</figure>'


def stacked_bar(parts, colours):
    """A stacked bar of {metric: part of the reward}, its full width being 1; a part below 0 is not drawn."""
    pieces = "".join(
        f'<i style="width:{100 * value:.2f}%;background:{colours[name]}" title="{escape(name)} {value:.3f}"></i>'
        for name, value in parts.items()
        if value > 0
    )
    return f'<div class="bar">{pieces}</div>'


def _raw_scores(evaluation, panel):
    """A folded table: the raw scores of the pictures of one panel, each picture once."""
    tiles = {tile.title: tile for tile in [*panel.side_by_side, *(tile for _, pair in panel.pairs for tile in pair)] if tile.scores}
    names = [row.name for row in evaluation.rows]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for tile in tiles.values():
        reward = "–" if tile.reward is None else f"{tile.reward:.3f}"
        values = "".join(f"<td>{tables.number(tile.scores[name]) if name in tile.scores else '–'}</td>" for name in names)
        lines.append(f"<tr><td>{escape(tile.title)}</td><td>{reward}</td>{values}</tr>")
    table = f"<table><tr><th>picture</th><th>R</th>{head}</tr>{''.join(lines)}</table>"
    return f'<details><summary>Raw scores</summary><div class="scroll">{table}</div></details>'


def png_data(image):
    """A PIL image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# ---------------------------------------------------------------- settings


def _settings(evaluation, settings):
    names = evaluation.methods
    keys = list(dict.fromkeys(key for name in names for key in settings["methods"][name]))
    lines = []
    for key in keys:
        values = [_value(settings["methods"][name].get(key, "")) for name in names]
        differs = ' class="differs"' if len(set(values)) > 1 else ""
        lines.append(f"<tr{differs}><td>{escape(str(key))}</td>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return (
        "<h2>Settings and versions</h2>\n"
        "<p class='small'>Sampling; rows in bold differ between the methods.</p>\n"
        f"<div class='scroll'><table class='settings'><tr><th>setting</th>{head}</tr>{''.join(lines)}</table></div>\n"
        + "\n".join(
            _pairs_table(title, settings[key]) for title, key in (("Evaluation", "flags"), ("Metrics", "metrics"), ("Versions", "versions"))
        )
    )


def _pairs_table(title, pairs):
    lines = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(_value(value))}</td></tr>" for key, value in pairs.items())
    return f"<details><summary>{title}</summary><div class='scroll'><table class='settings'>{lines}</table></div></details>"


def _value(value):
    """A setting as text; an absolute path keeps its last two parts, since the page travels and the sender's folders do not."""
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_value(entry)}" for key, entry in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(entry) for entry in value) or "–"
    text = str(value)
    name, equals, path = text.rpartition("=")
    if PurePath(path).is_absolute():
        return f"{name}{equals}…/" + "/".join(PurePath(path).parts[1:][-2:])
    return text
