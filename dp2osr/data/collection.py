"""The photographs of a training, by number: of a folder, a list or WebDataset shards, of any size. None is opened before it is drawn."""

import csv
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dp2osr.data.images import decode_image, on_white, why_unreadable
from dp2osr.data.inputs import EXTENSIONS, READERS
from dp2osr.digests import MEMORY
from dp2osr.errors import UserError, listed
from dp2osr.files import read_text

LOOKED_AT = 64  # photographs whose headers are read before a training starts
OPEN_SHARDS = 32  # files that a process keeps open


class Unusable(Exception):
    """A photograph, or the shard that holds it, cannot be used: `place` is what is broken, `reason` why."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason


class Collection:
    """Photographs by number, 0 to `len`. Names lie in arrays: a million of them is 100 MB, shared by all workers.

    Attributes:
        files: (count,) bytes: a photograph's path below `root` or, in a shard, its name there.
        prompts: distinct captions; `prompt_of`, (count,) int32: which one a photograph has, -1 for none.
        shards: paths; `places`, (count, 3) int64: a photograph's shard, offset and size there. Both None for plain files.
        problems: {path: why it is not used} of what was found broken.
    """

    def __init__(
        self,
        where: str | Path,
        root: str | Path,
        files: Sequence[str],
        captions: Sequence[str | None] | None = None,
        shards: Sequence[str] | None = None,
        places: np.ndarray | None = None,
        problems: Mapping[str, str] | None = None,
    ) -> None:
        self.where, self.root = str(where), root
        self.files = np.array([os.fsencode(name) for name in files], dtype=np.bytes_)
        self.shards, self.places, self.problems = shards, places, problems or {}
        known: dict[str, int] = {}
        codes = [known.setdefault(caption, len(known)) if caption else -1 for caption in captions or [None] * len(files)]
        self.prompt_of, self.prompts = np.array(codes, dtype=np.int32), list(known)
        self.handles: dict[str, int] = {}  # of this process

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """What a photograph is called in messages."""
        name = os.fsdecode(self.files[index])
        return name if self.shards is None or self.places is None else f"{self.shards[self.places[index, 0]]}: {name}"

    def stem(self, index: int) -> str:
        return Path(os.fsdecode(self.files[index])).stem

    def take_tags(self, tags: Mapping[str, str]) -> list[str]:
        """Give the photographs whose stems `tags` ({stem: prompt}) names these prompts; returns the stems that it lacks."""
        known, missing = {prompt: number for number, prompt in enumerate(self.prompts)}, []
        for index in range(len(self)):
            stem = self.stem(index)
            if stem in tags:
                self.prompt_of[index] = known.setdefault(tags[stem], len(known)) if tags[stem] else -1
            else:
                missing.append(stem)
        self.prompts = list(known)
        return missing

    def fingerprint(self) -> str:
        """A short hash of which photographs there are, in which order."""
        found = hashlib.sha256(self.files.tobytes())
        if self.places is not None:
            found.update(self.places.tobytes())
        return f"{len(self)} photographs, {found.hexdigest()[:12]}"

    def read(self, index: int) -> bytes:
        """The bytes of a photograph's file; `Unusable` where they cannot be had."""
        if self.shards is None or self.places is None:
            path = os.path.join(self.root, os.fsdecode(self.files[index]))
            try:
                with open(path, "rb") as file:
                    return file.read()
            except OSError as error:
                raise Unusable(self.name(index), error.strerror or str(error)) from None
        shard, offset, size = self.places[index].tolist()
        path = self.shards[shard]
        try:
            content = os.pread(self._open(path), size, offset)
        except OSError as error:
            raise Unusable(path, error.strerror or str(error)) from None
        if len(content) < size:
            raise Unusable(path, "shorter than it was when it was first read")
        return content

    def _open(self, path: str) -> int:
        if path not in self.handles:
            while len(self.handles) >= OPEN_SHARDS:
                os.close(self.handles.pop(next(iter(self.handles))))
            self.handles[path] = os.open(path, os.O_RDONLY)
        return self.handles[path]

    def decode(self, index: int, least: int) -> Image.Image:
        """A photograph as an RGB `PIL.Image` whose sides have at least `least` pixels; `Unusable` where there is none."""
        content = io.BytesIO(self.read(index))
        try:
            image = on_white(decode_image(content))
        except Exception as error:  # a decoder of Pillow may raise anything on a broken file
            raise Unusable(self.name(index), f"not a readable image ({why_unreadable(error)})") from None
        if min(image.size) < least:
            raise Unusable(self.name(index), f"is {image.width} x {image.height}, smaller than a crop of {least}")
        return image

    def look(self, least: int) -> tuple[dict[str, str], int]:
        """{place: reason} of what is wrong with some of the photographs, evenly spaced, by their headers, and how many were looked at."""
        indices = np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).astype(int))
        problems = {}
        for index in indices.tolist():
            try:
                with Image.open(io.BytesIO(self.read(index))) as image:
                    if min(image.size) < least:
                        problems[self.name(index)] = f"is {image.width} x {image.height}, smaller than a crop of {least}"
            except Unusable as error:
                problems[error.place] = error.reason
            except Exception as error:
                problems[self.name(index)] = f"not a readable image ({why_unreadable(error)})"
        return problems, len(indices)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "handles": {}}  # a file's position and life are a process's own


