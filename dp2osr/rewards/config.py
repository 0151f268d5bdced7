"""Reward configs (paper, Sec. 4.1): a YAML with two lists of metrics, `fr` and `nr`, and perhaps how they are put together."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any

from dp2osr.errors import UserError
from dp2osr.files import read_yaml
from dp2osr.places import CONFIGS

CONFIG_DIR = CONFIGS / "rewards"


@dataclass(frozen=True)
class MetricSpec:
    """A metric by its pyiqa name, and the options that differ from pyiqa's defaults.

    Attributes:
        draws: whether it draws random numbers, and is to be seeded by image and candidate.
        better: "higher" or "lower" for a column that the user adds to the score table; it is read, never computed. Else None.
        imports: the user's modules that register metrics with pyiqa, imported before this one is created (`own.import_modules`).
    """

    name: str
    options: dict = field(default_factory=dict)
    draws: bool = False
    better: str | None = None
    imports: tuple = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class RewardConfig:
    """The FR and the NR set of a reward; one of them may be empty, and then the other has weight 1.

    Attributes:
        fr_weight: the FR set's share, ½ in the paper.
        normalise: how a metric's scores within a group become comparable, a name in `NORMALISATIONS`; "min_max" in the paper.
        weights: metric → weight within its set, 1 where it is not named, as all are in the paper.
        conflict_aware: weights are further multiplied by how well the metric agrees with the others (`agreement_weights`).
        imports: as `MetricSpec` has them, also for metrics beside the reward.
        nr_bound: "gt" where an NR score above the GT's own counts as the GT's own; else None.
        margin: NR metric → how far above the GT's own score that bound lies, in the metric's unit, 0 where it is not named.
    """

    name: str
    fr: list[MetricSpec]
    nr: list[MetricSpec]
    fr_weight: float = 0.5
    normalise: str = "min_max"
    weights: dict = field(default_factory=dict)
    conflict_aware: bool = False
    imports: tuple = ()
    nr_bound: str | None = None
    margin: dict = field(default_factory=dict)

    @property
    def bounded(self) -> list[str]:
        """The metrics whose scores of the GT itself the reward needs."""
        return [spec.name for spec in self.nr] if self.nr_bound else []

    @property
    def needs_gt(self) -> bool:
        """Whether the reward cannot be had without the GT."""
        return bool(self.fr or self.bounded)

    @property
    def metrics(self) -> list[MetricSpec]:
        """All `MetricSpec`s, FR first."""
        return self.fr + self.nr

    @property
    def computed(self) -> list[MetricSpec]:
        """The `MetricSpec`s that a `MetricSuite` computes."""
        return [spec for spec in self.metrics if not spec.better]

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """Name → description, as in a score table's metadata, of the metrics that are the user's own columns of that table."""
        modes = [("FR", self.fr), ("NR", self.nr)]
        return {
            spec.name: {"lower_better": spec.better == "lower", "mode": mode, "options": {}, "column": True}
            for mode, specs in modes
            for spec in specs
            if spec.better
        }

    def shares(self, factors: Mapping[str, float] | None = None) -> dict[str, float]:
        """metric → its share of the reward; they sum to 1.

        Args:
            factors: metric → a further factor of its weight, not negative; a set of zeros counts as a set of ones.
        """
        both, shares = self.fr and self.nr, {}
        for specs, of_set in ((self.fr, self.fr_weight), (self.nr, 1 - self.fr_weight)):
            weights = {spec.name: self.weights.get(spec.name, 1.0) * (factors[spec.name] if factors else 1.0) for spec in specs}
            if not any(weights.values()):
                weights = {spec.name: self.weights.get(spec.name, 1.0) for spec in specs}
            total = sum(weights.values())
            shares.update({name: (of_set if both else 1.0) * weight / total for name, weight in weights.items()})
        return shares


NORMALISATIONS = ("min_max", "rank", "z_score")
KEYS = ("fr", "nr", "fr_weight", "normalise", "weights", "conflict_aware", "imports", "nr_bound", "margin")
DIRECTIONS = ("higher", "lower")


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x' or 'y'?"` for the known names closest to `name`; the whole list where none is close."""
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return "; did you mean " + " or ".join(f"'{match}'" for match in close) + "?" if close else f"; known: {', '.join(known)}"


