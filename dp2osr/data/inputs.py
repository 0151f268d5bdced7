"""Folders of images as a program's inputs: what is there, what is passed over, all that cannot be used at once."""

import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dp2osr.data.images import HEIF, OF_HEIC, decode_image, why_unreadable
from dp2osr.digests import MEMORY, digest
from dp2osr.errors import UserError, listed
from dp2osr.files import read_text

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
OPTIONAL = {".jpe", ".jfif", ".gif", ".avif", ".jp2", *HEIF}  # taken where Pillow can read the file, and told
LIKE_IMAGES = {  # what a user may take for an image that is read here: it is told when it is passed over
    ".heic", ".heif", ".hif", ".j2k", ".jxl", ".svg", ".psd", ".xcf", ".tga", ".ico", ".exr", ".hdr", ".dng",
    ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pdf", ".mp4", ".mov", ".avi",
}  # fmt: skip
SHOWN = 40  # names in a message
READERS = min(8, os.cpu_count() or 1)  # threads that decode inputs for a check


@dataclass(frozen=True)
class ImageFile:
    """An input: its path, its id (the stem; sub-folders and `__` before it), the sub-folder below the folder that was named, its size.

    Attributes:
        size: (width, height) upright, pixels.
    """

    path: Path
    id: str
    folder: str = ""
    size: tuple = (0, 0)

    @property
    def name(self) -> str:
        """The file's path below the folder that was named: sub-folders may hold files of one name."""
        return f"{self.folder}/{self.path.name}" if self.folder else self.path.name

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def content(self) -> str:
        """SHA-256 of the file."""
        return digest(self.path)


@dataclass
class Listing:
    """The images of a folder by their names, before one is opened.

    Attributes:
        files: `ImageFile`s, sorted by path; their sizes are not known yet.
        problems: {path: what is wrong with its name}.
        passed_over: lines about what is not taken, for the user.
    """

    where: Path
    files: list[ImageFile]
    problems: dict[Path, str] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)


def find_inputs(
    folder: str | Path, recursive: bool = False, skip_unreadable: bool = False,
    choose: Callable[[list[ImageFile]], list[ImageFile]] | None = None, leave_out: Callable[[Path], bool] | None = None,
    least: int = 1, flag: str = "", quiet: bool = False,
) -> tuple[list[ImageFile], dict[Path, str]]:  # fmt: skip
    """The images to work on, all of them decoded once (and remembered); what is not taken is told on stderr.

    Args:
        folder: a folder, a manifest.csv (column `file`, paths from its own folder, and perhaps `id`, image ids) or one image.
        recursive: take sub-folders too.
        skip_unreadable: go on without those that cannot be used.
        choose: list of `ImageFile` → those to take, as `evenly` does; only they are opened.
        leave_out: path → whether it is a result that lies among the inputs.
        least: shortest side allowed, pixels; flag: that says so.
        quiet: tell nothing: another process does.

    Returns:
        (list of `ImageFile`, {path: why it was skipped}).

    Raises:
        UserError: no image; images that cannot be used, all of them at once.
    """
    listing = scan(folder, recursive, leave_out)
    files = choose(listing.files) if choose else listing.files
    problems, good = dict(listing.problems), []
    read: list[str] = []
    unread: list[str] = []
    frames: list[str] = []
    for file, found in zip(files, examine([file.path for file in files], show=not quiet), strict=True):
        if file.path.suffix.lower() in OPTIONAL:
            (unread if found["problem"] else read).append(file.path.name)
            if found["problem"]:
                continue
        if problem := found["problem"] or too_small(found["size"], least, flag):
            problems[file.path] = problem
        else:
            good.append(replace(file, size=tuple(found["size"])))
        if found["frames"] > 1:
            frames.append(f"{file.path.name} ({found['frames']})")
    told = list(listing.passed_over)
    told += [f"{len(unread)} not of a format that is read here: {listed(unread, SHOWN)}"] if unread else []
    told += [f"read too: {listed(read, SHOWN)}"] if read else []
    told += [f"only the first frame is taken of {listed(frames, SHOWN)}"] if frames else []
    if told and not quiet:
        print(f"note: {listing.where}: {'; '.join(told)}", file=sys.stderr)
    if not good and not problems:
        raise UserError(f"{listing.where}: holds no image of {', '.join(sorted(EXTENSIONS))}{_passed_over(told)}")
    if problems and not (skip_unreadable and good):
        below = {path: path.relative_to(listing.where) if path.is_relative_to(listing.where) else path for path in problems}
        what = listed([f"{below[path]}: {why}" for path, why in problems.items()], SHOWN)
        ways = "mend or remove them" + ("" if skip_unreadable else ", or go on without them by --skip_unreadable where a program has it")
        raise UserError(f"{listing.where}: {len(problems)} of {len(files) + len(listing.problems)} images cannot be used: {what}; {ways}")
    return good, problems


