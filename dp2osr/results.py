"""Results that a program finds again: a record of each says what made it, and decides whether it counts as done.

    <folder>/.records/<name>.json    the input's content, the settings, the SHA-256 of the result `<folder>/<name>`

A result is there if this program wrote it, from this input's content, with these settings. A record is a file of its own, so that
several jobs never share one, and a result may be of any format.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dp2osr.digests import digest, sha256
from dp2osr.errors import UserError, listed
from dp2osr.files import LONGEST_NAME, as_json, differences, part_path, read_json, short_name, write_json

RECORDS = ".records"
SHOWN = 30  # names in a message


class Results:
    """The results of one program in a folder.

    Args:
        folder: where they lie; a result's name is its path below it.
        settings: all that decides a result beside its input.
        not_compared: keys of the settings that are recorded and not compared: a hash stands for them.
        flags: the program's flags that are ways out, for errors.
        also: {key: a function that gives another value for the same}; see `files.differences`.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        not_compared: Iterable[str] = (),
        also: Mapping[str, Callable[[], Any]] | None = None,
        flags: Collection[str] = ("--output_dir",),
    ) -> None:
        self.folder, self.settings, self.not_compared, self.also = Path(folder), as_json(settings), tuple(not_compared), also
        self.another = "another " + " or ".join(flag for flag in flags if flag not in ("--overwrite", "--adopt"))
        self.anew = ", or make them anew by --overwrite" if "--overwrite" in flags else ""
        self.adopted = " (if it is one, from before there were records: --adopt)" if "--adopt" in flags else ""

    def missing(self, wanted: Mapping[str, Any], overwrite: bool = False, adopt: bool = False) -> list[str]:
        """Names of `wanted` that are to be made or made anew, in order; nothing is changed but that adopted results get their records.

        Args:
            wanted: {name: what its input is, JSON-able; the digest of its content among it}.
            overwrite: make all of them anew.
            adopt: take files without a record as results of these inputs and settings.

        Raises:
            UserError: a file of that name that is none of this program's, or results of other settings.
        """
        foreign, other, missing, adopted = [], [], [], []
        for name, made_of in wanted.items():
            state = self.state(name, made_of)
            if state == "unrecorded" and adopt:
                if not overwrite:
                    adopted.append(name)
                    continue
                state = "missing"
            if state in ("foreign", "unrecorded"):
                foreign.append(name)
            elif isinstance(state, list) and not overwrite:
                other.append((name, state))
            elif state and (state != "done" or overwrite):
                missing.append(name)
        if foreign:
            raise UserError(
                f"{self.folder}: {listed(foreign, SHOWN)}: {'is' if len(foreign) == 1 else 'are'} there and no result of this program; "
                f"give {self.another}, or move it away{self.adopted}"
            )
        if other:
            names = listed([name for name, _ in other], SHOWN)
            raise UserError(
                f"{self.folder}: was made with other settings ({'; '.join(other[0][1])}): {names}; use them, give {self.another}{self.anew}"
            )
        for name in adopted:
            self.record(name, wanted[name], digest(self.folder / name), adopted=True)
        return missing

    def state(self, name: str, made_of: Any) -> str | list[str]:
        """Of one result: "missing" (or of another input), "done", "foreign", "unrecorded", or the list of its settings that differ."""
        path, record = self.folder / name, self.read_record(name)
        if not os.path.lexists(path):
            return "missing"
        if record is None:
            return "unrecorded" if path.is_file() and not path.is_symlink() else "foreign"
        if not self._owns(path, record):
            return "foreign"
        if digest(path) != record["sha256"]:  # it was about to be replaced
            return "missing"
        differing = differences(record["settings"], self.settings, self.not_compared, self.also)
        return differing or ("done" if record["input"] == as_json(made_of) else "missing")

    def read_record(self, name: str) -> dict[str, Any] | None:
        """The record of a result, or None; one that a stop or a hand has broken counts as none."""
        path = self._record_path(name)
        try:
            record = read_json(path) if path.is_file() else None
        except UserError:
            return None
        return record if _is_record(record) else None

    def any_record(self) -> bool:
        """Whether the folder has a record of any result."""
        return any(self.folder.joinpath(RECORDS).glob("*.json"))

    def any_of(self, settings: Mapping[str, Any]) -> bool:
        """Whether a record of the folder has these settings."""
        wanted = as_json(settings)
        return any(not differences(record["settings"], wanted, self.not_compared) for _, record in self.records())

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name of the result, record) of all whole records of the folder, of any settings."""
        for path in self.folder.joinpath(RECORDS).glob("*.json"):
            try:
                record = read_json(path)
            except UserError:
                continue
            if _is_record(record) and "result" in record:
                yield record["result"], record

    def is_of_these_settings(self, record: Mapping[str, Any]) -> bool:
        """Whether a record's result was made with these settings."""
        return not differences(record["settings"], self.settings, self.not_compared, self.also)

    def is_own(self, name: str) -> bool:
        """Whether a file of the folder is a result, with its record and unchanged, of any settings."""
        record = self.read_record(name)
        return record is not None and self._owns(self.folder / name, record)

    def check_inputs(self, names: Iterable[str], inputs: Iterable[str | Path]) -> None:
        """Raise `UserError` if a result of `names` would replace one of the `inputs` (paths), also by a link or another spelling."""
        own = {_identity(path): path for path in inputs}
        taken = [own[_identity(self.folder / name)] for name in names if _identity(self.folder / name) in own]
        if taken:
            some = listed([str(path) for path in taken])
            raise UserError(f"{self.folder}: the results would overwrite the inputs {some}; give {self.another}")

    @contextmanager
    def writing(self, name: str, made_of: Any, **more: Any) -> Iterator[Path]:
        """Within, a path to write the result to; then its record is written, with `more` in it, and it replaces an earlier result."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_path(path)
        try:
            yield part
            before, replaced = self.read_record(name), None
            if os.path.lexists(path):
                if before is not None and not self._owns(path, before):
                    raise UserError(f"{path}: has been changed by another program meanwhile; move it away and run the same command again")
                replaced = digest(path)
            found = sha256(part)
            self.record(name, made_of, found, **more, **({"replaces": replaced} if replaced not in (None, found) else {}))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def discard(self, name: str) -> None:
        """Remove a result of this program that its input no longer gives, with its record."""
        if self.is_own(name):
            (self.folder / name).unlink()
            self._record_path(name).unlink()

    def record(self, name: str, made_of: Any, found: str | None, **more: Any) -> None:
        """Write what made a result."""
        path = self._record_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"result": name, "input": made_of, "settings": self.settings, "sha256": found, **more})

    def _owns(self, path: Path, record: Mapping[str, Any]) -> bool:
        """Whether a file is what its record says, or what the next one was about to replace when a stop came."""
        if not path.is_file() or path.is_symlink():
            return False
        return record.get("pending") or digest(path) in (record["sha256"], record.get("replaces"))

    def _record_path(self, name: str) -> Path:
        file = str(name).replace("%", "%25").replace("/", "%2F")
        long = len(os.fsencode(file)) + len(".json") > LONGEST_NAME
        return self.folder / RECORDS / f"{short_name(file) if long else file}.json"


def check_own_files(folder: str | Path, names: Collection[str], flag: str = "--output_dir") -> None:
    """Raise `UserError` if a file that is to be written is there and not known to be this project's: tables, pages, pictures."""
    results = Results(folder, {})
    foreign = [name for name in names if os.path.lexists(results.folder / name) and not results.is_own(name)]
    if foreign:
        raise UserError(
            f"{folder}: {listed(foreign, SHOWN)}: there, and not written by this program or changed since; move it away, or give "
            f"another {flag}"
        )


