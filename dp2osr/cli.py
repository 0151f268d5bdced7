"""Typed settings from flags and a YAML: a dataclass a program, from which tyro makes the flags, their checks and --help.

The command line overrides the YAML wherever `--config` stands. Flags are taken by their whole names.
"""

import difflib
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro import _errors  # its only way to say an error in one line; the version is pinned in constraints.txt
from tyro.constructors import PrimitiveConstructorSpec

from dp2osr.errors import UserError, stop
from dp2osr.files import read_yaml

if TYPE_CHECKING:
    from tyro._arguments import ArgumentDefinition

MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.OmitSubcommandPrefixes)
Chosen = TypeVar("Chosen")


# ---------------------------------------------------------------------------------------------------------------------
# Types of fields: a check reads a word, and raises ValueError with what is wrong
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Settings:
    """Base of all settings: values are checked however they are made.

    Raises:
        UserError: a value that its field does not take.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for entry in fields(self):
            reason = _wrong(getattr(self, entry.name), hints[entry.name])
            if reason:
                raise UserError(f"--{entry.name}: {reason}")


def field_names(settings: type[Settings]) -> tuple[str, ...]:
    """Names of the flags of a class of settings, those of its bases too."""
    return tuple(entry.name for entry in fields(settings))


def _wrong(value: Any, hint: Any) -> str | None:
    """What is wrong with a value of a field with this type, or None."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        spec = next((part for part in parts[1:] if isinstance(part, PrimitiveConstructorSpec)), None)
        if spec is None:
            return _wrong(value, parts[0])
        try:
            if not spec.is_instance(value):
                return f"{value!r} is not of type {getattr(parts[0], '__name__', parts[0])}"
            spec.instance_from_str([str(value)])
        except ValueError as error:
            return str(error)
    elif origin in (Union, UnionType):
        if value is not None or NoneType not in parts:
            return next((_wrong(value, part) for part in parts if part is not NoneType), None)
    elif origin is Literal and value not in parts:
        return f"is {value!r}, must be one of {', '.join(map(str, parts))}"
    elif origin in (list, tuple):
        return next((reason for entry in value if (reason := _wrong(entry, parts[0]))), None)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Parsing
# ---------------------------------------------------------------------------------------------------------------------


def parse(settings: type[Chosen], argv: Iterable[object] | None = None, description: str | None = None, **defaults: Any) -> Chosen:
    """The settings that the command line and its `--config` YAML give; one line and exit code 2 on a mistake.

    Args:
        settings: a dataclass; or {command: dataclass}, whose instances tell which command was given.
        argv: words; None for the program's own.
        description: text above the flags in --help.
        defaults: values of fields that are neither on the command line nor in the YAML.

    Raises:
        UserError: an unreadable YAML, a key that is no flag of this program (the nearest one is named), a value that does not fit.
    """
    argv = sys.argv[1:] if argv is None else [str(word) for word in argv]
    argv, path = take_config(argv)
    commands = settings if isinstance(settings, Mapping) else None
    chosen = settings if commands is None else commands.get(next(iter(argv), None))
    if chosen is not None:
        place = 0 if commands is None else 1
        argv[place:place] = words_of(chosen, {**defaults, **(read_settings(path) if path is not None else {})}, path)
    wanted: Any = (
        settings
        if commands is None
        else Union[  # noqa: UP007
            tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items())
        ]
    )
    names = flags_of(chosen) if chosen is not None else list(commands or ())

    def refuse(event: _errors.ParseErrorEvent) -> None:
        first = _wrong_value(chosen, argv) if chosen is not None and isinstance(event, _errors.MissingArgs) else None
        stop(f"error: {first or _told(event, names)} (see --help)", 2)

    with _errors.on_parse_error(refuse):
        return tyro.cli(wanted, args=argv, description=_with_config(description), use_underscores=True, config=MARKERS)