def scan(folder: str | Path, recursive: bool = False, leave_out: Callable[[Path], bool] | None = None) -> Listing:
    """`Listing` of a folder, a manifest or one file.

    Raises:
        UserError: no such path, no image in it, or an unreadable manifest.
    """
    folder = Path(folder)
    passed_over: list[str] = []
    ids: dict[Path, str] = {}
    if folder.suffix == ".csv" and folder.is_file():
        root, (paths, ids) = folder.parent, _listed_in(folder)
    elif folder.is_dir():
        root, (paths, passed_over) = folder, _images_below(folder, recursive)
    elif os.path.lexists(folder):
        root, paths = folder.parent, [folder]
    else:
        raise UserError(f"{folder}: no such folder of images; put the path of yours in its place")
    results = [path for path in paths if leave_out and leave_out(path)]
    if results:
        passed_over.append(f"results of an earlier run are no inputs: {listed([path.name for path in results], 8)}")
    paths = [path for path in paths if path not in set(results)]
    if not paths:
        raise UserError(f"{folder}: holds no image of {', '.join(sorted(EXTENSIONS))}{_passed_over(passed_over)}")
    files: dict[str, ImageFile] = {}
    problems, twins = {}, []
    for path in sorted(paths, key=lambda path: path.suffix.lower() in OPTIONAL):
        file = ImageFile(path, ids[path]) if path in ids else ImageFile(path, *_named(path, root, recursive))
        problem = _name_problem(file)
        if not problem and file.id in files and path.suffix.lower() in OPTIONAL:
            twins.append(path.name)
            continue
        if not problem and file.id in files:
            problem = f"it and {files[file.id].path.name} share the stem '{file.path.stem}', which is the image id; rename one"
        if problem:
            problems[path] = problem
        else:
            files[file.id] = file
    if twins:
        passed_over.append(f"{len(twins)} with the name of another image: {listed(twins, SHOWN)}")
    return Listing(folder, sorted(files.values(), key=lambda file: file.path), problems, passed_over)


def _passed_over(lines: Sequence[str]) -> str:
    return f" ({'; '.join(lines)})" if lines else ""


def _named(path: Path, root: Path, recursive: bool) -> tuple[str, str]:
    """(image id, sub-folder) of an image."""
    if not recursive or not path.is_relative_to(root):
        return path.stem, ""
    folder = path.relative_to(root).parent.as_posix()
    folder = "" if folder == "." else folder
    return "__".join([*folder.split("/"), path.stem] if folder else [path.stem]), folder


def _name_problem(file: ImageFile) -> str | None:
    name = file.path.name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    if name.startswith("."):
        return "a hidden file, which later stages would not see; rename it"
    if "/" in file.id or file.id.startswith("."):
        return f"its id in the manifest, '{file.id}', is not the name of a file"
    if any(ord(letter) < 32 for letter in name):
        return "a control character in its name; rename it"
    return None


def _images_below(folder: Path, recursive: bool) -> tuple[list[Path], list[str]]:
    """(sorted image paths of a folder, lines about what is not taken)."""
    paths, like, hidden, folders = [], [], [], []
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if path.is_dir():
            if not path.name.startswith("."):
                folders.append(path)
        elif suffix in EXTENSIONS | OPTIONAL | LIKE_IMAGES:
            if path.name.startswith("."):
                hidden += [] if path.name.startswith("._") else [path]  # `._photo.png` is macOS's note about photo.png
            elif suffix in EXTENSIONS | OPTIONAL:
                paths.append(path)
            else:
                like.append(path)
    told = []
    if like:
        hint = " (HEIC is read once pillow-heif is installed)" if any(path.suffix.lower() in OF_HEIC for path in like) else ""
        told.append(f"{len(like)} not of a format that is read here: {listed([path.name for path in like], SHOWN)}{hint}")
    if hidden:
        told.append(f"{len(hidden)} hidden: {listed([path.name for path in hidden], SHOWN)}")
    if recursive:
        for sub in folders:
            more, also = _images_below(sub, recursive)
            paths += more
            told += [f"in {sub.name}: {line}" for line in also]
        return paths, told
    full = [sub for sub in folders if any(entry.suffix.lower() in EXTENSIONS for entry in _entries(sub))]
    if full:
        told.append(f"{len(full)} sub-folders with images are not entered without --recursive: {listed([sub.name for sub in full], SHOWN)}")
    return paths, told


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def examine(paths: Iterable[Path], show: bool = False) -> list[dict[str, Any]]:
    """What is known of each image: {"size": [width, height], "frames": int, "problem": what is wrong or None}, remembered."""
    found, todo = {}, []
    for path in paths:
        todo.append(path) if os.path.exists(path) else found.update(
            {path: _unusable("a broken link" if path.is_symlink() else "not there")}
        )
    parts = [todo[start : start + 64] for start in range(0, len(todo), 64)]
    for part in tqdm(parts, desc="check images", unit="x 64", delay=3, disable=not show):
        found.update(zip(part, MEMORY.recall_all(part, "image with HEIF" if HEIF else "image", _examine, READERS), strict=True))
    return [found[path] for path in paths]


