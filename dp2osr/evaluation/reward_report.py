"""rewards.html: a reward explained on one page that needs nothing but itself. What it says is `dp2osr.rewards.inspection`'s."""

from dataclasses import replace
from html import escape
from math import isnan

import numpy as np
from PIL import Image
from tqdm import tqdm

from dp2osr.data.images import pil_to_tensor, tensor_to_pil
from dp2osr.evaluation.methods import read_gt
from dp2osr.evaluation.report import metric_colours, page, png_data, stacked_bar
from dp2osr.files import write_text
from dp2osr.rewards.inspection import sentences
from dp2osr.rewards.ordering import THRESHOLD

SHOWN_CANDIDATES = 12  # of a group, evenly over its ranking
OUTLIERS = 6


def write_report(path, inspection, config, settings, pictures, num_groups, validation=None):
    """Write the page; it is whole or absent.

    Args:
        inspection: `Inspection`; config: its `RewardConfig`.
        settings: {setting: value}, shown at the end.
        pictures: `Pictures`; num_groups: groups whose candidates are shown.
        validation: of `validate_reward`, or None.
    """
    sections = [
        _head(inspection, config),
        _correlations(inspection),
        _metrics(inspection, validation),
        _outliers(inspection, pictures),
        _groups(inspection, config, pictures, num_groups),
        _settings(settings),
    ]
    write_text(path, page(f"The reward {config.name}, explained", sections))


def _head(inspection, config):
    groups, count = inspection.rewards.shape
    driver = max(inspection.shares, key=inspection.shares.get)
    between = inspection.between_halves()
    alone = int((inspection.decided != "").sum())
    cards = [
        (f"{groups} × {count}", "groups × candidates"),
        (f"{inspection.rewards.std(axis=1).mean():.3f}", "σ: mean spread of the reward within a group"),
        (f"{inspection.shares[driver]:.0%}", f"of the reward's variance within a group comes through {driver}, the most of all"),
        ("n/a" if isnan(between) else f"{between:+.2f}", "mean rank correlation of an FR with an NR metric"),
        (str(len(inspection.conflicts)), "pairs of metrics that pull apart"),
        (
            f"{alone / (groups * inspection.top_n):.0%}",
            f"of the top {inspection.top_n} would be in the worse half without one single metric",
        ),
    ]
    shown = "".join(f'<div class="card"><b>{escape(big)}</b><span>{escape(text)}</span></div>' for big, text in cards)
    lines = "".join(f"<li>{escape(line)}</li>" for line in sentences(inspection))
    fr, nr = (", ".join(names) or "none" for names in (inspection.fr, inspection.nr))
    return (
        f"<h1>The reward “{escape(config.name)}”, explained</h1>\n<p>FR: {escape(fr)}. NR: {escape(nr)}. "
        f"All figures are within groups, the candidates of one LR image, and then averaged over groups.</p>\n"
        f'<div class="cards">{shown}</div>\n<ul>{lines}</ul>'
    )


