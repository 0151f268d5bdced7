"""Flags beside one another: those that a run would not read, and an output that is an input."""

import fnmatch
from pathlib import Path

from dp2osr.errors import UserError


def refuse_ignored(given, flags, where):
    """Raise `UserError` if any of `flags` is among the `given` ones, since it would do nothing `where`."""
    ignored = [f"--{name}" for name in flags if name in given]
    if ignored:
        raise UserError(f"{', '.join(ignored)}: would do nothing {where}; leave {'it' if len(ignored) == 1 else 'them'} out")


def refuse_inputs(output, inputs, written=(), flag="--output_dir"):
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


def matches(name, patterns):
    """Whether a file's name is one of `patterns`, which may have wildcards."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
