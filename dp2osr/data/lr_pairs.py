"""LR/GT pairs of a folder of HR images: crop, degrade, write `gt/<id>.png` and `lr/<id>.png`."""

import os
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from dp2osr.data.degradation import degrade, image_rng, to_uint8
from dp2osr.data.degradation_settings import DegradationConfig, load_degradation
from dp2osr.data.images import read_image
from dp2osr.data.inputs import ImageFile, find_inputs
from dp2osr.data.settings import PairsSettings
from dp2osr.errors import UserError, counted, listed
from dp2osr.files import as_json, check_same_program, clear_parts, keep_settings, read_json, write_json
from dp2osr.outputs import check_output
from dp2osr.parallel import process_map
from dp2osr.results import RECORDS, Results

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

    def __post_init__(self) -> None:
        if self.crop_size < 0 or self.crop_size % self.degradation.scale:
            raise UserError(f"--crop_size {self.crop_size}: must be 0 or a multiple of the degradation's scale {self.degradation.scale}")
        if self.crops_per_image < 1:
            raise UserError(f"--crops_per_image {self.crops_per_image}: must be at least 1")
        if self.crop_size == 0 and (self.crops_per_image > 1 or self.min_detail > 0):
            raise UserError("--crops_per_image and --min_detail choose crops: give --crop_size too")

    def ids(self, stem: str) -> list[str]:
        """The ids of the pairs of an image: its stem, with `_00`, `_01` ... appended to name crops."""
        return [f"{stem}_{index:02d}" for index in range(self.crops_per_image)] if self.crop_size else [stem]


@dataclass
class PairReport:
    """Pairs written now, pairs that were there already, and crops not found for want of size or detail."""

    written: int = 0
    kept: int = 0
    missing: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)  # path: why it was not used


def make_pairs(
    image_path: str | Path, output_dir: str | Path, settings: PairSettings, num_workers: int = 1, recursive: bool = False,
    skip_unreadable: bool = False, adopt: bool = False,
) -> PairReport:  # fmt: skip
    """Write the pairs of a folder; run again, it does what is left. The bytes do not depend on `num_workers`.

    Args:
        image_path: folder of HR images (or one image).
        output_dir: gets `gt/`, `lr/`, `settings.json` and a record of each pair.
        num_workers: processes.
        recursive, skip_unreadable: see `find_inputs`; adopt: see `Results.missing`.

    Returns:
        `PairReport`.

    Raises:
        UserError: images that cannot be used or are smaller than a crop, all of them named; `output_dir` made with other settings, or with
            files in the way that this program did not write.
    """
    if num_workers < 1:
        raise UserError(f"--num_workers {num_workers}: must be at least 1")
    check_output(output_dir)
    output_dir = Path(output_dir)
    files, skipped = find_inputs(
        image_path,
        recursive,
        skip_unreadable,
        least=settings.crop_size or settings.degradation.scale,
        flag="--crop_size" if settings.crop_size else "",
    )
    decisive = _flatten({"image_path": str(image_path), **asdict(settings)})
    results = Results(output_dir, decisive, not_compared=("image_path",), flags=("--output_dir", "--adopt"))
    wanted = {name: {"image": file.content} for file in files for pair_id in settings.ids(file.id) for name in _names(pair_id)}
    results.check_inputs(wanted, [file.path for file in files])
    record, found = output_dir / "settings.json", any(os.path.lexists(output_dir / name) for name in wanted) or results.any_record()
    if record.exists() and found:
        keep_settings(record, decisive)
    elif record.exists():  # of a command that made nothing
        check_same_program(record, read_json(record), as_json(decisive))
    missing = set(results.missing(wanted, adopt=adopt))
    if not record.exists() and found and not adopt:
        raise UserError(f"{output_dir}: holds images but no settings.json; use an empty --output_dir")
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, decisive)
    for folder in ("gt", "lr", RECORDS):
        clear_parts(output_dir / folder)

    report = PairReport(skipped=skipped)
    pending = []
    for file in files:
        # half a pair is none: both halves are written
        names = {pair_id: _names(pair_id) if missing & set(_names(pair_id)) else [] for pair_id in settings.ids(file.id)}
        report.kept += sum(not lacking for lacking in names.values())
        if any(names.values()):
            pending.append((file, names))
    make = partial(_make_image_pairs, results=results, settings=settings)
    for written, absent in process_map(make, pending, num_workers, unit="image", desc="LR/GT pairs", disable=not pending):
        report.written += written
        report.missing += absent
    return report


