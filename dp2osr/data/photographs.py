"""Real photographs from package registries, as a manifest lists them: one row a photograph.

A manifest (CSV) has these columns:

* ``stem``: the photograph's id, the name of its PNG.
* ``split``: the folder it goes to. ``train`` and ``pref`` are for training a model and its preferences, ``val`` is for choosing settings,
  ``test`` is for reporting and comes from sources that no other split uses.
* ``source``: ``deb:PACKAGE`` (Debian) or ``pip:PACKAGE`` (the installed wheel).
* ``member``: path inside the package; ``ARCHIVE!PATH`` for a file in a Qt resource file (``.rcc``) or a zip archive (``.pk3``, ``.jar``).
* ``box`` (optional): ``LEFT:TOP:RIGHT:BOTTOM``, the pixels that are used; empty for the whole picture.
* ``short_side``: the photograph is reduced to it (never enlarged), which removes the traces of its own compression and interpolation.
* ``prompt``: its tags, separated by commas.
* ``licence``, ``credit``: from the package's own copyright file or texts.

What is transparent in a picture is filled with its own colours, blurred: a cut-out object gets a background as if out of focus.
"""

import csv
import glob
import io
import shutil
import struct
import subprocess
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from dp2osr.errors import UserError
from dp2osr.files import read_json, read_text, whole, write_json

Image.MAX_IMAGE_PIXELS = None  # 4 K wallpapers are larger than Pillow's default guard allows
COLUMNS = ("stem", "split", "source", "member", "short_side", "prompt")  # those that every row must have
TRANSPARENT = 0.001  # share of pixels that are not opaque from which a picture counts as a cut-out