def made(settings: type[Chosen], values: Mapping[str, Any], where: str) -> Chosen:
    """The settings of {field: value}, as a YAML gives them.

    Raises:
        UserError: a field that is not there or lacks a value, a value that does not fit; `where` they are from is named.
    """

    def refuse(event: _errors.ParseErrorEvent) -> None:
        raise UserError(f"{where}: {_told(event, flags_of(settings))}")

    words = words_of(settings, values, where)
    with _errors.on_parse_error(refuse):
        return tyro.cli(settings, args=words, use_underscores=True, config=MARKERS)


def _with_config(description: str | None) -> str:
    return f"{description or ''}\n--config YAML sets any flag below; the command line overrides it.".strip()


def take_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """(the words without `--config PATH`, the path or None)."""
    rest, path, words = [], None, iter(argv)
    for word in words:
        if word == "--config":
            path = next(words, None)
            if path is None:
                stop("error: argument --config: expected one argument (see --help)", 2)
        elif word.startswith("--config="):
            path = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, path


def read_settings(path: str | Path) -> dict[str, Any]:
    """{flag: text} of a YAML of settings; `UserError` where it is none."""
    found = read_yaml(path, "a readable YAML of settings", as_text=True)
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{path}: must be a list of 'flag: value' lines")
    return found or {}


def given(settings: type[Any], argv: Iterable[object] | None = None) -> set[str]:
    """Names of the fields that the command line or its YAML gives."""
    argv, path = take_config(sys.argv[1:] if argv is None else [str(word) for word in argv])
    words = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    return {entry.name for entry in fields(settings)} & (words | (read_settings(path).keys() if path is not None else set()))


def words_of(settings: type[Any], values: Mapping[str, Any], where: str | Path | None) -> list[str]:
    """{field: value} as command-line words; values are text, or what a typed YAML holds.

    Raises:
        UserError: an unknown field, or a value that it does not take; `where` they are from is named.
    """
    hints, words = get_type_hints(settings, include_extras=True), []
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{where}: unknown setting '{name}'{nearest_of(name, hints) or '; --help lists those of this program'}")
        if value is not None:
            words += _words(name, hints[name], value, f"{where}: {name}")
    return words


def _words(name: str, hint: Any, value: Any, where: str) -> list[str]:
    """The command-line words that give one field its value."""
    kind = _plain(hint)
    several = get_origin(kind) in (list, tuple)
    if isinstance(value, dict) or isinstance(value, list) and not several:
        raise UserError(f"{where}: takes {'values' if several else 'one value'}, not {value!r}")
    if kind is bool:
        word = str(value).lower()
        if word not in ("true", "false"):
            raise UserError(f"{where}: is a switch, true or false, not {value!r}")
        return [f"--{name}"] if word == "true" else []
    words = [str(word) for word in value] if isinstance(value, list) else [str(value)]
    count = len(get_args(kind)) if get_origin(kind) is tuple else None
    if count is not None and len(words) != count:
        raise UserError(f"{where}: takes {count} values, not {len(words)}")
    inner = get_args(kind)[0] if several else hint
    for word in words:
        _check_word(inner, word, where)
    if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
        return words
    return [f"--{name}", *words] if several else [f"--{name}={words[0]}"]


def _check_word(hint: Any, word: str, where: str) -> None:
    """Raise `UserError` unless tyro takes a word for a field with this type."""
    reason = _reason_against(hint, word)
    if reason is not None:
        raise UserError(f"{where}: {reason}")


@lru_cache(maxsize=4096)  # an experiment checks the same words for each of its programs
def _reason_against(hint: Any, word: str) -> str | None:
    """Why tyro does not take a word for a field with this type, or None."""

    def refuse(event: _errors.ParseErrorEvent) -> None:
        raise UserError(_reason(event))

    try:
        with _errors.on_parse_error(refuse):
            tyro.cli(make_dataclass("One", [("value", hint)]), args=[f"--value={word}"], config=(tyro.conf.DisallowNone,))
    except UserError as error:
        return str(error)
    return None


