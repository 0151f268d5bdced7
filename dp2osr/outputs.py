"""Where a program may write: not over its inputs, not where nothing can be written."""

import fnmatch
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from dp2osr.errors import UserError
from dp2osr.files import LONGEST_NAME


def refuse_inputs(
    output: str | Path, inputs: Mapping[str, str | Path | None], written: Collection[str] = (), flag: str = "--output_dir"
) -> None:
    """Raise `UserError` where `output` is one of the inputs, or an input lies in it under a name that is `written`."""
    place = Path(output).resolve()
    for name, path in inputs.items():
        if path is None or not Path(path).exists():
            continue
        found = Path(path).resolve()
        inside = found.relative_to(place).parts if found.is_relative_to(place) else None
        if found == place or inside and matches(inside[0], written):
            what = "is" if found == place else "would overwrite"
            raise UserError(f"{flag} {output}: {what} the input {name} {path}; give another {flag}")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name is one of `patterns`, which may have wildcards."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_output(path: str | Path, flag: str = "--output_dir", is_file: bool = False) -> None:
    """Raise `UserError` unless `path` can be written: a folder (made when it is needed), or with `is_file` a file in one."""
    if not str(path):  # as a shell's unset variable gives it: it would be the current folder
        raise UserError(f"{flag}: is empty; name a {'file' if is_file else 'folder'}")
    path = Path(path)
    if is_file and path.is_dir():
        raise UserError(f"{flag} {path}: is a folder, a file is to be written; give the file's name too")
    folder = path.parent if is_file else path
    if len(path.name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
        raise UserError(f"{flag} {path}: the name is longer than {LONGEST_NAME} bytes; give a shorter one")
    try:
        there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
        if not there.is_dir():
            raise UserError(f"{flag} {path}: cannot be made a folder ({there} is a file); give another {flag}")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written ({error.strerror}); give another {flag}") from None


def check_no_input(output: str | Path, inputs: Iterable[str | Path]) -> None:
    """Raise `UserError` if the file `output`, of --output, is one of the `inputs`, also by a link or another spelling."""
    for path in inputs:
        if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
            raise UserError(f"--output {output}: would overwrite the input {path}; give another --output")