def open_collection(where: str | Path, recursive: bool = False) -> Collection:
    """The `Collection` at `where`: a folder of images or of shards, a shard, a pattern of shards, or a list of paths (.csv or .txt).

    Raises:
        UserError: nothing there, a list that cannot be read, shards of which none can be.
    """
    where = str(where)
    shards = find_shards(where)
    if shards is not None:
        return _of_shards(where, shards)
    path = Path(where)
    if path.suffix in (".csv", ".txt") and path.is_file():
        return _of_list(path)
    if not path.is_dir():
        raise UserError(f"{where}: no such folder, list (.csv, .txt) or shard (.tar) of photographs")
    files, others, folders = _below(path, "", recursive)
    if not files:
        more = f"; {len(folders)} sub-folders are entered with --recursive" if folders and not recursive else ""
        raise UserError(
            f"{where}: holds no photograph of {', '.join(sorted(EXTENSIONS))}{f' ({others} other files)' if others else ''}{more}"
        )
    return Collection(where, where, sorted(files))


def _below(folder: str | Path, prefix: str, recursive: bool) -> tuple[list[str], int, list[str]]:
    """(names of images below a folder, how many other files there are, names of its sub-folders)."""
    files, others, folders = [], 0, []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                files.append(prefix + entry.name)
            else:
                others += 1
    for name in folders if recursive else ():
        more, also, _ = _below(os.path.join(folder, name), f"{prefix}{name}/", True)
        files += more
        others += also
    return files, others, folders


def _of_list(path: Path) -> Collection:
    """A list of paths, from its own folder: .txt, a path a line; .csv, columns `file` and, where there are captions, `prompt`."""
    try:
        text = read_text(path)
        if path.suffix == ".txt":
            files, captions = [line.strip() for line in text.splitlines() if line.strip()], None
        else:
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
            files, captions = [row["file"] for row in rows], [row.get("prompt") for row in rows]
        if not all(files):
            raise ValueError("a row without a file")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a list of photographs ({error}); a .txt has a path a line, a .csv a column 'file'") from None
    if not files:
        raise UserError(f"{path}: lists no photograph")
    return Collection(path, path.parent, files, captions)


# -- WebDataset shards: tar files of KEY.jpg and, where there are captions, KEY.txt -------------------------------------


def find_shards(where: str) -> list[str] | None:
    """The shards (.tar) that `where` names, sorted: one, a pattern ({000..127}, {a,b}, *), or a folder of them; None if it names none."""
    path = Path(where)
    if path.is_dir():
        return sorted(map(str, path.glob("*.tar"))) or None
    if re.search(r"\.tar\.\w+$|\.tgz$", where):
        raise UserError(f"{where}: compressed shards cannot be read at random; unpack them to .tar")
    if not where.endswith(".tar"):
        return None
    found = []
    for name in expand_braces(where):
        matches = sorted(map(str, Path(name).parent.glob(Path(name).name))) if "*" in name else [name]
        found += matches
    if not found:
        raise UserError(f"{where}: no such shard")
    return found


def expand_braces(pattern: str) -> list[str]:
    """`a{08..10}{x,y}` → a08x, a08y, a09x, ...; numbers keep the width of the first."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    first, dots, last = match[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        values = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        values = match[1].split(",")
    return [name for value in values for name in expand_braces(pattern[: match.start()] + value + pattern[match.end() :])]


def _of_shards(where: str, shards: Sequence[str]) -> Collection:
    problems = {path: "not there" for path in shards if not os.path.isfile(path)}
    there = [path for path in shards if path not in problems]
    files, captions, places = [], [], []
    for number, (path, index) in enumerate(zip(there, MEMORY.recall_all(there, "shard", index_shard, READERS), strict=True)):
        if index["problem"]:
            problems[path] = index["problem"]
        files += index["names"]
        captions += index["captions"]
        places += [(number, *place) for place in index["places"]]
    if not files:
        told = f" ({listed([f'{path}: {why}' for path, why in problems.items()], 3)})" if problems else ""
        raise UserError(f"{where}: no photograph in {len(shards)} shards{told}")
    return Collection(where, "", files, captions, there, np.array(places, dtype=np.int64), problems)


def index_shard(path: str) -> dict[str, Any]:
    """{"names", "places": [[offset, size], ...], "captions", "problem"} of the images in a tar file, or of those before it breaks off."""
    images, captions, problem, size = [], {}, None, os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, file = member.name.rpartition("/")
                key, _, extension = file.partition(".")  # WebDataset's rule: a sample's files share all before the first dot
                if not member.isfile() or member.offset_data + member.size > size:
                    continue
                if f".{extension.lower()}" in EXTENSIONS:
                    images.append((member.name, f"{folder}/{key}", [member.offset_data, member.size]))
                elif extension == "txt" and (text := shard.extractfile(member)):
                    captions[f"{folder}/{key}"] = text.read().decode("utf-8", "replace").strip()
    except (OSError, tarfile.TarError) as error:
        problem = f"not a whole tar file ({error}); {len(images)} photographs before the break are used"
    return {
        "names": [name for name, _, _ in images],
        "places": [place for _, _, place in images],
        "captions": [captions.get(key) for _, key, _ in images],
        "problem": problem,
    }