def read_manifest(path: str | Path) -> list[dict[str, str]]:
    """Rows of the manifest as dictionaries, in file order.

    Raises:
        UserError: the manifest is missing, lacks a column, names a stem twice, or has a source, side or box of no meaning.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable manifest of photographs ({error})") from None
    if not rows or any(row.get(column) is None for row in rows for column in COLUMNS):
        raise UserError(f"{path}: not a manifest of photographs; every row must have {', '.join(COLUMNS)}")
    seen = set()
    for row in rows:
        stem = row["stem"]
        if stem in seen:
            raise UserError(f"{path}: the stem {stem} has two rows; give each photograph its own")
        seen.add(stem)
        if not stem or Path(stem).name != stem or not row["split"] or Path(row["split"]).name != row["split"]:
            raise UserError(f"{path}: stem {stem!r}, split {row['split']!r}: both must be plain names, without folders")
        if row["source"].partition(":")[0] not in ("deb", "pip") or not row["source"].partition(":")[2]:
            raise UserError(f"{path}: {stem}: source {row['source']!r} must be deb:PACKAGE or pip:PACKAGE")
        if not row["short_side"].isdigit() or int(row["short_side"]) < 1:
            raise UserError(f"{path}: {stem}: short_side {row['short_side']!r} must be a whole number of at least 1")
        try:
            parse_box(row.get("box"))
        except ValueError:
            raise UserError(f"{path}: {stem}: box {row['box']!r} must be LEFT:TOP:RIGHT:BOTTOM in pixels, or empty") from None
    return rows


def parse_box(text: str | None) -> tuple[int, int, int, int] | None:
    """``"LEFT:TOP:RIGHT:BOTTOM"`` → (left, top, right, bottom); None for an empty text. ValueError if it is no box."""
    if not text:
        return None
    left, top, right, bottom = (int(number) for number in text.split(":"))
    if not (0 <= left < right and 0 <= top < bottom):
        raise ValueError(text)
    return left, top, right, bottom


def unpack_debian(package: str, workdir: str | Path) -> Path:
    """Download the Debian package with apt-get and unpack it; returns the root of its files. A whole folder or none is left."""
    workdir = Path(workdir)
    root = workdir / package
    if not root.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        part = workdir / f"{package}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            if not list(workdir.glob(f"{package}_*.deb")):
                subprocess.run(["apt-get", "download", "-qq", package], cwd=workdir, check=True, stderr=subprocess.DEVNULL)
            archive = next(workdir.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive, part], check=True)
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            raise UserError(f"Debian package {package}: cannot be fetched ({error}); apt-get must reach a Debian archive here") from None
        part.rename(root)
    return root


@lru_cache(maxsize=2)
def _read_bytes(archive: Path) -> bytes:
    return Path(archive).read_bytes()


def read_qt_resource(archive: Path, member: str) -> bytes:
    """Bytes of `member` (``folder/file``, matched from the right) in a Qt resource file (format version 2 or 3)."""
    blob = _read_bytes(archive)
    version, tree, data, names = struct.unpack(">4I", blob[4:20])
    entry_size = 22 if version >= 2 else 14

    def name(offset: int) -> str:
        length = struct.unpack_from(">H", blob, names + offset)[0]
        start = names + offset + 6
        return blob[start : start + 2 * length].decode("utf-16-be")

    def walk(index: int, path: str) -> Iterator[tuple[str, int, int]]:
        entry = tree + index * entry_size
        name_offset, flags = struct.unpack_from(">IH", blob, entry)
        path = f"{path}/{name(name_offset)}" if index else ""
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", blob, entry + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        else:
            yield path, flags, data + struct.unpack_from(">I", blob, entry + 10)[0]

    for path, flags, start in walk(0, ""):
        if path.endswith("/" + member):
            length = struct.unpack_from(">I", blob, start)[0]
            content = blob[start + 4 : start + 4 + length]
            return zlib.decompress(content[4:]) if flags & 1 else content
    raise FileNotFoundError(f"{archive}: no member {member}")


def read_member(root: Path, member: str) -> bytes:
    """Bytes of a `member` as a manifest names it (see the module's text), below the package's folder `root`."""
    archive, _, inner = member.partition("!")
    if not inner:
        return (root / archive).read_bytes()
    if archive.endswith(".rcc"):
        return read_qt_resource(root / archive, inner)
    with zipfile.ZipFile(root / archive) as opened:
        return opened.read(inner)


def fill_transparent(image: Image.Image) -> Image.Image:
    """An RGB image of one that may have transparent parts: those get its own colours, blurred over an eighth of its short side."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    alpha = np.asarray(image, np.float32)[..., 3:] / 255
    if np.mean(alpha < 1) < TRANSPARENT:
        return image.convert("RGB")
    colours = np.asarray(image, np.float32)[..., :3]
    sigma = min(image.size) / 8
    mean = (colours * alpha).sum((0, 1)) / max(alpha.sum(), 1)
    weight = cv2.GaussianBlur(alpha, (0, 0), sigma)[..., None] + 1e-3
    behind = (cv2.GaussianBlur(colours * alpha, (0, 0), sigma) + 1e-3 * mean) / weight
    return Image.fromarray(np.clip(colours * alpha + behind * (1 - alpha) + 0.5, 0, 255).astype(np.uint8))


def open_photograph(row: Mapping[str, str], workdir: str | Path) -> Image.Image:
    """The photograph of a manifest row as an RGB `PIL.Image`: cut to its `box`, reduced to its `short_side` (Lanczos).

    Raises:
        UserError: the package cannot be had, or has no such member, or it is no image, or the box is not inside it.
    """
    kind, package = row["source"].split(":", 1)
    root = unpack_debian(package, workdir) if kind == "deb" else Path(sysconfig.get_paths()["purelib"])
    try:
        image: Image.Image = Image.open(io.BytesIO(read_member(root, row["member"])))
        image.load()
    except (OSError, KeyError, struct.error, zipfile.BadZipFile, UnidentifiedImageError) as error:
        how = "" if kind == "deb" else f"; install it with: pip install {package}"
        raise UserError(f"{row['stem']}: {row['source']} has no readable picture {row['member']} ({error}){how}") from None
    box = parse_box(row.get("box"))
    if box:
        if box[2] > image.width or box[3] > image.height:
            raise UserError(f"{row['stem']}: box {row['box']} reaches outside the picture of {image.width} × {image.height} pixels")
        image = image.crop(box)
    image = fill_transparent(image)
    scale = int(row["short_side"]) / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return image


def fetch_photographs(
    rows: Sequence[Mapping[str, str]],
    output_dir: str | Path,
    work_dir: str | Path,
    progress: Callable[[list[Mapping[str, str]]], Iterable[Mapping[str, str]]] = iter,
) -> tuple[int, int]:
    """Write ``SPLIT/STEM.png`` of every row, ``prompts.json`` (stem → tags) and ``photographs.json`` (what each PNG was made of).

    Run again, it does what is left: a PNG stays as long as its row says the same. One whose row changed is made anew, and moves with its
    split; of two splits no photograph is ever in both.

    Args:
        rows: of `read_manifest`.
        output_dir: folder of the splits.
        work_dir: where packages are unpacked.
        progress: wraps the rows, for example `tqdm`.

    Returns:
        (PNGs written, PNGs that were there already).
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    record = output_dir / "photographs.json"
    made = read_json(record) if record.exists() else {}
    write_json(output_dir / "prompts.json", {row["stem"]: row["prompt"] for row in rows})
    written = 0
    try:
        for row in progress(sorted(rows, key=lambda row: (row["source"], row["member"]))):  # an archive is opened once
            recipe = {name: row.get(name) or "" for name in ("split", "source", "member", "box", "short_side")}
            path = output_dir / row["split"] / f"{row['stem']}.png"
            if path.exists() and made.get(row["stem"], recipe) == recipe:  # a folder without a record is one of an earlier version
                made[row["stem"]] = recipe
                continue
            image = open_photograph(row, work_dir)
            for stale in output_dir.glob(f"*/{glob.escape(row['stem'])}.png"):
                stale.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as part:
                image.save(part, format="PNG", compress_level=1)
            made[row["stem"]] = recipe
            written += 1
    finally:
        write_json(record, made)
    for stem in set(made) - {row["stem"] for row in rows}:  # no longer in the manifest
        (output_dir / made[stem]["split"] / f"{stem}.png").unlink(missing_ok=True)
        del made[stem]
    write_json(record, made)
    return written, len(rows) - written


def near_duplicates(paths: list[Path], correlation: float = 0.9, bits: int = 12) -> list[tuple[Path, Path, float, int]]:
    """Pairs of photographs that may be one picture: [(path, path, correlation, differing bits)], the closest first.

    Two pictures count where their grey 48 × 48 thumbnails, one of them mirrored or not, correlate by at least `correlation`, or their
    256-bit difference hashes (the sign of each step to the right) differ in at most `bits` bits.
    """
    thumbnails, hashes = [], []
    for path in paths:
        with Image.open(path) as image:
            gray = image.convert("L")
        pixels = np.asarray(gray.resize((48, 48), Image.Resampling.BOX), np.float32)
        thumbnails.append((pixels - pixels.mean()) / (pixels.std() + 1e-6))
        steps = np.asarray(gray.resize((17, 16), Image.Resampling.BOX), np.int16)
        hashes.append((np.diff(steps) > 0).ravel())
    plain = np.stack(thumbnails)
    flat = plain.reshape(len(plain), -1)
    mirrored = plain[:, :, ::-1].reshape(len(plain), -1)
    likeness = np.maximum(flat @ flat.T, flat @ mirrored.T) / flat.shape[1]
    found = []
    for i, j in zip(*np.triu_indices(len(plain), 1), strict=True):
        differing = int(np.sum(hashes[i] != hashes[j]))
        if likeness[i, j] >= correlation or differing <= bits:
            found.append((paths[i], paths[j], float(likeness[i, j]), differing))
    return sorted(found, key=lambda pair: -pair[2])
