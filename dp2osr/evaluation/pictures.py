"""Which images and candidates the report shows, decoded as the user would get them, and cropped where they are large."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp2osr.data.inputs import find_gt
from dp2osr.evaluation.compare import BICUBIC
from dp2osr.evaluation.methods import read_gt, upsample_bicubic

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dp2osr.evaluation.methods import Method
    from dp2osr.sampling.store import CandidateGroup

    Decoded = Callable[[Method, str, Sequence[int]], list[Image.Image]]  # images of these candidates

CROP = 192  # pixels; a larger image is shown by its window of this side with the most detail
Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tile:
    """One picture: `reward` and `parts` ({metric: part of the reward}) are `None` for LR and GT, `scores` for LR."""

    title: str
    image: Image.Image
    reward: float | None = None
    parts: dict[str, float] | None = None
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class Panel:
    """The pictures of one LR image: `side_by_side` LR … GT at candidate 0, then pairs of candidates with a heading each."""

    image_id: str
    means: dict[str, float]
    crop: Window | None
    side_by_side: list[Tile]
    pairs: list[tuple[str, list[Tile]]]

    @property
    def scored(self) -> list[Tile]:
        """The pictures that have scores, each once."""
        return list(
            {tile.title: tile for tile in [*self.side_by_side, *(tile for _, pair in self.pairs for tile in pair)] if tile.scores}.values()
        )


def evenly_over(order: Sequence[int] | np.ndarray, at_most: int) -> list[int]:
    """So many of the indices `order`, evenly over them, the first and the last among them."""
    return [int(order[round(place)]) for place in np.linspace(0, len(order) - 1, min(at_most, len(order)))]


def choose_images(evaluation: Any, at_most: int) -> list[int]:
    """Indices of the images to show, evenly over the images sorted by gain, so that losses are shown with the gains."""
    gains = evaluation.gain(evaluation.compared[0]).by_image if evaluation.compared else np.zeros(len(evaluation.image_ids))
    return evenly_over(np.argsort(-gains, kind="stable"), at_most)


def choose_candidates(evaluation: Any, image: int) -> list[tuple[str, dict[str, int]]]:
    """[(heading, {method: candidate})]: the same seeds for all, and each method's own worst and best."""
    rewards = {name: evaluation.rewards[name][image] for name in evaluation.methods}
    base = rewards[evaluation.base]
    median = int(np.argsort(base, kind="stable")[(len(base) - 1) // 2])
    total = evaluation.num_candidates
    return [
        (f"Each one's worst of {total}", {name: int(values.argmin()) for name, values in rewards.items()}),
        (f"{evaluation.base}'s median seed, for all", dict.fromkeys(rewards, median)),
        (f"Each one's best of {total}", {name: int(values.argmax()) for name, values in rewards.items()}),
    ]


def detail_window(image: Image.Image, side: int) -> Window | None:
    """(left, top, right, bottom) of the `side` × `side` window with the most gradient energy, or `None` if the image is no larger.

    Chosen on the GT alone, so that no method has a say in what is shown.
    """
    width, height = image.size
    if width <= side and height <= side:
        return None
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    energy = np.abs(np.diff(grey, axis=0, append=grey[-1:])) + np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    sums = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    w, h = min(side, width), min(side, height)
    windows = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return int(left), int(top), int(left) + w, int(top) + h


def make_panels(
    evaluation: Any,
    methods: Sequence[Method],
    bicubic: Mapping[str, np.ndarray] | None,
    gt_path: str | Path,
    at_most: int,
    device: str | torch.device = "cpu",
) -> list[Panel]:
    """Decode and crop what the report shows: list[Panel].

    Args:
        methods: list of `Method` in the order of the evaluation.
        bicubic: {metric: (G,) raw} or `None`.
    """
    from tqdm import tqdm

    from dp2osr.data.images import tensor_to_pil
    from dp2osr.sampling import decode

    gt_paths = find_gt(gt_path, evaluation.image_ids)
    decoders: dict[str, Any] = {}  # methods of one base have one

    def decoded(method: Method, image_id: str, candidates: Sequence[int]) -> list[Image.Image]:
        settings = method.store.settings
        decoder = json.dumps([settings.get(name) for name in ("model", "model_files", "vae_tiling")])
        if decoder not in decoders:
            decoders[decoder] = decode.load_decoder(settings, device)
        images = decode.decode_group(decoders[decoder], method.store.read(image_id, candidates), settings["align_method"])
        return [tensor_to_pil(image) for image in images]

    chosen = tqdm(choose_images(evaluation, at_most), desc="decode pictures", unit="image")
    return [_panel(evaluation, methods, bicubic, gt_paths[evaluation.image_ids[image]], image, decoded) for image in chosen]


def _panel(
    evaluation: Any, methods: Sequence[Method], bicubic: Mapping[str, np.ndarray] | None, gt_path: Path, image: int, decoded: Decoded
) -> Panel:
    image_id = evaluation.image_ids[image]
    group = methods[0].store.read(image_id)
    gt = read_gt(gt_path, group)
    window = detail_window(gt, CROP)
    shown = [("", dict.fromkeys(evaluation.methods, 0)), *choose_candidates(evaluation, image)]
    tiles = {}
    for method in methods:
        candidates = sorted({choice[method.name] for _, choice in shown})
        for candidate, picture in zip(candidates, decoded(method, image_id, candidates), strict=True):
            tiles[method.name, candidate] = _candidate_tile(evaluation, method, image, candidate, _crop(picture, window))
    large = group.lr.resize(gt.size, resample=0)  # nearest: the pixels that the model was given
    first = [Tile("LR", _crop(large, window)), _bicubic_tile(evaluation, bicubic, image, group, window)]
    first += [tiles[name, 0] for name in evaluation.methods]
    gt_scores = {name: float(values[image]) for name, values in methods[0].gt_scores.items() if np.isfinite(values[image])}
    first.append(Tile("GT", _crop(gt, window), scores=gt_scores))
    return Panel(
        image_id=image_id,
        means={name: float(evaluation.rewards[name][image].mean()) for name in evaluation.methods},
        crop=window,
        side_by_side=first,
        pairs=[(heading, [tiles[name, candidate] for name, candidate in choice.items()]) for heading, choice in shown[1:]],
    )


def _crop(image: Image.Image, window: Window | None) -> Image.Image:
    return image if window is None else image.crop(window)


def _candidate_tile(evaluation: Any, method: Method, image: int, candidate: int, picture: Image.Image) -> Tile:
    name = method.name
    return Tile(
        title=f"{name} · seed {candidate}",
        image=picture,
        reward=float(evaluation.rewards[name][image, candidate]),
        parts={metric: float(values[image, candidate]) for metric, values in evaluation.parts[name].items()},
        scores={metric: float(values[image, candidate]) for metric, values in method.scores.items()},
    )


def _bicubic_tile(
    evaluation: Any, bicubic: Mapping[str, np.ndarray] | None, image: int, group: CandidateGroup, window: Window | None
) -> Tile:
    picture = _crop(upsample_bicubic(group), window)
    if bicubic is None:
        return Tile("bicubic", picture)
    parts = {metric: float(values[image, 0]) for metric, values in evaluation.parts[BICUBIC].items()}
    scores = {metric: float(values[image]) for metric, values in bicubic.items()}
    return Tile("bicubic", picture, float(evaluation.rewards[BICUBIC][image, 0]), parts, scores)