@contextmanager
def own_files(folder: str | Path, names: Collection[str], flag: str = "--output_dir") -> Iterator[None]:
    """Within, the files `names` of a folder are written; from then on they are known to be this project's, also after a stop."""
    check_own_files(folder, names, flag)
    results = Results(folder, {})
    for name in names:
        results.record(name, {}, None, pending=True)
    try:
        yield
    finally:
        for name in names:
            if (results.folder / name).is_file():
                results.record(name, {}, sha256(results.folder / name))
            else:
                results._record_path(name).unlink(missing_ok=True)
        with suppress(OSError):  # it has others
            (results.folder / RECORDS).rmdir()


def _is_record(found: Any) -> bool:
    return isinstance(found, dict) and {"input", "settings", "sha256"} <= found.keys()


def _identity(path: str | Path) -> tuple[int, int] | str:
    """What two spellings of a path or two links to a file have in common: the file where there is one, else the absolute path."""
    try:
        found = os.stat(path)
        return found.st_dev, found.st_ino
    except OSError:
        return os.path.realpath(path)


def read_image_record(path: str | Path) -> dict[str, Any] | None:
    """The record of the result at `path` (its "input" names the image id and the sample), or None: `evaluate` pairs results by it."""
    path = Path(path)
    for folder in (path.parent, *list(path.parents)[1:3]):
        if (folder / RECORDS).is_dir():
            return Results(folder, {}).read_record(path.relative_to(folder).as_posix())
    return None
