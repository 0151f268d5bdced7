"""Typed dataclasses from the content of a YAML.

A key that is not known names the nearest one, a value of another type is one line, and what goes together is checked by the
dataclass itself: its `__post_init__` raises ValueError.
"""

from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dp2osr.cli import nearest_of
from dp2osr.errors import UserError
from dp2osr.files import read_yaml

Made = TypeVar("Made")
NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def read_typed(kind: type[Made], path: str | Path, what: str) -> Made:
    """The dataclass `kind` of the YAML at `path`; `UserError` where it does not fit, or is no YAML of `what` it should be."""
    return build(kind, read_lines(path, what), str(path))


def read_lines(path: str | Path, what: str) -> dict[str, Any]:
    """The dictionary of a YAML; `UserError` where it is not readable, or `what` it should be is not 'key: value' lines."""
    content = read_yaml(path, "a readable YAML")
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be lines of 'key: value', {what}")
    return content


def build(kind: Any, value: Any, where: str) -> Any:
    """A value of the annotated type `kind`; `UserError`, which says `where` it stands, unless it is one."""
    origin, parts = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin is Annotated:
        return _checked(build(parts[0], value, where), parts[1:], where)
    if origin in (Union, UnionType):
        inner = next(part for part in parts if part is not NoneType)
        return None if value is None and NoneType in parts else build(inner, value, where)
    if origin is Literal:
        _require(value in parts, where, f"one of {', '.join(map(str, parts))}", value)
        return value
    if origin in (list, tuple):
        _require(isinstance(value, list), where, "a list", value)
        return origin(build(parts[0], entry, where) for entry in value)
    if origin is dict or kind is dict:
        _require(isinstance(value, dict), where, "lines of 'name: value'", value)
        return {str(key): build(parts[1], entry, _entry(where, key)) for key, entry in value.items()} if parts else dict(value)
    return value if kind is Any else _scalar(kind, value, where)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    others: dict[type, Any] = {str: (str, int, float), Path: str, float: (int, float)}
    taken = others.get(kind, kind)
    _require(isinstance(value, taken) and isinstance(value, bool) == (kind is bool), where, NAMES[kind], value)
    return kind(value)


def _checked(value: Any, specs: Iterable[Any], where: str) -> Any:
    """A value that the checks of `dp2osr.cli` take."""
    for spec in specs:
        try:
            spec.instance_from_str([str(value)])
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
    return value


def _dataclass(kind: Any, content: Any, where: str) -> Any:
    _require(isinstance(content, dict), where, "lines of 'key: value'", content)
    known = {entry.name: entry for entry in fields(kind) if entry.metadata.get("in_yaml", True)}
    hints = get_type_hints(kind, include_extras=True)
    for key in content:
        if key not in known:
            raise UserError(f"{where}: no key '{key}'{nearest_of(key, known)}")
    for name, entry in known.items():
        if name not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"{where}: '{name}' is missing")
    values = {name: build(hints[name], value, f"{where}: '{name}'") for name, value in content.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _entry(where: str, key: object) -> str:
    """Of an entry of 'arms', its place is called arm 'KEY'."""
    before, _, field = where.rpartition(": '")
    return f"{before}: {field.removesuffix(chr(39)).removesuffix('s')} '{key}'"


def _require(holds: bool, where: str, what: str, value: object) -> None:
    if not holds:
        raise UserError(f"{where} must be {what}, not {value!r}")