def _wrong_value(settings: type[Any], argv: Sequence[str]) -> str | None:
    """What is wrong with the first value among the words that its flag does not take, or None; tyro tells what is missing before it."""
    hints, hint = get_type_hints(settings, include_extras=True), None
    for word in argv:
        name, equals, value = word[2:].partition("=") if word.startswith("--") else ("", "", word)
        if name:
            found = hints.get(name.replace("-", "_"))
            several = get_origin(_plain(found)) in (list, tuple)
            hint = get_args(_plain(found))[0] if several else found if _plain(found) is not bool else None
            flag = name
        if hint is None or name and not equals:
            continue
        try:
            _check_word(hint, value, f"argument --{flag}")
        except UserError as error:
            return str(error)
    return None


def _plain(hint: Any) -> Any:
    """A field's type without annotations and None."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    return hint


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def flags_of(settings: type[Any]) -> list[str]:
    """The flags of a dataclass."""
    return [f"--{entry.name}" for entry in fields(settings)]


def _told(event: _errors.ParseErrorEvent, names: Iterable[str]) -> str:
    """A mistake on the command line as a line."""
    if isinstance(event, _errors.MissingArgs) and not event.unrecognized_tokens:
        return f"the following arguments are required: {', '.join(_flag(each.arg) for each in event.missing_arguments)}"
    if isinstance(event, _errors.MissingArgs | _errors.UnrecognizedArgs):
        tokens = event.tokens if isinstance(event, _errors.UnrecognizedArgs) else event.unrecognized_tokens
        word = tokens[0].partition("=")[0]
        return f"unknown {word}{nearest_of(word, names)}"
    if isinstance(event, _errors.MissingSubcommand):
        return f"the following arguments are required: one of {', '.join(names)}"
    argument = getattr(event, "argument", None)
    return f"{'argument ' + _flag(argument) + ': ' if argument else ''}{_reason(event)}"


def _flag(argument: "ArgumentDefinition") -> str:
    name = argument.field.intern_name
    return name if tyro.conf.Positional in argument.field.markers else f"--{name}"


def _reason(event: _errors.ParseErrorEvent) -> str:
    """Why a value is refused."""
    if isinstance(event, _errors.InvalidChoice):
        return f"is {event.value!r}, must be one of {', '.join(map(str, get_args(_plain(event.argument.field.type))))}"
    if isinstance(event, _errors.BadValue):
        return "expected a value" if event.offending_value is None else f"takes no value, not {event.offending_value!r}"
    message = str(getattr(event, "message", type(event).__name__))
    return " ".join(message.rpartition("]: ")[2].split())  # of a value or None, tyro lists both tries


def nearest_of(name: object, known: Iterable[str]) -> str:
    """`; the nearest known one is 'x'`, or nothing where none is near."""
    plain = {word.lstrip("-"): word for word in known}
    close = difflib.get_close_matches(str(name).lstrip("-"), plain, n=1, cutoff=0.7)
    return f"; the nearest known one is '{plain[close[0]]}'" if close else ""


def refuse_ignored(named: Container[str], ignorable: Iterable[str], where: str) -> None:
    """Raise `UserError` if any of the `ignorable` fields is among the `named` ones, since it would do nothing `where`."""
    ignored = [f"--{name}" for name in ignorable if name in named]
    if ignored:
        raise UserError(f"{', '.join(ignored)}: would do nothing {where}; leave {'it' if len(ignored) == 1 else 'them'} out")


def named_folder(word: str, flag: str, example: str) -> tuple[str, Path]:
    """(name, Path) of `NAME=DIR`; `UserError`, which names `flag` and shows an `example`, where it is not of that form."""
    name, equals, folder = word.partition("=")
    if not (name and equals and folder):
        raise UserError(f"{flag} {word}: not of the form NAME=DIR; write for example {example}")
    return name, Path(folder)


def named_folders(words: Iterable[str], flag: str, example: str, taken: Container[str] = ()) -> dict[str, Path]:
    """{name: Path} of `NAME=DIR` words, in their order; `UserError` where one is not of that form or a name is `taken` or given twice."""
    folders: dict[str, Path] = {}
    for word in words:
        name, folder = named_folder(word, flag, example)
        if name in taken:
            raise UserError(f"{flag} {word}: the name '{name}' is taken by a column of the report; choose another")
        if name in folders:
            raise UserError(f"{flag}: the name '{name}' is given twice; give each folder its own name")
        folders[name] = folder
    return folders
