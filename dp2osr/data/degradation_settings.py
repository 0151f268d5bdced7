"""Settings of a degradation: each field's type carries the check of its YAML value, which returns the value or raises ValueError."""

import difflib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

from dp2osr.data.degradation import RESIZE_MODES
from dp2osr.errors import UserError
from dp2osr.files import read_yaml
from dp2osr.places import CONFIGS

CONFIG_DIR = CONFIGS / "degradation"
KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
RESIZE_DIRECTIONS = ("up", "down", "keep")

Range = tuple[float, float]
Names = tuple[str, ...]
Distribution = tuple[tuple[str, float], ...]  # (kind, probability)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"must be a number, not {value!r}")
    return float(value)


def _probability(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise ValueError(f"must be a probability in [0, 1], not {value!r}")
    return float(value)


def _whole(least: int) -> Callable[[Any], int]:
    """A check for a whole number of at least `least`."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"must be a whole number of at least {least}, not {value!r}")
        return value

    return check


def _range(least: float, most: float, around: float | None = None) -> Callable[[Any], Range]:
    """A check for `[low, high]` within [least, most]; if `around` is given, low ≤ around ≤ high."""

    def check(value: Any) -> Range:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"must be [low, high], not {value!r}")
        low, high = map(_number, value)
        if not least <= low <= high <= most:
            raise ValueError(f"must be [low, high] with {least:g} <= low <= high <= {most:g}, not {value!r}")
        if around is not None and not low <= around <= high:
            raise ValueError(f"must contain {around:g}, not {value!r}")
        return low, high

    return check


def _choices(allowed: Collection[str]) -> Callable[[Any], Names]:
    """A check for a list out of `allowed`, drawn from with equal probability."""

    def check(value: Any) -> Names:
        if not isinstance(value, list) or not value:
            raise ValueError(f"must be a list out of {', '.join(allowed)}, not {value!r}")
        for entry in value:
            if entry not in allowed:
                raise ValueError(f"has the unknown entry {entry!r}{_nearest(entry, allowed)}")
        return tuple(value)

    return check


def _distribution(allowed: Collection[str]) -> Callable[[Any], Distribution]:
    """A check for a mapping `kind: probability` over `allowed` with sum 1; a kind left out has probability 0."""

    def check(value: Any) -> Distribution:
        if not isinstance(value, dict) or not value:
            raise ValueError(f"must map {', '.join(allowed)} to probabilities, not {value!r}")
        for kind in value:
            if kind not in allowed:
                raise ValueError(f"has the unknown entry {kind!r}{_nearest(kind, allowed)}")
        pairs = tuple((kind, _probability(value[kind])) for kind in allowed if kind in value)
        if abs(sum(probability for _, probability in pairs) - 1) > 1e-6:
            raise ValueError(f"must sum to 1, not {sum(probability for _, probability in pairs):g}")
        return pairs

    return check


def _odd_sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(size) is int and size >= 3 and size % 2 for size in value):
        raise ValueError(f"must be a list of odd kernel sizes of at least 3, not {value!r}")
    return tuple(value)


Probability = Annotated[float, _probability]
KernelSizes = Annotated[tuple[int, ...], _odd_sizes]


@dataclass(frozen=True)
class BlurConfig:
    """One blur: with `sinc_prob` a sinc kernel, else one of `kernel_probs`."""

    prob: Probability
    kernel_sizes: KernelSizes
    kernel_probs: Annotated[Distribution, _distribution(KERNEL_KINDS)]
    sigma: Annotated[Range, _range(1e-3, 100)]  # pixels, each axis
    rotation: Annotated[Range, _range(-360, 360)]  # degrees, anisotropic kernels
    betag: Annotated[Range, _range(1e-2, 20, around=1)]  # shape of the generalized Gaussian; half of the draws lie below 1
    betap: Annotated[Range, _range(1e-2, 20, around=1)]  # shape of the plateau kernel
    sinc_prob: Probability
    sinc_large_from: Annotated[int, _whole(3)]  # kernel size from which `sinc_cutoff_large` holds
    sinc_cutoff_small: Annotated[Range, _range(1e-2, 1)]  # units of pi
    sinc_cutoff_large: Annotated[Range, _range(1e-2, 1)]


@dataclass(frozen=True)
class ResizeConfig:
    """One random resize; the factor is drawn from [1, high] when up, [low, 1] when down."""

    probs: Annotated[Distribution, _distribution(RESIZE_DIRECTIONS)]
    range: Annotated[Range, _range(1e-2, 10, around=1)]
    modes: Annotated[Names, _choices(RESIZE_MODES)]


@dataclass(frozen=True)
class NoiseConfig:
    """Gaussian noise with `gaussian_prob`, else Poisson noise; one noise for the three channels with `gray_prob`."""

    gaussian_prob: Probability
    gaussian_sigma: Annotated[Range, _range(0, 255)]  # of 255
    poisson_scale: Annotated[Range, _range(0, 100)]
    gray_prob: Probability


@dataclass(frozen=True)
class JpegConfig:
    quality: Annotated[Range, _range(1, 100)]


@dataclass(frozen=True)
class FirstPassConfig:
    blur: BlurConfig
    resize: ResizeConfig
    noise: NoiseConfig
    jpeg: JpegConfig | None


@dataclass(frozen=True)
class SecondPassConfig:
    """No JPEG: the final one closes the second pass. Resize factors are relative to the LR size."""

    blur: BlurConfig
    resize: ResizeConfig
    noise: NoiseConfig


@dataclass(frozen=True)
class FinalSincConfig:
    prob: Probability
    kernel_sizes: KernelSizes
    cutoff: Annotated[Range, _range(1e-2, 1)]


@dataclass(frozen=True)
class FinalJpegConfig:
    quality: Annotated[Range, _range(1, 100)]
    resize_first_prob: Probability  # resize to LR, then JPEG; else JPEG, then resize


@dataclass(frozen=True)
class FinalConfig:
    """The resize to LR size with its sinc filter, and a last JPEG before or after it."""

    resize_modes: Annotated[Names, _choices(RESIZE_MODES)]
    sinc: FinalSincConfig | None
    jpeg: FinalJpegConfig | None


@dataclass(frozen=True)
class DegradationConfig:
    scale: Annotated[int, _whole(1)]
    first: FirstPassConfig
    second_order_prob: Probability
    second: SecondPassConfig | None
    final: FinalConfig


def load_degradation(name_or_path: str | Path) -> DegradationConfig:
    """Read a degradation by name (`configs/degradation/<name>.yaml`) or from a YAML file.

    Raises:
        UserError: no such degradation; a key that is unknown, missing or out of range (named, with the nearest known key).
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIG_DIR / f"{name_or_path}.yaml"
        known = sorted(entry.stem for entry in CONFIG_DIR.glob("*.yaml"))
        if str(name_or_path) not in known:
            raise UserError(f"degradation '{name_or_path}': not one of {', '.join(known)}; give one of these or a .yaml file")
    settings = read_yaml(path, "valid YAML")
    config = _build(DegradationConfig, settings, path, "")
    if config.second_order_prob > 0 and config.second is None:
        raise UserError(f"{path}: 'second_order_prob' needs the section 'second'")
    if config.second_order_prob == 0 and config.second is not None:
        raise UserError(f"{path}: 'second_order_prob' is 0, so the section 'second' would never be read; set it to null")
    return config


def _build(kind: type[Any], settings: Any, path: Path, prefix: str) -> Any:
    """The dataclass `kind` from a YAML mapping whose keys are exactly its fields."""
    if not isinstance(settings, dict):
        raise UserError(f"{path}: {f'{prefix[:-1]!r}' if prefix else 'the file'} must map keys to values")
    hints, values = get_type_hints(kind, include_extras=True), {}
    for key in settings:
        if key not in hints:
            raise UserError(f"{path}: unknown key '{prefix}{key}'{_nearest(key, hints)}")
    for key, hint in hints.items():
        name, may_be_absent = prefix + key, NoneType in get_args(hint)
        section: Any = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        if key not in settings:
            raise UserError(f"{path}: missing key '{name}'; give it{', or null to leave the step out' if may_be_absent else ''}")
        value = settings[key]
        if section:
            values[key] = None if value is None and may_be_absent else _build(section, value, path, f"{name}.")
            continue
        try:
            values[key] = hint.__metadata__[0](value)
        except ValueError as error:
            raise UserError(f"{path}: '{name}' {error}") from None
    return kind(**values)


def _nearest(key: object, known: Collection[str]) -> str:
    match = difflib.get_close_matches(str(key), [str(entry) for entry in known], n=1, cutoff=0)
    return f"; the nearest known is '{match[0]}'"
