"""Metrics of the user's own: modules that register them with pyiqa are imported here, and run with the user's rights."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from dp2osr.digests import sha256 as file_sha256
from dp2osr.errors import UserError


def import_modules(entries: Iterable[str]) -> None:
    """Import modules by name, or `.py` files by path, each once in a process.

    Raises:
        UserError: one that is not there, or whose own code fails; the line is named.
    """
    for entry in entries:
        _import(entry)


@cache
def _import(entry: str) -> None:
    folder = str(Path(entry).parent)
    try:
        if not entry.endswith(".py"):
            importlib.import_module(entry)
            return
        sys.path.insert(0, folder)  # it may import its neighbours
        name = f"own_metrics_{sha256(entry.encode()).hexdigest()[:8]}_{Path(entry).stem}"
        spec = importlib.util.spec_from_file_location(name, entry)
        assert spec and spec.loader
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{entry}, which the reward config imports, fails: {described(error)}; mend it, or take it out of 'imports'"
        ) from None
    finally:
        if folder in sys.path and entry.endswith(".py"):
            sys.path.remove(folder)


def described(error: BaseException) -> str:
    """`KeyError: 'x' (my_metrics.py, line 12)`: an error of the user's code, in one line, and where it was raised."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename and frame.filename != __file__
    ]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else text


def is_foreign(thing: Callable[..., Any]) -> bool:
    """Whether a class or function comes neither from pyiqa nor from here."""
    return not thing.__module__.startswith(("pyiqa.", "dp2osr."))


def registered(kind: str) -> type | None:
    """The user's own class that pyiqa knows by the name `kind`, or None."""
    from pyiqa.utils.registry import ARCH_REGISTRY

    found = next((thing for name, thing in ARCH_REGISTRY if name == kind), None)
    return found if found is not None and is_foreign(found) else None


def code_hash(thing: type) -> str | None:
    """Hash of the file that holds a class: scores of a metric whose code has changed are computed again. None where there is no file."""
    try:
        return file_sha256(inspect.getsourcefile(thing) or "")[:16]
    except (TypeError, OSError):
        return None