def find_named(name_or_yaml: str | Path, folder: Path, what: str) -> Path:
    """The file of a YAML by its path, or by its name in a folder of configs; `UserError` where there is none."""
    path = Path(name_or_yaml) if str(name_or_yaml).endswith((".yaml", ".yml")) else folder / f"{name_or_yaml}.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such {what}{nearest(path.stem, [file.stem for file in folder.glob('*.yaml')])}")
    return path


def load_reward_config(name_or_yaml: str | Path) -> RewardConfig:
    """Read a reward config by its name in `configs/rewards/` or by the path of a YAML file.

    Each entry of `fr` and `nr` is a metric's name, `{name: {option: value}}`, where `draws: true` is no option but says that it draws
    random numbers, or `{name: {better: higher | lower}}` for a column of the user's own; `fr_weight` is a number in (0, 1), ½ by default;
    `imports` a list of modules; the other keys are `RewardConfig`'s.

    Raises:
        UserError: no such name or file, not YAML, an unknown key, a malformed entry, a metric listed twice, no metric, a bad weight,
            an imported file that is not there.
    """
    path = find_reward_config(str(name_or_yaml))
    return reward_config_of(path, read_yaml(path, "a YAML file"))


def reward_config_of(path: Path, content: Any) -> RewardConfig:
    """The `RewardConfig` of the content of the YAML at `path`, which need not be there yet; errors as `load_reward_config`."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: a reward config holds two lists, 'fr' and 'nr'")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key '{key}'{nearest(str(key), KEYS)}")
    weight = content.get("fr_weight", 0.5)
    if not isinstance(weight, (int, float)) or not 0 < weight < 1:
        raise UserError(f"{path}: 'fr_weight' must be a number between 0 and 1, not {weight!r}; leave a set empty to do without it")
    imports = tuple(absolute_imports(path, content).get("imports", ()))
    fr, nr = ([replace(_read_spec(path, entry), imports=imports) for entry in _read_list(path, content, key)] for key in ("fr", "nr"))
    config = RewardConfig(path.stem, fr, nr, float(weight), *_read_aggregation(path, content), imports, *_read_bound(path, content, nr))
    names = [spec.name for spec in config.metrics]
    if not names:
        raise UserError(f"{path}: names no metric; list at least one under 'fr' or 'nr'")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: metric '{name}' is listed {names.count(name)} times; keep one")
    for name in config.weights:
        if name not in names:
            raise UserError(f"{path}: 'weights' names '{name}', which is no metric of it{nearest(name, names)}")
    return config


def _read_aggregation(path: Path, content: dict[str, Any]) -> tuple[str, dict[str, float], bool]:
    """(normalise, weights, conflict_aware) of a config's YAML."""
    normalise = content.get("normalise", "min_max")
    if normalise not in NORMALISATIONS:
        raise UserError(f"{path}: 'normalise' must be one of {', '.join(NORMALISATIONS)}, not {normalise!r}")
    weights = _read_numbers(path, content, "weights", lambda value: 0 < value < inf, "a number above 0")
    conflict_aware = content.get("conflict_aware", False)
    if not isinstance(conflict_aware, bool):
        raise UserError(f"{path}: 'conflict_aware' must be true or false, not {conflict_aware!r}")
    return normalise, weights, conflict_aware


def _read_numbers(path: Path, content: dict[str, Any], key: str, holds: Callable[[float], bool], what: str) -> dict[str, float]:
    """{metric: number} of a config's YAML, each of which `holds`, and is `what` in words."""
    numbers = content.get(key) or {}
    if not isinstance(numbers, dict) or not all(isinstance(value, (int, float)) and holds(value) for value in numbers.values()):
        raise UserError(f"{path}: '{key}' must give metrics {what}, not {numbers!r}")
    return {str(name): float(value) for name, value in numbers.items()}


def _read_bound(path: Path, content: dict[str, Any], nr: list[MetricSpec]) -> tuple[str | None, dict[str, float]]:
    """(nr_bound, margin) of a config's YAML."""
    bound, names = content.get("nr_bound"), [spec.name for spec in nr]
    if bound not in (None, "gt"):
        raise UserError(f"{path}: 'nr_bound' must be gt, not {bound!r}; leave it out to have no bound")
    if bound and not nr:
        raise UserError(f"{path}: 'nr_bound' bounds the metrics under 'nr', and there are none; leave it out")
    if content.get("margin") and not bound:
        raise UserError(f"{path}: 'margin' is of 'nr_bound: gt'; add that, or leave the margin out")
    margin = _read_numbers(path, content, "margin", lambda value: 0 <= value < inf, "a number of at least 0, in their own unit")
    for name in margin:
        if name not in names:
            raise UserError(f"{path}: 'margin' names '{name}', which is no metric under 'nr'{nearest(name, names)}")
    return bound, margin


