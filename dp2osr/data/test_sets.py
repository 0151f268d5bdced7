"""The test sets of real-world super-resolution, from what is distributed to `lr/` and `gt/` of one name and size."""

import csv
import io
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dp2osr.data.images import read_image, save_image
from dp2osr.data.inputs import EXTENSIONS, check_images, find_inputs, list_images, too_small
from dp2osr.digests import digest
from dp2osr.errors import UserError, listed
from dp2osr.files import read_text, replace_folder, write_text
from dp2osr.outputs import check_output


@dataclass(frozen=True)
class TestSet:
    """What a test set should hold: its number of images, the LR side, pixels (None: any), whether it has GT, and where it comes from."""

    __test__ = False  # not one of pytest's

    count: int
    lr_size: int | None
    has_gt: bool
    origin: str


TEST_SETS = {
    "RealSR": TestSet(100, 128, True, "RealSRVal_crop128 of StableSR's test sets, or the Test/4 folders of RealSR (version 3)"),
    "DRealSR": TestSet(93, 128, True, "DrealSRVal_crop128 of StableSR's test sets, or Test_x4 of DRealSR"),
    "DIV2K-Val": TestSet(3000, 128, True, "DIV2K_V2_val of StableSR's test sets"),
    "RealLR200": TestSet(200, None, False, "SeeSR's release"),
    "RealLQ250": TestSet(250, 256, False, "DreamClear's release"),
}
LR_NAMES, GT_NAMES = ("test_lr", "lr", "lq", "input"), ("test_hr", "hr", "gt", "target")
SUFFIX = re.compile(r"_?(LR4?|HR|x1|x4)$", re.IGNORECASE)  # Canon_001_LR4, panasonic_12_x1
SCALE = 4


def prepare(name: str, source: str | Path, output_dir: str | Path, any_count: bool = False) -> int:
    """Write `<output_dir>/<name>/lr/<id>.png`, `gt/<id>.png` and `manifest.csv`; images larger than the set's are cut to their middle.

    Args:
        name: in `TEST_SETS`.
        source: folder or archive (zip, tar) as distributed.
        any_count: accept another number of images than is expected.

    Returns:
        Number of images.

    Raises:
        UserError: no images found, pairs that do not match in name or size, another number than is expected, or a folder in the way that
            was not written by this function.
    """
    wanted, target = TEST_SETS[name], Path(output_dir) / name
    _check_target(target, Path(source))
    with opened(source) as folder:
        pairs: Mapping[str, tuple[Path, Path | None]]
        pairs = find_pairs(folder) if wanted.has_gt else {path.stem: (path, None) for path in list_images(_largest_folder(folder))}
        if len(pairs) != wanted.count and not any_count:
            raise UserError(
                f"{source}: {len(pairs)} images, {name} has {wanted.count} ({wanted.origin}); give that, or --any_count for these"
            )
        _check_pairs(source, pairs, wanted.lr_size)

        def fill(part: Path) -> None:
            for kind in ("lr", "gt") if wanted.has_gt else ("lr",):
                (part / kind).mkdir(parents=True)
            for image_id, (lr, gt) in tqdm(sorted(pairs.items()), desc=name, unit="image"):
                _write_pair(image_id, lr, gt, part, wanted.lr_size)
            write_manifest(part)

        target.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(target, fill)
    return len(pairs)


def _check_target(target: Path, source: Path) -> None:
    """Refuse (UserError) to write over the source, or over a folder that was not written here."""
    there, given = target.resolve(), source.resolve()
    if there == given or there in given.parents or given in there.parents:
        raise UserError(f"{target}: is, holds or lies in {source}, which would be lost; give another --output_dir")
    check_output(target.parent)
    if target.exists() and not _is_own(target):
        raise UserError(f"{target}: is there and was not written by this program; give another --output_dir, or move it away")


def _is_own(folder: Path) -> bool:
    """Whether a folder holds what its manifest lists, all of it in `lr/` and `gt/`, and nothing else: it can be made again."""
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        return False
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file() and path != manifest}
    listed_ones = _hashes(manifest)
    in_place = all(name.startswith(("lr/", "gt/")) for name in there)
    return in_place and there.keys() == listed_ones.keys() and all(digest(path) == listed_ones[name] for name, path in there.items())


def _check_pairs(source: str | Path, pairs: Mapping[str, tuple[Path, Path | None]], lr_size: int | None) -> None:
    """Raise `UserError` that names every image that cannot be read, or is not of the size that it must have."""
    images = [path for sides in pairs.values() for path in sides if path]
    sizes = dict(zip(images, check_images(images, source), strict=True))
    wrong = []
    for lr, gt in pairs.values():
        (width, height) = sizes[lr]
        if gt and sizes[gt] != (SCALE * width, SCALE * height):
            wrong.append(f"{gt.name} is {sizes[gt][0]} x {sizes[gt][1]} pixels, not {SCALE} times its LR image's {width} x {height}")
        if gt and lr_size and min(width, height) < lr_size:
            wrong.append(f"{lr.name} is {width} x {height} pixels, smaller than {lr_size}")
    if wrong:
        raise UserError(f"{source}: {listed(wrong, 40)}; give the set as it is distributed")