def pairs_by_settings(args: PairsSettings) -> None:
    """The pairs that the flags of `scripts/make_lr_pairs.py` ask for; the last line says what was done. Errors as `make_pairs`."""
    settings = PairSettings(load_degradation(args.degradation), args.crop_size, args.crops_per_image, args.min_detail, args.seed)
    report = make_pairs(args.image_path, args.output_dir, settings, args.num_workers, args.recursive, args.skip_unreadable, args.adopt)
    print(report_line(args.output_dir, report))


def report_line(folder: str | Path, report: PairReport) -> str:
    """What was written, kept and passed over, for the user."""
    short = f"; {report.missing} crops fewer than asked for, for want of size or detail" if report.missing else ""
    skipped = listed([f"{path.name} ({why})" for path, why in report.skipped.items()], 40)
    more = f"; {counted(len(report.skipped), 'input')} skipped: {skipped}" if report.skipped else ""
    return f"{folder}: {counted(report.written, 'pair')} written, {report.kept} already there{short}{more}"


def _names(pair_id: str) -> list[str]:
    """A pair's files below the output folder."""
    return [f"{name}/{pair_id}.png" for name in ("gt", "lr")]


def _flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}: a setting that differs is then named alone."""
    if not isinstance(settings, dict):
        return {prefix[:-1]: settings}
    return {key: value for name, entry in settings.items() for key, value in _flatten(entry, f"{prefix}{name}.").items()}


def _make_image_pairs(job: tuple[ImageFile, dict[str, list[str]]], results: Results, settings: PairSettings) -> tuple[int, int]:
    """Write what is missing of one image: `job` is (its `ImageFile`, {pair id: names of the missing files}).

    Returns (pairs written, crops not found); pairs of an earlier image that this one has no crop for are removed.
    """
    file, missing = job
    image = np.asarray(read_image(file.path))
    ids = settings.ids(file.id)
    crops = choose_crops(image, settings, image_rng(settings.seed, f"{file.id}/crops"))
    written = 0
    for pair_id, gt in zip(ids, crops, strict=False):
        if not missing[pair_id]:
            continue
        lr = degrade(gt.astype(np.float32) / 255, settings.degradation, image_rng(settings.seed, pair_id))
        for name, pixels in zip(_names(pair_id), (gt, to_uint8(lr)), strict=True):
            if name in missing[pair_id]:
                with results.writing(name, {"image": file.content}) as part:
                    Image.fromarray(pixels).save(part, format="PNG")
        written += 1
    for pair_id in ids[len(crops) :]:
        for name in _names(pair_id):
            results.discard(name)
    return written, len(ids) - len(crops)


def choose_crops(image: np.ndarray, settings: PairSettings, rng: np.random.Generator) -> list[np.ndarray]:
    """GT crops of an (H, W, 3) uint8 image: those without overlap first, in the order drawn; never one position twice."""
    height, width = image.shape[:2]
    size = settings.crop_size
    if size == 0:
        scale = settings.degradation.scale
        return [image[: height // scale * scale, : width // scale * scale]]
    tries = settings.crops_per_image * TRIES_PER_CROP
    drawn = np.stack([rng.integers(height - size + 1, size=tries), rng.integers(width - size + 1, size=tries)], axis=1)
    distinct = dict.fromkeys(map(tuple, drawn.tolist()))
    corners = [(top, left) for top, left in distinct if detail(image[top : top + size, left : left + size]) >= settings.min_detail]
    apart: list[tuple[int, int]] = []
    for corner in corners:
        if all(abs(corner[0] - top) >= size or abs(corner[1] - left) >= size for top, left in apart):
            apart.append(corner)
    chosen = (apart + [corner for corner in corners if corner not in apart])[: settings.crops_per_image]
    return [np.ascontiguousarray(image[top : top + size, left : left + size]) for top, left in chosen]


def detail(image: np.ndarray) -> float:
    """Root mean square gradient of the grey image, grey levels (of 255) a pixel: about 0 for sky, 10 and more for texture."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    down, right = np.diff(gray, axis=0)[:, :-1], np.diff(gray, axis=1)[:-1]
    return float(np.sqrt(np.mean(down**2 + right**2)))
