"""rewards.html: a reward explained on one page that needs nothing but itself. What it says is `dp2osr.evaluation.reward_inspection`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from dp2osr.data.images import pil_to_tensor, tensor_to_pil
from dp2osr.evaluation.methods import read_gt
from dp2osr.evaluation.pictures import evenly_over
from dp2osr.evaluation.report import metric_colours, render
from dp2osr.evaluation.reward_inspection import sentences
from dp2osr.files import write_text
from dp2osr.rewards.ordering import THRESHOLD

if TYPE_CHECKING:
    import torch

    from dp2osr.evaluation.reward_inspection import Inspection, Outlier
    from dp2osr.rewards.config import RewardConfig
    from dp2osr.rewards.metrics import MetricSuite
    from dp2osr.rewards.ordering import MetricValidation
    from dp2osr.sampling.store import CandidateStore

    Tile = tuple[Image.Image, str, str] | tuple[Image.Image, str, str, dict[str, float]]

SHOWN_CANDIDATES = 12  # of a group, evenly over its ranking
OUTLIERS = 6


def write_report(
    path: Path,
    inspection: Inspection,
    config: RewardConfig,
    settings: Mapping[str, Any],
    pictures: Pictures,
    num_groups: int,
    validation: Mapping[str, MetricValidation] | None = None,
) -> None:
    """Write the page; it is whole or absent.

    Args:
        settings: {setting: value}, shown at the end.
        num_groups: groups whose candidates are shown, evenly over the spread of their rewards.
        validation: of `validate_reward`, or None.
    """
    widest_first = np.argsort(-inspection.rewards.std(axis=1), kind="stable")
    shown = tqdm(evenly_over(widest_first, num_groups), desc="decode", unit="group")
    page = render(
        "rewards",
        inspection=inspection,
        config=config,
        cards=_cards(inspection),
        sentences=sentences(inspection),
        correlation=_off_diagonal(inspection.correlation),
        metrics=metrics_table(inspection, validation),
        outliers=[_outlier(inspection, outlier, pictures) for outlier in inspection.outliers[:OUTLIERS]],
        groups=[_group(inspection, group, pictures) for group in shown],
        colours=metric_colours(config),
        settings=settings,
    )
    write_text(path, page)


def _cards(inspection: Inspection) -> list[tuple[str, str, str]]:
    groups, count = inspection.rewards.shape
    driver = max(inspection.shares, key=inspection.shares.__getitem__)
    between = inspection.between_halves()
    alone = int((inspection.decided != "").sum()) / (groups * inspection.top_n)
    driven = f"of the reward's variance within a group comes through {driver}, the most of all"
    return [
        (f"{groups} × {count}", "", "groups × candidates"),
        (f"{inspection.rewards.std(axis=1).mean():.3f}", "", "σ: mean spread of the reward within a group"),
        (f"{inspection.shares[driver]:.0%}", "", driven),
        ("n/a" if isnan(between) else f"{between:+.2f}", "", "mean rank correlation of an FR with an NR metric"),
        (str(len(inspection.conflicts)), "", "pairs of metrics that pull apart"),
        (f"{alone:.0%}", "", f"of the top {inspection.top_n} would be in the worse half without one single metric"),
    ]


def _off_diagonal(correlation: np.ndarray) -> list[list[float | None]]:
    """Rows of numbers, None on the diagonal and where there is none."""
    return [
        [None if row == column or isnan(value) else float(value) for column, value in enumerate(values)]
        for row, values in enumerate(correlation)
    ]


def metrics_table(inspection: Inspection, validation: Mapping[str, MetricValidation] | None) -> pd.DataFrame:
    """A frame of texts: what each metric does in the reward."""
    rows = []
    for name in inspection.names:
        inside, beaten = name in inspection.parts, inspection.gt_beaten.get(name)
        agreement = inspection.agreement.get(name, float("nan"))
        row = {
            "metric": f"{name} {'↓' if inspection.lower_better[name] else '↑'}",
            "share of variance": f"{inspection.shares[name]:.0%}" if inside else "–",
            "agreement": "–" if isnan(agreement) else f"{agreement:+.2f}",
            "winners brought in": f"{inspection.decides[name]:.0%}" if inside else "–",
            "groups without spread": str(inspection.flat[name]),
            "preferred to GT": "–" if beaten is None else f"{beaten:.0%}",
        }
        if validation:
            row["distortions ordered"] = _ordered(validation[name]) if name in validation else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def _ordered(result: MetricValidation) -> str:
    failed = [f"{kind} {result.correlation[kind]:+.2f}" for kind in result.failures]
    passed = len(result.correlation) - len(failed)
    return f"{passed} of {len(result.correlation)}" + (f" (not {', '.join(failed)}: below {THRESHOLD})" if failed else "")


# ---------------------------------------------------------------- pictures; a tile is (picture, title, text, parts of the reward)


class Pictures:
    """Candidates and GTs as PIL images, decoded when they are asked for.

    Args:
        gt_paths: image id → file, may be {}; backbone: the store's decoder.
        suite: of the reward's FR metrics, for the maps; None for no maps.
    """

    def __init__(self, store: CandidateStore, gt_paths: Mapping[str, Path], backbone: Any, suite: MetricSuite | None = None) -> None:
        self.store, self.gt_paths, self.backbone, self.suite = store, gt_paths, backbone, suite

    def candidates(self, image_id: str, numbers: Sequence[int]) -> torch.Tensor:
        """(len(numbers), 3, H, W) in [0, 1]."""
        from dp2osr.sampling.decode import decode_group

        return decode_group(self.backbone, self.store.read(image_id, numbers), self.store.settings["align_method"])

    def gt(self, image_id: str) -> Image.Image | None:
        """RGB PIL image, or None."""
        return read_gt(self.gt_paths[image_id], self.store.read(image_id)) if image_id in self.gt_paths else None

    def maps(self, image_id: str, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """metric → (B, H, W); {} without a GT or a suite."""
        from dp2osr.rewards.maps import spatial_maps

        gt = self.gt(image_id)
        return spatial_maps(self.suite, images, pil_to_tensor(gt)) if self.suite and gt is not None else {}


def _gt_tile(pictures: Pictures, image_id: str) -> list[Tile]:
    gt = pictures.gt(image_id)
    return [] if gt is None else [(gt, "GT", "")]


def _outlier(inspection: Inspection, outlier: Outlier, pictures: Pictures) -> dict[str, Any]:
    group = inspection.image_ids.index(outlier.image_id)
    rewards, candidate = inspection.rewards[group], int(outlier.candidate)
    best, rank = int(rewards.argmax()), 1 + int((rewards > rewards[candidate]).sum())
    images = [tensor_to_pil(image) for image in pictures.candidates(outlier.image_id, [candidate, best])]
    return {
        "image_id": outlier.image_id,
        "text": f"{outlier.metric} sets candidate {candidate} apart by {outlier.deviation:+.1f} robust standard deviations (+: better)",
        "tiles": [
            (images[0], f"candidate {candidate}, rank {rank}", f"{outlier.metric} {outlier.deviation:+.1f}"),
            (images[1], f"candidate {best}, the best", f"R {rewards[best]:.3f}"),
            *_gt_tile(pictures, outlier.image_id),
        ],
    }


def _group(inspection: Inspection, group: int, pictures: Pictures) -> dict[str, Any]:
    image_id, rewards = inspection.image_ids[group], inspection.rewards[group]
    order = np.argsort(-rewards, kind="stable")
    shown = evenly_over(order, SHOWN_CANDIDATES)
    images = pictures.candidates(image_id, shown)
    tiles: list[Tile] = []
    for number, image in zip(shown, images):
        parts = {name: float(values[group, number]) for name, values in inspection.parts.items()}
        alone = inspection.decided[group, number]
        title = f"{1 + int(np.flatnonzero(order == number)[0])}. candidate {number}" + (f", by {alone}" if alone else "")
        tiles.append((tensor_to_pil(image), title, f"R {rewards[number]:.3f}", parts))
    return {
        "image_id": image_id,
        "text": f"σ = {rewards.std():.3f}",
        "tiles": tiles + _gt_tile(pictures, image_id),
        "maps": {name: _map_tiles(values, shown) for name, values in pictures.maps(image_id, images[[0, -1]]).items()},
    }


def _map_tiles(values: torch.Tensor, shown: Sequence[int]) -> list[Tile]:
    """The maps of the best and the worst candidate on one scale."""
    top = float(np.quantile(values.numpy(), 0.995)) or 1.0
    best, worst = (_colour(value / top) for value in values)
    return [(best, f"best, candidate {shown[0]}", ""), (worst, f"worst, candidate {shown[-1]}", "")]


def _colour(values: torch.Tensor) -> Image.Image:
    from matplotlib import colormaps

    return Image.fromarray((colormaps["magma"](values.clamp(0, 1).numpy())[..., :3] * 255).astype(np.uint8))
