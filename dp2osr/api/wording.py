"""Mistakes of who calls from Python: one line each, in the words of Python's names instead of flags."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

from dp2osr.cli import nearest_of
from dp2osr.errors import UserError, in_one_line

OWN_NAMES = {  # flag: how the functions of this folder call it
    "sample_times": "samples",
    "controlnet_model_name_or_path": "controlnet",
    "pretrained_model_name_or_path": "model",
    "pretrained_vae_model_name_or_path": "vae",
    "tokenizer_name": "tokenizer",
    "base_controlnet_model_name_or_path": "base_controlnet",
}
FLAG = re.compile(r"--(\w+)")
FEWER = "a lower --num_candidates or --sample_times"  # as sampling/estimate.py advises


@contextmanager
def mendable() -> Iterator[None]:
    """Within, what a user can mend is a `UserError` of one line, as a program says it: a full disk, memory, a file that is not there."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")  # of one of its modules to another
            yield
    except UserError:
        raise
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            raise
        raise UserError(line) from error


@contextmanager
def in_python() -> Iterator[None]:
    """`mendable`, and errors name arguments, `samples`, where a program names flags, `--sample_times`."""
    try:
        with mendable():
            yield
    except UserError as error:
        raise type(error)(in_python_names(str(error))) from error.__cause__


def in_python_names(line: str) -> str:
    """A line with arguments' names in the place of flags."""
    return FLAG.sub(lambda flag: OWN_NAMES.get(flag[1], flag[1]), line.replace(FEWER, "fewer samples"))


def refuse_unknown(options: Mapping[str, object], function: Callable[..., object]) -> None:
    """Raise `UserError` that names the first of the `options`, none of which `function` has, and the nearest one that it has."""
    known = [name for name in signature(function).parameters if name not in ("self", "unknown")]
    for name in options:
        near = nearest_of(name, known) or f"; known: {', '.join(known)}"
        raise UserError(f"{function.__qualname__}: unknown option '{name}'{near}")


def plain(value: Any) -> Any:
    """A number of NumPy as Python's, any other value as it is."""
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def check_text(**values: object) -> None:
    """Raise `UserError` unless each of the named values is text or None."""
    for name, value in values.items():
        if not (value is None or isinstance(value, str)):
            raise UserError(f"{name}: {value!r} is not text")