def absolute_imports(path: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content of a reward config's YAML, in which imported files have their whole path: it may be written to another folder.

    An entry of `imports` is the path of a `.py` from the YAML's folder, or a module's name: a file in that folder, else installed.

    Raises:
        UserError: `imports` is no list of names, or a file of it is not there.
    """
    if "imports" not in content:
        return content
    entries = content["imports"] or []
    if not isinstance(entries, list) or not all(isinstance(entry, str) and entry.strip() for entry in entries):
        raise UserError(f"{path}: 'imports' must be a list of modules or .py files, not {content['imports']!r}; see docs/rewards.md")
    return content | {"imports": [_absolute_import(Path(path), entry.strip()) for entry in entries]}


def _absolute_import(path: Path, entry: str) -> str:
    file = path.parent / (entry if entry.endswith(".py") else f"{entry}.py")
    if file.is_file():
        return str(file.resolve())
    if entry.endswith(".py") or "/" in entry:
        raise UserError(f"{path}: 'imports' names {entry}, and there is no {file}; give its path from the folder of this YAML")
    return entry


def for_new_images(config: RewardConfig, what: str) -> RewardConfig:
    """The config without the metrics that are the user's columns of a score table: `what` has no row there. A line on stderr says so.

    Raises:
        UserError: it has no other metric.
    """
    if not config.columns:
        return config
    names = ", ".join(config.columns)
    if not config.computed:
        raise UserError(
            f"reward config '{config.name}': {names} can be read from a score table alone, and {what} are in none; add a metric"
        )
    print(f"warning: {what} are judged without {names}: a column of the score table, which cannot be computed", file=sys.stderr)
    fr, nr = ([spec for spec in specs if not spec.better] for specs in (config.fr, config.nr))
    weights, margin = ({name: value for name, value in of.items() if name not in config.columns} for of in (config.weights, config.margin))
    return replace(config, fr=fr, nr=nr, weights=weights, margin=margin)


def find_reward_config(name_or_yaml: str) -> Path:
    """The file of a reward config, by name or path; UserError where there is none."""
    path = Path(name_or_yaml)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{path}: no such reward config file")
        return path
    named = CONFIG_DIR / f"{name_or_yaml}.yaml"
    if not named.is_file():
        hint = nearest(name_or_yaml, [config.stem for config in CONFIG_DIR.glob("*.yaml")])
        raise UserError(f"reward config '{name_or_yaml}' is neither a YAML file nor a name in {CONFIG_DIR}{hint}")
    return named


def _read_list(path: Path, content: dict[str, Any], key: str) -> list[object]:
    entries = content.get(key) or []
    if not isinstance(entries, list):
        raise UserError(f"{path}: '{key}' must be a list of metrics")
    return entries


def _read_spec(path: Path, entry: object) -> MetricSpec:
    if isinstance(entry, str):
        return MetricSpec(entry)
    if isinstance(entry, dict) and len(entry) == 1:
        name, options = next(iter(entry.items()))
        if isinstance(name, str) and isinstance(options or {}, dict):
            options = dict(options or {})
            return _read_column(path, name, options) if "better" in options else _read_computed(path, name, options)
    raise UserError(f"{path}: '{entry}' is not a metric; write NAME or NAME: {{option: value}}")


def _read_computed(path: Path, name: str, options: dict[str, Any]) -> MetricSpec:
    draws = options.pop("draws", False)
    if not isinstance(draws, bool):
        raise UserError(f"{path}: metric '{name}': 'draws' must be true or false, not {draws!r}")
    return MetricSpec(name, options, draws)


def _read_column(path: Path, name: str, options: dict[str, Any]) -> MetricSpec:
    better = options["better"]
    if better not in DIRECTIONS:
        raise UserError(f"{path}: metric '{name}': 'better' must be higher or lower, not {better!r}{nearest(str(better), DIRECTIONS)}")
    if len(options) > 1:
        others = ", ".join(sorted(map(str, options.keys() - {"better"})))
        raise UserError(f"{path}: metric '{name}': 'better' says that it is a column of the score table, which has no option {others}")
    if name in ("image_id", "candidate"):
        raise UserError(f"{path}: '{name}' names the rows of the score table and cannot be a metric")
    return MetricSpec(name, better=better)