@contextmanager
def opened(source: str | Path) -> Iterator[Path]:
    """Within, the folder that `source` is, or that an archive was unpacked to."""
    source = Path(source)
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise UserError(f"{source}: no such folder or archive")
    with tempfile.TemporaryDirectory() as folder:
        try:
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source) as archive:
                    archive.extractall(folder)
            else:
                with tarfile.open(source) as archive:
                    archive.extractall(folder, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{source}: not a readable zip or tar archive ({error}); download it again") from None
        yield Path(folder)


def find_pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """{id: (LR path, GT path)}: two folders with the usual names under one parent, or files told apart by their endings.

    Raises:
        UserError: nothing of the kind, or several, or an image without its other half.
    """
    folders = [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())]
    images = {path: _images(path) for path in folders}
    parents: dict[Path, dict[str, Path]] = {}
    for path in folders:
        kind = "lr" if path.name.lower() in LR_NAMES else "gt" if path.name.lower() in GT_NAMES else None
        if kind and images[path]:
            parents.setdefault(path.parent, {})[kind] = path
    whole = [sides for sides in parents.values() if len(sides) == 2]
    if len(whole) > 1:
        raise UserError(f"{folder}: holds several sets ({', '.join(str(sides['lr'].parent) for sides in whole)}); name one of them")
    if whole:
        lr, gt = images[whole[0]["lr"]], images[whole[0]["gt"]]
    else:
        every = [path for paths in images.values() for path in paths]
        lr = [path for path in every if re.search(r"_?(LR4?|x4)$", path.stem, re.IGNORECASE)]
        gt = [path for path in every if re.search(r"_?(HR|x1)$", path.stem, re.IGNORECASE)]
    by_id = {kind: {SUFFIX.sub("", path.stem): path for path in paths} for kind, paths in (("lr", lr), ("gt", gt))}
    if not by_id["lr"] or not by_id["gt"]:
        raise UserError(
            f"{folder}: no LR and GT images found; expected folders such as test_LR and test_HR, or files such as x_LR4 and x_HR"
        )
    lonely = sorted(by_id["lr"].keys() ^ by_id["gt"].keys())
    if lonely:
        raise UserError(f"{folder}: {len(lonely)} images have no other half, the first is {lonely[0]}; LR and GT must have the same names")
    return {image_id: (path, by_id["gt"][image_id]) for image_id, path in by_id["lr"].items()}


def _images(folder: Path) -> list[Path]:
    names = (path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."))
    return sorted(path for path in names if path.is_file())


def _largest_folder(folder: Path) -> Path:
    """The folder with the most images, `folder` or below it."""
    folders = [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())]
    return max(folders, key=lambda path: len(_images(path)))


def _write_pair(image_id: str, lr: Path, gt: Path | None, target: Path, lr_size: int | None) -> None:
    """Both as PNG; the file itself where it is one of the right size."""
    low = read_image(lr)
    high = read_image(gt) if gt else None
    for path, image, kind, scale in ((lr, low, "lr", 1), (gt, high, "gt", SCALE)):
        if image is None or path is None:
            continue
        side, file = scale * (lr_size or 0), target / kind / f"{image_id}.png"
        if lr_size and gt and image.size != (side, side):
            left, top = scale * ((low.width - lr_size) // 2), scale * ((low.height - lr_size) // 2)
            save_image(image.crop((left, top, left + side, top + side)), file)
        elif path.suffix.lower() == ".png":
            shutil.copyfile(path, file)
        else:
            save_image(image, file)


# ---------------------------------------------------------------- manifests


def write_manifest(folder: str | Path, least: int = 0, skip_unreadable: bool = False) -> tuple[int, dict[Path, str]]:
    """Write `manifest.csv` of a folder: each image's path in it, width, height and SHA-256.

    Args:
        least: leave out images of which a side has fewer pixels.
        skip_unreadable: leave out images that cannot be used, instead of raising UserError.

    Returns:
        (number of images, {path: why it was left out}).
    """
    folder, stream, count = Path(folder), io.StringIO(), 0
    if (folder / "manifest.csv").exists():
        _hashes(folder / "manifest.csv")  # a manifest.csv of another kind is not replaced
    check_output(folder / "manifest.csv", "manifest", is_file=True)
    files, left_out = find_inputs(folder, recursive=True, skip_unreadable=skip_unreadable)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["file", "width", "height", "sha256"])
    for file in sorted(files, key=lambda file: file.path):
        if problem := too_small(file.size, least):
            left_out[file.path] = problem
            continue
        count += 1
        writer.writerow([file.path.relative_to(folder).as_posix(), *file.size, file.content])
    write_text(folder / "manifest.csv", stream.getvalue())
    return count, left_out


def check_manifest(folder: str | Path, other: str | Path) -> None:
    """Raise `UserError` unless the images of `folder` are those of the manifest `other`: what is missing, more or different is named."""
    rows, here = _hashes(other), _hashes(Path(folder) / "manifest.csv")
    differing = sorted(name for name in rows.keys() | here.keys() if rows.get(name) != here.get(name))
    if differing:
        raise UserError(f"{folder}: {len(differing)} of {len(rows)} images are not those of {other}, the first is {differing[0]}")


def _hashes(manifest: str | Path) -> dict[str, str]:
    try:
        return {row["file"]: row["sha256"] for row in csv.DictReader(io.StringIO(read_text(manifest), newline=""))}
    except (OSError, KeyError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{manifest}: not a manifest with the columns file and sha256 ({error})") from None
