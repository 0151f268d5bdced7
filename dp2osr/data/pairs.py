"""LR/GT pairs of a folder of HR images: crop, degrade, write `gt/<id>.png` and `lr/<id>.png`."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dp2osr.config import settle
from dp2osr.data.degradation import DegradationConfig, degrade, image_rng, to_uint8
from dp2osr.data.images import list_images, read_image, save_image
from dp2osr.errors import UserError
from dp2osr.parallel import process_map

TRIES_PER_CROP = 16  # positions drawn for each crop asked for; the first ones that have detail and do not overlap are taken


@dataclass(frozen=True)
class PairSettings:
    """What decides the bytes of the pairs.

    Attributes:
        degradation: how LR is made of GT.
        crop_size: side of a GT crop, pixels; 0 = the whole image, its right and bottom cut to a multiple of the scale.
        crops_per_image: crops of one image, at most; fewer where the image has no more of enough detail.
        min_detail: least `detail` of a crop, grey levels a pixel.
        seed: with the image's name it decides crops and degradation.
    """

    degradation: DegradationConfig
    crop_size: int = 0
    crops_per_image: int = 1
    min_detail: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.crop_size < 0 or self.crop_size % self.degradation.scale:
            raise UserError(f"--crop_size {self.crop_size}: must be 0 or a multiple of the degradation's scale {self.degradation.scale}")
        if self.crops_per_image < 1:
            raise UserError(f"--crops_per_image {self.crops_per_image}: must be at least 1")
        if self.crop_size == 0 and (self.crops_per_image > 1 or self.min_detail > 0):
            raise UserError("--crops_per_image and --min_detail choose crops: give --crop_size too")

    def ids(self, stem):
        """The ids of the pairs of an image: its stem, with `_00`, `_01` ... appended to name crops."""
        return [f"{stem}_{index:02d}" for index in range(self.crops_per_image)] if self.crop_size else [stem]


@dataclass
class PairReport:
    """Pairs written now, pairs that were there already, and crops not found for want of size or detail."""

    written: int = 0
    kept: int = 0
    missing: int = 0


def make_pairs(image_path, output_dir, settings, num_workers=1):
    """Write the pairs of a folder; run again, it does what is left. The bytes do not depend on `num_workers`.

    Args:
        image_path: folder of HR images (or one image).
        output_dir: gets `gt/`, `lr/` and `settings.json`.
        settings: `PairSettings`.
        num_workers: processes.

    Returns:
        `PairReport`.

    Raises:
        UserError: no images, two with one stem, one unreadable or smaller than a crop; `output_dir` made with other settings.
    """
    if num_workers < 1:
        raise UserError(f"--num_workers {num_workers}: must be at least 1")
    paths, output_dir = list_images(image_path), Path(output_dir)
    least = settings.crop_size or settings.degradation.scale
    for path in paths:
        _check_size(path, least)
    if not (output_dir / "settings.json").exists() and any(output_dir.glob("*/*.png")):
        raise UserError(f"{output_dir}: holds images but no settings.json; use an empty --output_dir")
    settle(output_dir / "settings.json", _flatten({"image_path": str(image_path), **asdict(settings)}))
    for name in ("gt", "lr"):
        (output_dir / name).mkdir(exist_ok=True)

    report = PairReport()
    pending = []
    for path in paths:
        ids = settings.ids(path.stem)
        whole = sum(_is_whole(output_dir, pair_id) for pair_id in ids)
        report.kept += whole
        if whole < len(ids):
            pending.append(path)
    make = partial(_make_image_pairs, output_dir=output_dir, settings=settings)
    for written, missing in process_map(make, pending, num_workers, unit="image", desc="LR/GT pairs", disable=not pending):
        report.written += written
        report.missing += missing
    return report


def _flatten(settings, prefix=""):
    """{"a": {"b": 1}} → {"a.b": 1}: a setting that differs is then named alone."""
    if not isinstance(settings, dict):
        return {prefix[:-1]: settings}
    return {key: value for name, entry in settings.items() for key, value in _flatten(entry, f"{prefix}{name}.").items()}


def _check_size(path, least):
    """Read the header only, so that an image that cannot be used is named before the first is processed."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: too large ({error}); cut it into parts") from None
    except (OSError, SyntaxError, ValueError):
        read_image(path)  # raises, saying what is wrong
        raise
    if min(width, height) < least:
        raise UserError(f"{path}: {width}x{height} pixels, a side of at least {least} is needed; remove it or choose a smaller --crop_size")


def _is_whole(output_dir, pair_id):
    return all((output_dir / name / f"{pair_id}.png").exists() for name in ("gt", "lr"))


def _make_image_pairs(path, output_dir, settings):
    """Write what is missing of one image; returns (pairs written, crops not found)."""
    image = np.asarray(read_image(path))
    ids = settings.ids(path.stem)
    crops = choose_crops(image, settings, image_rng(settings.seed, f"{path.stem}/crops"))
    written = 0
    for pair_id, gt in zip(ids, crops, strict=False):
        if _is_whole(output_dir, pair_id):
            continue
        lr = degrade(gt.astype(np.float32) / 255, settings.degradation, image_rng(settings.seed, pair_id))
        save_image(Image.fromarray(gt), output_dir / "gt" / f"{pair_id}.png")
        save_image(Image.fromarray(to_uint8(lr)), output_dir / "lr" / f"{pair_id}.png")
        written += 1
    return written, len(ids) - len(crops)


def choose_crops(image, settings, rng):
    """GT crops of an (H, W, 3) uint8 image: those without overlap first, in the order drawn; never one position twice."""
    height, width = image.shape[:2]
    size = settings.crop_size
    if size == 0:
        scale = settings.degradation.scale
        return [image[: height // scale * scale, : width // scale * scale]]
    tries = settings.crops_per_image * TRIES_PER_CROP
    drawn = np.stack([rng.integers(height - size + 1, size=tries), rng.integers(width - size + 1, size=tries)], axis=1)
    corners = dict.fromkeys(map(tuple, drawn.tolist()))
    corners = [(top, left) for top, left in corners if detail(image[top : top + size, left : left + size]) >= settings.min_detail]
    apart = []
    for corner in corners:
        if all(abs(corner[0] - top) >= size or abs(corner[1] - left) >= size for top, left in apart):
            apart.append(corner)
    chosen = (apart + [corner for corner in corners if corner not in apart])[: settings.crops_per_image]
    return [np.ascontiguousarray(image[top : top + size, left : left + size]) for top, left in chosen]


def detail(image):
    """Root mean square gradient of the grey image, grey levels (of 255) a pixel: about 0 for sky, 10 and more for texture."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    down, right = np.diff(gray, axis=0)[:, :-1], np.diff(gray, axis=1)[:-1]
    return float(np.sqrt(np.mean(down**2 + right**2)))