def _examine(path: str) -> dict[str, Any]:
    """Decode one image."""
    try:
        if not os.path.getsize(path):
            return _unusable("an empty file")
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
        return {"size": list(decode_image(path).size), "frames": frames, "problem": None}
    except Exception as error:  # a decoder of Pillow may raise anything on a broken file
        return _unusable(f"not a readable image ({why_unreadable(error)})")


def _unusable(problem: str) -> dict[str, Any]:
    return {"size": [0, 0], "frames": 1, "problem": problem}


def too_small(size: Sequence[int], least: int, flag: str = "") -> str | None:
    """What is wrong with an image of this size, or None."""
    if min(size) >= least:
        return None
    return f"{size[0]}x{size[1]} pixels, a side of at least {least} is needed{' by ' + flag if flag else ''}"


def list_images(folder: str | Path) -> list[Path]:
    """Image paths of a folder, of a manifest.csv or the one file named, sorted; none is opened.

    Raises:
        UserError: no such path, no image in it, images with one name (all are listed), or an unreadable manifest.
    """
    listing = scan(folder)
    if listing.problems:
        what = listed([f"{path.name}: {why}" for path, why in listing.problems.items()], SHOWN)
        raise UserError(f"{folder}: {len(listing.problems)} images cannot be used: {what}")
    return [file.path for file in listing.files]


def check_images(paths: Sequence[Path], where: str | Path) -> list[tuple[int, ...]]:
    """Raise `UserError` that names all of `paths` that cannot be decoded; returns their sizes, (width, height)."""
    found = examine(list(paths))
    bad = [f"{path.name}: {about['problem']}" for path, about in zip(paths, found, strict=True) if about["problem"]]
    if bad:
        raise UserError(f"{where}: {len(bad)} of {len(found)} images cannot be used: {listed(bad, SHOWN)}; mend or remove them")
    return [tuple(about["size"]) for about in found]


def find_gt(gt_path: str | Path, image_ids: Sequence[str]) -> dict[str, Path]:
    """{image id: path of its GT}, all of them decoded once. Ids of sub-folders (`folder__name`) are looked for there.

    Raises:
        UserError: images without a GT, or GT that cannot be read; all are named.
    """
    paths = {path.stem: path for path in list_images(gt_path)} if not _only_folders(gt_path) else {}
    missing = [image_id for image_id in image_ids if image_id not in paths]
    if any("__" in image_id for image_id in missing) and Path(gt_path).is_dir():
        paths = {file.id: file.path for file in scan(gt_path, recursive=True).files} | paths
        missing = [image_id for image_id in image_ids if image_id not in paths]
    if missing:
        count = f"{len(missing)} of {len(image_ids)} images"
        raise UserError(f"{gt_path}: no GT for {count}: {listed(missing, SHOWN)}; a GT has the name of its LR image")
    check_images([paths[image_id] for image_id in image_ids], gt_path)
    return {image_id: paths[image_id] for image_id in image_ids}


def _only_folders(path: str | Path) -> bool:
    """Whether a folder has images in its sub-folders alone."""
    path = Path(path)
    return path.is_dir() and not _images_below(path, False)[0] and any(entry.is_dir() for entry in path.iterdir())


def _listed_in(manifest: Path) -> tuple[list[Path], dict[Path, str]]:
    """(sorted paths of a manifest, the ids that it gives some of them)."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(manifest), newline="")))
        paths = sorted(manifest.parent / row["file"] for row in rows)
        ids = {manifest.parent / row["file"]: row["id"] for row in rows if row.get("id")}
    except (KeyError, TypeError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{manifest}: not a manifest with a column 'file'; scripts/prepare_data.py writes one") from None
    missing = [path for path in paths if not path.is_file()]
    if missing:
        some = listed([str(path) for path in missing], SHOWN)
        raise UserError(f"{manifest}: {len(missing)} of its {len(paths)} images are not there: {some}")
    return paths, ids
