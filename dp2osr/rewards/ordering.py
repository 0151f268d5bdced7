"""Does each metric of a reward order known distortions of held-out photographs at the working resolution?

Not every metric means something on small images: entropy pays for noise, NIQE ranks clean crops worst at 128 x 128.
A reward config is validated before it is trusted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dp2osr.data.crops import to_tensor
from dp2osr.data.images import read_image
from dp2osr.data.inputs import list_images
from dp2osr.errors import UserError
from dp2osr.rewards.config import RewardConfig
from dp2osr.rewards.distortions import LEVELS, MIN_CONTRAST, distort
from dp2osr.rewards.metrics import MetricSuite, check_modes
from dp2osr.rewards.reward import mean_rank_correlation

THRESHOLD = 0.5


@dataclass(frozen=True)
class MetricValidation:
    """One metric's result.

    Attributes:
        correlation: distortion → mean over crops of Spearman's rank correlation between strength and badness
            (1: every crop's five levels in the right order).
        gt_wins: distortion → share of (crop, level) pairs in which the undistorted crop scores better.
    """

    correlation: dict[str, float]
    gt_wins: dict[str, float]

    @property
    def failures(self) -> list[str]:
        """Distortions whose strength the metric does not order (correlation below 0.5)."""
        return [kind for kind, value in self.correlation.items() if not value >= THRESHOLD]


def held_out_crops(folder: str | Path, resolution: int, count: int) -> list[np.ndarray]:
    """`count` random (s, s, 3) uint8 crops, spread evenly over the photographs of a folder that are large enough.

    A crop that is almost one colour (white background) cannot show a distortion and is drawn again.

    Raises:
        UserError: no image, none of at least `resolution` pixels a side, or one without any structure.
    """
    images = [(path, np.asarray(read_image(path))) for path in list_images(folder)]
    images = [(path, image) for path, image in images if min(image.shape[:2]) >= resolution]
    if not images:
        raise UserError(f"{folder}: no image of at least {resolution} x {resolution} pixels; pass larger ones or a smaller --resolution")
    return [_draw_crop(*images[index % len(images)], resolution, np.random.default_rng((0, index))) for index in range(count)]


def _draw_crop(path: Path, image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    for _ in range(100):
        top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
        crop = image[top : top + size, left : left + size]
        if crop.std() >= MIN_CONTRAST:
            return crop
    raise UserError(f"{path}: almost one colour everywhere, no distortion can be seen on it; remove it")


def spearman(strength: np.ndarray, score: np.ndarray) -> float:
    """Spearman's rank correlation of two (n,) arrays, ties by mean rank; 0 where one of them is constant."""
    return float(np.nan_to_num(mean_rank_correlation(strength[None], score[None])))


def distortion_series(crop: np.ndarray, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 → (1 + 5 · 4, H, W, 3): the crop, then each distortion's levels, weakest first."""
    series = [crop]
    for kind, levels in LEVELS.items():
        series += [distort(crop, kind, strength, np.random.default_rng((seed, rank))) for rank, strength in enumerate(levels)]
    return np.stack(series)


def validate_reward(suite: MetricSuite, crops: Sequence[np.ndarray]) -> dict[str, MetricValidation]:
    """Score each crop's distortion series with every metric.

    Args:
        suite: `MetricSuite`.
        crops: list of (s, s, 3) uint8.

    Returns:
        metric → `MetricValidation`.
    """
    badness: dict[str, list[np.ndarray]] = {name: [] for name in suite.specs}
    for index, crop in enumerate(tqdm(crops, desc="validate", unit="crop")):
        images = to_tensor(list(distortion_series(crop, index)))
        for name, values in suite.score(images, gt=images[0], image_id=f"crop {index}").items():
            badness[name].append(values if suite.lower_better[name] else -values)
    return {name: _summarise(np.array(values)) for name, values in badness.items()}


def _summarise(badness: np.ndarray) -> MetricValidation:
    """(crops, 1 + 5 · 4) badness → `MetricValidation`."""
    correlation, gt_wins, start = {}, {}, 1
    for kind, levels in LEVELS.items():
        part = badness[:, start : start + len(levels)]
        correlation[kind] = float(np.mean([spearman(np.arange(len(levels)), row) for row in part]))
        gt_wins[kind] = float((part > badness[:, :1]).mean())
        start += len(levels)
    return MetricValidation(correlation, gt_wins)


def validate_config(config: RewardConfig, image_path: str | Path, resolution: int, num_crops: int) -> dict[str, MetricValidation]:
    """Build the config's suite and validate it on crops of a folder; see `validate_reward`."""
    crops = held_out_crops(image_path, resolution, num_crops)
    suite = MetricSuite(config.computed)
    check_modes(config, suite)
    with torch.inference_mode():
        return validate_reward(suite, crops)


def format_table(results: Mapping[str, MetricValidation]) -> str:
    """The results as lines of text: rank correlations, GT's share of wins, and each failure by name."""
    kinds = list(LEVELS)
    lines = ["rank correlation of the score with the strength of a distortion, and (share of distorted crops that the GT beats)"]
    lines.append(f"{'metric':<16}" + "".join(f"{kind:>18}" for kind in kinds))
    for name, result in results.items():
        cells = (f"{result.correlation[kind]:+.2f} ({result.gt_wins[kind]:.2f})" for kind in kinds)
        lines.append(f"{name:<16}" + "".join(f"{cell:>18}" for cell in cells))
    for name, result in results.items():
        lines += [f"FAILS: {name} on {kind}: {result.correlation[kind]:+.2f} < {THRESHOLD}" for kind in result.failures]
    return "\n".join(lines)
