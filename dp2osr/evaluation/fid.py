"""FID of a method's SR images against the GT images, by pyiqa: a distance of two sets, so of no image and without intervals here."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dp2osr.errors import UserError
from dp2osr.rewards.building import create_metric
from dp2osr.rewards.config import MetricSpec

if TYPE_CHECKING:
    import torch

    from dp2osr.evaluation.image_folders import ImageMethod

FEWEST = 100  # RealSR's test set; below, the distance says more about the number of images than about the method


def build_fid(weights_dir: str | Path | None = None, device: str | torch.device = "cpu") -> torch.nn.Module:
    """pyiqa's `fid` (clean-fid's resizing, Inception v3).

    Raises:
        UserError: its weights are neither in `weights_dir`, or what DP2OSR_METRICS_DIR names, nor to be fetched.
    """
    try:
        return create_metric(MetricSpec("fid"), device, weights_dir)
    except UserError as error:
        raise UserError(f"--fid: {error}") from None


def check_enough(gt: Collection[str]) -> None:
    """Raise `UserError` for fewer than `FEWEST` images with GT."""
    if len(gt) < FEWEST:
        raise UserError(f"--fid: {len(gt)} images with GT; at least {FEWEST} are needed for a distance of sets")


def frechet_distances(methods: Sequence[ImageMethod], gt: Mapping[str, Path], metric: torch.nn.Module) -> dict[str, float]:
    """{method: FID of all its images, of every sample, against the GT}, by the `metric` of `build_fid`; errors as `check_enough`."""
    check_enough(gt)
    with tempfile.TemporaryDirectory() as folder:
        truths = _linked(Path(folder) / "gt", gt.values())
        found = {}
        for number, method in enumerate(methods):
            images = _linked(Path(folder) / str(number), [path for paths in method.samples.values() for path in paths])
            found[method.name] = float(metric(str(images), str(truths), num_workers=0, verbose=False))
        return found


def _linked(folder: Path, paths: Iterable[Path]) -> Path:
    """A folder of links to the files: pyiqa reads folders, and a method's samples may lie in several."""
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"{number}{Path(path).suffix}").symlink_to(Path(path).absolute())
    return folder
