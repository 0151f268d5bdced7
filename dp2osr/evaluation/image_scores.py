"""Scores of folders of SR images: every file is read once, every score is kept, and a second run computes what is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from dp2osr.data.images import pil_to_tensor, read_image
from dp2osr.digests import digest
from dp2osr.errors import UserError
from dp2osr.evaluation.image_folders import check_sizes
from dp2osr.rewards.metrics import pyiqa_version

if TYPE_CHECKING:
    from dp2osr.evaluation.image_folders import ImageMethod
    from dp2osr.rewards.config import MetricSpec, RewardConfig
    from dp2osr.rewards.metrics import MetricSuite

PIXEL_METRICS = ("psnr", "ssim")  # those of which the channel and the border are settings


def protocol_specs(
    config: RewardConfig, channel: str | None = None, crop_border: int | None = None, exclude: Collection[str] = ()
) -> list[MetricSpec]:
    """The `MetricSpec`s of a protocol, with another channel ("y" or "rgb") or border, pixels, of PSNR and SSIM where they are given."""
    changes: dict[str, bool | int] = {} if channel is None else {"test_y_channel": channel == "y"}
    changes |= {} if crop_border is None else {"crop_border": crop_border}
    specs = [replace(spec, options=spec.options | changes) if spec.name in PIXEL_METRICS else spec for spec in config.metrics]
    unknown = set(exclude) - {spec.name for spec in specs}
    if unknown:
        raise UserError(f"--exclude_metrics {' '.join(sorted(unknown))}: not in the protocol ({', '.join(spec.name for spec in specs)})")
    return [spec for spec in specs if spec.name not in exclude]


class ImageScorer:
    """Scores the images of methods with one suite.

    Args:
        suite: `MetricSuite`.
        gt: {image id: path}, or {}: then the NR metrics alone.
        cache: JSONL that keeps the scores, one line an image of a method, filed under the hashes of the image and its GT.
        center_crop: side of the middle square of SR and GT that is scored, pixels; None for all.
    """

    def __init__(self, suite: MetricSuite, gt: Mapping[str, Path], cache: Path, center_crop: int | None = None) -> None:
        self.suite, self.gt, self.cache, self.center_crop = suite, gt, cache, center_crop
        self.names = [name for name, mode in suite.modes.items() if mode == "NR" or gt]
        described = suite.describe()
        self.keys = {name: json.dumps([name, described[name], pyiqa_version(), center_crop], sort_keys=True) for name in self.names}
        self.known = self._read_cache()

    def _read_cache(self) -> dict[tuple[str, str], dict[str, float]]:
        """{(hash of image, hash of GT): {key of a metric: score}} of the lines that are whole."""
        known: dict[tuple[str, str], dict[str, float]] = {}
        if self.cache.exists():
            for line in self.cache.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    known.setdefault((record["image"], record["gt"]), {}).update(record["scores"])
                except (ValueError, KeyError, TypeError):  # the line that a kill cut, or that is none of ours
                    continue
        return known

    def score(self, methods: Sequence[ImageMethod]) -> dict[str, dict[str, np.ndarray]]:
        """{metric: {method: (G, S)}} raw scores in the order of the sorted image ids, NaN where a metric failed on an image."""
        image_ids = sorted(methods[0].samples)
        values: dict[str, dict[str, list[list[float]]]] = {name: {method.name: [] for method in methods} for name in self.names}
        self._check_sizes(methods, image_ids)
        with open(self.cache, "a", encoding="utf-8") as self.stream:
            if self.stream.tell():
                self.stream.write("\n")  # a cut line ends here
            for image_id in tqdm(image_ids, desc="score", unit="image"):
                paths = [(method.name, path) for method in methods for path in method.samples[image_id]]
                for name, scores in self._scores_of(image_id, [path for _, path in paths]).items():
                    for method in methods:
                        own = [score for (owner, _), score in zip(paths, scores, strict=True) if owner == method.name]
                        values[name][method.name].append(own)
        return {name: {method: np.array(rows) for method, rows in of_metric.items()} for name, of_metric in values.items()}

    def _check_sizes(self, methods: Sequence[ImageMethod], image_ids: Sequence[str]) -> None:
        """Raise `UserError`, before the first metric runs, unless all that is to be scored can be read and is as large as its GT."""
        lists = []
        for image_id in image_ids:
            paths = [path for method in methods for path in method.samples[image_id]]
            if all(path.is_file() for path in paths) and not any(self._known(image_id, paths)[1].values()):
                continue
            lists.append([*([self.gt[image_id]] if self.gt else []), *paths])
        check_sizes(lists)

    def _known(self, image_id: str, paths: Sequence[Path]) -> tuple[list[dict[str, float]], dict[str, list[int]]]:
        """(known scores of each path, by key; {metric: places of the paths that lack it})."""
        of_gt = _hash(self.gt[image_id]) if self.gt else ""
        known = [self.known.setdefault((_hash(path), of_gt), {}) for path in paths]
        return known, {name: [place for place, scores in enumerate(known) if self.keys[name] not in scores] for name in self.names}

    def _scores_of(self, image_id: str, paths: Sequence[Path]) -> dict[str, list[float]]:
        """{metric: a score for each of the paths}."""
        gt_path = self.gt.get(image_id)
        known, lacking = self._known(image_id, paths)
        if any(lacking.values()):
            images, gt = self._read(paths, gt_path)
            for name, places in lacking.items():
                found = self._metric(name, images[places], gt, [paths[place] for place in places]) if places else []
                for place, value in zip(places, found, strict=True):
                    known[place][self.keys[name]] = value
            for place, path in enumerate(paths):
                fresh = {self.keys[name]: known[place][self.keys[name]] for name, places in lacking.items() if place in places}
                fresh = {key: value for key, value in fresh.items() if np.isfinite(value)}
                if fresh:
                    record = {"image": _hash(path), "gt": _hash(gt_path) if gt_path else "", "scores": fresh}
                    self.stream.write(json.dumps(record) + "\n")
            self.stream.flush()
        return {name: [scores[self.keys[name]] for scores in known] for name in self.names}

    def _read(self, paths: Sequence[Path], gt_path: Path | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """SR images (B, 3, H, W) and their GT (3, H, W) or None, in [0, 1], cropped."""
        tensors = {path: pil_to_tensor(read_image(path)) for path in [*paths, *([gt_path] if gt_path else [])]}
        cropped = {path: self._crop(path, tensor) for path, tensor in tensors.items()}
        return torch.stack([cropped[path] for path in paths]), cropped[gt_path] if gt_path else None

    def _crop(self, path: Path, image: torch.Tensor) -> torch.Tensor:
        side = self.center_crop
        if side is None:
            return image
        height, width = image.shape[1:]
        if min(height, width) < side:
            raise UserError(f"{path}: is {width} x {height} pixels, smaller than --center_crop {side}")
        top, left = (height - side) // 2, (width - side) // 2
        return image[:, top : top + side, left : left + side]

    def _metric(self, name: str, images: torch.Tensor, gt: torch.Tensor | None, paths: Sequence[Path]) -> list[float]:
        """A metric's scores of the images of one GT; those it fails on are NaN, and told."""
        try:
            return self.suite.score(images, gt, paths[0].stem, names=[name])[name].tolist()
        except UserError as error:
            if len(paths) > 1:  # which of them?
                return [self._metric(name, image[None], gt, [path])[0] for image, path in zip(images, paths, strict=True)]
            tqdm.write(f"warning: {paths[0]}: {error}; the image is left out of {name}, for all methods", file=sys.stderr)
            return [float("nan")]


@cache
def _hash(path: Path) -> str:
    return digest(path)[:24]
