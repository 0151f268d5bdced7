"""Types of settings' fields: a check reads a word of the command line or of a YAML, and raises ValueError with what is wrong."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

LARGEST = 2**63 - 1  # the libraries' whole numbers


def checked(read: Callable[[str], Any], kind: type, metavar: str | None = None) -> PrimitiveConstructorSpec[Any]:
    """An annotation: `read` makes a value of `kind` from a word of the command line or of a YAML, or raises ValueError."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar or {int: "INT", float: "FLOAT"}.get(kind, "STR"),
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, kind) or kind is float and isinstance(value, int),
        str_from_instance=lambda value: [f"{value:g}" if kind is float and float(f"{value:g}") == value else str(value)],
    )


def at_least(least: float, kind: type[int] | type[float] = int, most: int = LARGEST) -> PrimitiveConstructorSpec[Any]:
    """A number of `kind` that is finite, not below `least` and, where it is whole, at most `most`."""

    def read(word: str) -> float:
        value = _number(word, kind)
        if not value >= least or value == math.inf:
            raise ValueError(f"must be at least {least}{' and finite' if value == math.inf else ''}, not {word}")
        if kind is int and value > most:
            raise ValueError(f"must be at most {most}, not {word}")
        return value

    return checked(read, kind)


def float_that(holds: Callable[[float], bool], must: str) -> PrimitiveConstructorSpec[Any]:
    """A float for which `holds` is true, which `must` says in words."""

    def read(word: str) -> float:
        value = _number(word, float)
        if not holds(value):
            raise ValueError(f"must {must}, not {word}")
        return value

    return checked(read, float)


def _number(word: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{word!r} is not {'a whole number' if kind is int else 'a number'}") from None


def regular_expression(word: str) -> str:
    """A regular expression, as it is written; ValueError where it is none."""
    try:
        re.compile(word)
    except re.error as error:
        raise ValueError(f"{word!r} is not a regular expression ({error})") from None
    return word


def _part_of_a_name(word: str) -> str:
    if any(letter in word for letter in "/\\\0\n"):
        raise ValueError(f"{word!r} is no part of a file's name")
    return word


Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]  # with zero
Tokens = Annotated[int, at_least(1, most=512)]  # of a prompt, for T5
NonNegative = Annotated[float, at_least(0, float)]
Positive = Annotated[float, float_that(lambda value: 0 < value < math.inf, "be a finite number above 0")]
Share = Annotated[float, float_that(lambda value: 0 <= value <= 1, "lie between 0 and 1")]
Finite = Annotated[float, float_that(math.isfinite, "be a finite number")]
RegularExpression = Annotated[str, checked(regular_expression, str)]
PartOfAName = Annotated[str, checked(_part_of_a_name, str)]


def default_is(text: str) -> Any:
    """An annotation: what --help calls the default of a field whose value is found later."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


def metavar(text: str) -> Any:
    """An annotation: how --help calls a field's value."""
    return tyro.conf.arg(metavar=text)
