"""Real photographs from package registries, as a manifest lists them: one row a photograph.

A manifest (CSV) has the columns ``stem, split, source, member, short_side, prompt, licence, credit``. `source` is
``deb:PACKAGE`` (Debian) or ``pip:PACKAGE`` (the installed wheel); `member` is the path inside the package, with
``archive.rcc!path`` for a file inside a Qt resource file. Photographs are reduced to `short_side` pixels, which removes
the traces of their own compression.
"""

import csv
import io
import struct
import subprocess
import sysconfig
import zlib
from pathlib import Path

from PIL import Image

from dp2osr.errors import UserError
from dp2osr.files import read_text

Image.MAX_IMAGE_PIXELS = None  # 4 K wallpapers are larger than Pillow's default guard allows


def read_manifest(path):
    """Rows of the manifest as dictionaries, in file order; UserError if it is missing or lacks a column."""
    columns = ("stem", "split", "source", "member", "short_side", "prompt")
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable manifest of photographs ({error})") from None
    if not rows or any(row.get(column) is None for row in rows for column in columns):
        raise UserError(f"{path}: not a manifest of photographs; every row must have {', '.join(columns)}")
    return rows


def unpack_debian(package, workdir):
    """Download the Debian package with apt-get and unpack it; returns the root of its files."""
    root = Path(workdir) / package
    if not root.exists():
        Path(workdir).mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "-qq", package], cwd=workdir, check=True, stderr=subprocess.DEVNULL)
            archive = next(Path(workdir).glob(f"{package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"Debian package {package}: cannot be fetched ({error}); apt-get must reach a Debian archive here") from None
    return root


def read_qt_resource(archive, member):
    """Bytes of `member` (``folder/file``, matched from the right) in a Qt resource file (format version 2 or 3)."""
    blob = Path(archive).read_bytes()
    version, tree, data, names = struct.unpack(">4I", blob[4:20])
    entry_size = 22 if version >= 2 else 14

    def name(offset):
        length = struct.unpack_from(">H", blob, names + offset)[0]
        start = names + offset + 6
        return blob[start : start + 2 * length].decode("utf-16-be")

    def walk(index, path):
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


def open_photograph(row, workdir):
    """The photograph of a manifest row as an RGB `PIL.Image`, reduced to its `short_side` (Lanczos)."""
    kind, package = row["source"].split(":", 1)
    root = unpack_debian(package, workdir) if kind == "deb" else Path(sysconfig.get_paths()["purelib"])
    archive, _, inner = row["member"].partition("!")
    source = io.BytesIO(read_qt_resource(root / archive, inner)) if inner else root / archive
    image = Image.open(source).convert("RGB")
    scale = int(row["short_side"]) / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return image