def _correlations(inspection):
    names, rewarded = inspection.names, len(inspection.parts)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = []
    for row, name in enumerate(names):
        if row == rewarded:
            body.append(f'<tr class="group"><th colspan="{len(names) + 1}">Outside the reward</th></tr>')
        cells = "".join(_heat(inspection.correlation[row, column], row == column) for column in range(len(names)))
        body.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return (
        "<h2>Do the metrics agree?</h2>\n<p class='small'>Spearman's rank correlation within a group, every metric aligned so that higher "
        "is better; FR metrics first. Green: they rank alike. Red: they pull apart.</p>\n"
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _heat(value, diagonal):
    if diagonal or isnan(value):
        return "<td>–</td>"
    colour = "--better" if value > 0 else "--worse"
    return f'<td style="background:color-mix(in srgb, var({colour}) {min(abs(value), 1) * 60:.0f}%, transparent)">{value:+.2f}</td>'


def _metrics(inspection, validation):
    titles = ["metric", "share of variance", "agreement", "winners brought in", "groups without spread", "preferred to GT"]
    titles += ["distortions ordered"] if validation else []
    lines = []
    for name in inspection.names:
        inside = name in inspection.parts
        beaten = inspection.gt_beaten.get(name)
        cells = [
            f"{name} {'↓' if inspection.lower_better[name] else '↑'}",
            f"{inspection.shares[name]:.0%}" if inside else "–",
            f"{inspection.agreement[name]:+.2f}" if inside and not isnan(inspection.agreement[name]) else "–",
            f"{inspection.decides[name]:.0%}" if inside else "–",
            str(inspection.flat[name]),
            "–" if beaten is None else f"{beaten:.0%}",
        ]
        if validation:
            cells.append(_ordered(validation[name]) if name in validation else "–")
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{title}</th>" for title in titles)
    text = (
        "Share: covariance of the metric's part with the reward over the reward's variance. Agreement: rank correlation with the reward of "
        f"the other metrics. Brought in: of the top {inspection.top_n}, those that would not be there without it. "
        "Preferred to GT: candidates that the metric scores better than the GT."
    )
    return (
        f'<h2>What each metric does</h2>\n<p class="small">{text}</p>\n'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _ordered(result):
    failed = [f"{kind} {result.correlation[kind]:+.2f}" for kind in result.failures]
    passed = len(result.correlation) - len(failed)
    return f"{passed} of {len(result.correlation)}" + (f" (not {', '.join(failed)}: below {THRESHOLD})" if failed else "")


# ---------------------------------------------------------------- pictures


class Pictures:
    """Candidates and GTs as PIL images, decoded when they are asked for.

    Args:
        store: `CandidateStore`; gt_paths: image id → file, may be {}; backbone: its decoder.
        suite: `MetricSuite` of the reward's FR metrics, for the maps; None for no maps.
    """

    def __init__(self, store, gt_paths, backbone, suite=None):
        self.store, self.gt_paths, self.backbone, self.suite = store, gt_paths, backbone, suite

    def candidates(self, image_id, numbers):
        """(len(numbers), 3, H, W) in [0, 1]."""
        from dp2osr.sampling.decode import decode_group

        group = self.store.read(image_id)
        few = replace(group, latents=group.latents[list(numbers)], seeds=[group.seeds[number] for number in numbers])
        return decode_group(self.backbone, few, self.store.settings["align_method"])

    def gt(self, image_id):
        """(3, H, W) in [0, 1], or None."""
        if image_id not in self.gt_paths:
            return None
        return pil_to_tensor(read_gt(self.gt_paths[image_id], self.store.read(image_id)))

    def maps(self, image_id, images):
        """metric → (B, H, W); {} without a GT or a suite."""
        from dp2osr.rewards.maps import spatial_maps

        gt = self.gt(image_id)
        return spatial_maps(self.suite, images, gt) if self.suite and gt is not None else {}


def _figure(image, title, value="", bar=""):
    picture = image if isinstance(image, Image.Image) else tensor_to_pil(image)
    shown = f"<b>{escape(value)}</b>" if value else ""
    caption = f"<figcaption><span>{escape(title)}</span>{shown}</figcaption>"
    return f'<figure class="tile"><img src="{png_data(picture)}" alt="{escape(title)}">{caption}{bar}</figure>'


def _outliers(inspection, pictures):
    if not inspection.outliers:
        return ""
    panels = []
    for outlier in inspection.outliers[:OUTLIERS]:
        group = inspection.image_ids.index(outlier.image_id)
        best, of_outlier = int(inspection.rewards[group].argmax()), int(outlier.candidate)
        images = pictures.candidates(outlier.image_id, [of_outlier, best])
        gt = pictures.gt(outlier.image_id)
        rank = 1 + int((inspection.rewards[group] > inspection.rewards[group, of_outlier]).sum())
        tiles = [_figure(images[0], f"candidate {of_outlier}, rank {rank}", f"{outlier.metric} {outlier.deviation:+.1f}")]
        tiles += [_figure(images[1], f"candidate {best}, the best", f"R {inspection.rewards[group, best]:.3f}")]
        tiles += [] if gt is None else [_figure(gt, "GT")]
        text = f"{outlier.metric} sets candidate {of_outlier} apart by {outlier.deviation:+.1f} robust standard deviations (+: better)"
        panels.append(_panel(outlier.image_id, text, f'<div class="tiles">{"".join(tiles)}</div>'))
    more = f"{len(inspection.outliers)} groups have one; the {len(panels)} furthest are shown."
    return f'<h2>Outliers</h2>\n<p class="small">Candidates that one metric sets apart from their group. {more}</p>\n' + "\n".join(panels)


def _panel(title, text, body):
    return f'<section class="panel"><header><h3>{escape(title)}</h3><span class="small">{escape(text)}</span></header>{body}</section>'


def chosen_groups(inspection, count):
    """Indices of groups evenly over the spread of their rewards, the widest first."""
    order = np.argsort(-inspection.rewards.std(axis=1), kind="stable")
    return [int(order[round(position)]) for position in np.linspace(0, len(order) - 1, min(count, len(order)))] if count else []


def _groups(inspection, config, pictures, count):
    colours = metric_colours(config)
    legend = "".join(f'<span><i class="swatch" style="background:{colour}"></i>{escape(name)}</span>' for name, colour in colours.items())
    panels = [_group(inspection, group, colours, pictures) for group in tqdm(chosen_groups(inspection, count), desc="decode", unit="group")]
    if not panels:
        return ""
    text = (
        "Candidates in the order of their reward R; the bar splits it into its metrics, its full width being 1. “By” names a metric "
        "without which a winner would be in the worse half. "
        "Maps: where the metric finds the candidate unlike the GT, dark = alike; best and worst candidate on one scale."
    )
    return f'<h2>Groups</h2>\n<p class="small">{text}</p>\n<div class="legend">{legend}</div>\n' + "\n".join(panels)


def _group(inspection, group, colours, pictures):
    image_id, rewards = inspection.image_ids[group], inspection.rewards[group]
    order = np.argsort(-rewards, kind="stable")
    shown = [int(order[round(position)]) for position in np.linspace(0, len(order) - 1, min(SHOWN_CANDIDATES, len(order)))]
    images = pictures.candidates(image_id, shown)
    tiles = []
    for number, image in zip(shown, images):
        parts = {name: float(values[group, number]) for name, values in inspection.parts.items()}
        rank = 1 + int(np.flatnonzero(order == number)[0])
        alone = inspection.decided[group, number]
        title = f"{rank}. candidate {number}" + (f", by {alone}" if alone else "")
        tiles.append(_figure(image, title, f"R {rewards[number]:.3f}", stacked_bar(parts, colours)))
    gt = pictures.gt(image_id)
    tiles += [] if gt is None else [_figure(gt, "GT")]
    ends = images[[0, -1]]
    body = f'<div class="tiles">{"".join(tiles)}</div>{_maps(pictures.maps(image_id, ends), shown)}'
    return _panel(image_id, f"σ = {rewards.std():.3f}", body)


def _maps(maps, shown):
    if not maps:
        return ""
    rows = []
    for name, values in maps.items():
        top = float(np.quantile(values.numpy(), 0.995)) or 1.0
        pictures = [_colour(value / top) for value in values]
        pair = _figure(pictures[0], f"best, candidate {shown[0]}") + _figure(pictures[1], f"worst, candidate {shown[-1]}")
        rows.append(f'<div><h4>{escape(name)}</h4><div class="tiles">{pair}</div></div>')
    return f'<div class="pairs">{"".join(rows)}</div>'


def _colour(values):
    from matplotlib import colormaps

    return Image.fromarray((colormaps["magma"](values.clamp(0, 1).numpy())[..., :3] * 255).astype(np.uint8))


def _settings(settings):
    lines = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in settings.items())
    return f"<h2>Settings</h2>\n<div class='scroll'><table class='settings'>{lines}</table></div>"
