"""An experiment: trainings that differ in a few flags, each with several seeds, on the same candidates; read from one YAML."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dp2osr.errors import UserError
from dp2osr.evaluation.compare import BICUBIC
from dp2osr.evaluation.methods import RESERVED
from dp2osr.fields import Count, Natural, Positive, RegularExpression
from dp2osr.places import CONFIGS
from dp2osr.schema import build, read_lines
from dp2osr.stats import CROP_SUFFIX

CONFIG_DIR = CONFIGS / "reproduce"
STAGES = ("sample", "label", "train", "test", "label_test")
BASE = "base"
OURS = {"in_yaml": False}  # of fields that are not written in the YAML but follow from it


@dataclass(frozen=True)
class Arm:
    """One setting of an experiment.

    Attributes:
        train: flags of training that differ from the experiment's train.yaml.
        reward: keys of a reward's YAML that differ from that training's `reward_config`.
        sample: flags of sampling the candidates that differ from the experiment's sample.yaml.
        seeds: of the training; by default the experiment's.
        rounds: of sampling and training; a further one samples other images with the policy, scores them and starts from it.
        reference: of a further round, "moved" to the policy that it starts from, or "fixed", the base.
        degradation: that makes the training's LR images anew from the GT images of the experiment's label.yaml; None: those of sample.yaml.
        label: flags of scoring the candidates that differ from the experiment's label.yaml.
        line, at: where an experiment has an axis, the curve that the arm belongs to, and its place on the axis.
        checkpoint: the training's step whose policy is looked at; None: the last.
    """

    train: dict = field(default_factory=dict)
    reward: dict = field(default_factory=dict)
    sample: dict = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    rounds: Count = 1
    reference: Literal["moved", "fixed"] = "moved"
    degradation: str | None = None
    label: dict = field(default_factory=dict)
    line: str = ""
    at: Positive | None = None
    name: str = field(default="", metadata=OURS)
    checkpoint: int | None = field(default=None, metadata=OURS)

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        if self.degradation and self.rounds > 1:
            raise ValueError(f"'degradation' is of one round, not of {self.rounds}")

    @property
    def training(self) -> str:
        """The name of its training, which several arms that look at it share."""
        return self.line if self.checkpoint else self.name

    def run_name(self, seed: int) -> str:
        return f"{self.name}-{seed}"


@dataclass(frozen=True)
class Experiment:
    """All that decides an experiment.

    Attributes:
        title: what it asks.
        stages: folder with the YAML of each program (`STAGES`).
        evaluated_by: reward config by which all policies are compared.
        arms: the first is the one that the others are compared with.
        axis: what the arms' `at` is, or None.
        crop_suffix: what an image id of the held-out set has beyond its photograph's name.
        reference_cache: whether trainings share the reference's errors on disk; of use where they visit the same candidates.
        test: flags of sampling held-out candidates that differ from the experiment's test.yaml.
        checkpoints: steps at which every training is looked at; each arm then stands once for each, and the steps are the axis.
        rivals: {name: "bicubic", a folder of SR images of the held-out LR images, or a folder of stages whose base it is}.
        best_mean_worst: whether Best, Mean and Worst of m candidates are drawn too.
        pictures: how many images are shown, those on which the arms' rewards are furthest apart.
    """

    title: str
    stages: Path
    evaluated_by: str
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    axis: str | None = None
    crop_suffix: RegularExpression = CROP_SUFFIX
    reference_cache: bool = False
    test: dict = field(default_factory=dict)
    checkpoints: tuple[Count, ...] = ()
    rivals: dict[str, str] = field(default_factory=dict)
    best_mean_worst: bool = False
    pictures: Natural = 0
    name: str = field(default="", metadata=OURS)

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        if len(set(self.checkpoints)) < len(self.checkpoints):
            raise ValueError("'checkpoints' must be different steps")

    def flags(self, stage: str) -> dict[str, Any]:
        """The content of a stage's YAML."""
        return read_lines(self.stages / f"{stage}.yaml", "the flags of a program")

    @property
    def runs(self) -> list[tuple[Arm, int]]:
        """[(arm, seed)], seed by seed, so that an unfinished experiment has all arms of its first seeds."""
        arms = self.arms.values()
        seeds = sorted({seed for arm in arms for seed in self.seeds_of(arm)})
        return [(arm, seed) for seed in seeds for arm in arms if seed in self.seeds_of(arm)]

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """An arm's own seeds, by default the experiment's."""
        return arm.seeds or self.seeds


def _check_seeds(seeds: tuple[int, ...] | None) -> None:
    if seeds is not None and (not seeds or len(set(seeds)) < len(seeds)):
        raise ValueError(f"'seeds' must be different whole numbers, not {list(seeds)}")


def load_experiment(name_or_yaml: str | Path, preset: str) -> Experiment:
    """Read `configs/reproduce/<preset>/<name>.yaml`, or a YAML by its path.

    Raises:
        UserError: no such file, not YAML, an unknown or missing key, a value that does not fit, a stage's YAML that is not there.
    """
    path = find_experiment(name_or_yaml, preset)
    return experiment_of(path, read_lines(path, "an experiment"))


def find_experiment(name_or_yaml: str | Path, preset: str) -> Path:
    """The path of an experiment's YAML; `UserError` where there is none."""
    path = Path(name_or_yaml) if str(name_or_yaml).endswith((".yaml", ".yml")) else CONFIG_DIR / preset / f"{name_or_yaml}.yaml"
    if not path.exists():
        known = sorted(f"{file.parent.name}/{file.stem}" for file in CONFIG_DIR.glob("*/*.yaml"))
        raise UserError(f"{path}: there is no such experiment; known: {', '.join(known)}")
    return path


def experiment_of(path: str | Path, content: dict[str, Any]) -> Experiment:
    """The `Experiment` of the content of the YAML at `path`; see `load_experiment`."""
    arms = content.get("arms")
    if isinstance(arms, dict):  # one that is named alone differs in nothing
        content = content | {"arms": {name: {} if arm is None else arm for name, arm in arms.items()}}
    found = build(Experiment, content, str(path))
    if not found.arms:
        raise UserError(f"{path}: 'arms' must name at least one setting")
    if found.checkpoints and found.axis is not None:
        raise UserError(f"{path}: 'checkpoints' are the axis; leave 'axis' out")
    arms = {name: replace(arm, name=name, seeds=tuple(sorted(found.seeds_of(arm)))) for name, arm in found.arms.items()}
    for arm in arms.values():
        _check_arm(path, arm, found)
    if found.checkpoints:
        looks = [replace(arm, name=f"{arm.name}@{step}", line=arm.name, at=step, checkpoint=step) for arm in arms.values()
                 for step in sorted(found.checkpoints)]  # fmt: skip
        arms = {arm.name: arm for arm in looks}
    _check_rivals(path, found.rivals, arms)
    _check_stages(path, found.stages)
    axis = "training step" if found.checkpoints else found.axis
    return replace(found, name=Path(path).stem, arms=arms, axis=axis, checkpoints=tuple(sorted(found.checkpoints)))


def _check_arm(path: str | Path, arm: Arm, experiment: Experiment) -> None:
    where = f"{path}: arm '{arm.name}'"
    if not arm.name or set(arm.name) & set("/\\= ,|@") or arm.name == BASE:
        raise UserError(f"{where}: a name without spaces and the signs / = , | @ that is not 'base'")
    if (experiment.axis is None) != (arm.at is None):
        raise UserError(f"{where}: 'at' must be a number above 0 where the experiment has an 'axis', and only there")
    if experiment.checkpoints and arm.rounds > 1:
        raise UserError(f"{where}: 'checkpoints' are of one training, not of {arm.rounds} rounds")


def _check_rivals(path: str | Path, rivals: Mapping[str, str], arms: Mapping[str, Arm]) -> None:
    taken = {BASE, *RESERVED, *arms, *(arm.line for arm in arms.values())} - {BICUBIC}
    for name, where in rivals.items():
        if name == BICUBIC and (Path(where) / "test.yaml").is_file():
            raise UserError(f"{path}: rival 'bicubic': is the enlarged LR images, not a model; give the model another name")
        if name in taken or not name or set(name) & set("=,|"):
            known = f"{', '.join(RESERVED[1:])} or base"
            raise UserError(f"{path}: rival '{name}': a name without the signs = , | that no arm has, and not {known}")


def _check_stages(path: str | Path, folder: Path) -> None:
    for stage in STAGES:
        if not (folder / f"{stage}.yaml").is_file():
            raise UserError(f"{path}: {folder / f'{stage}.yaml'} is missing, a stage of this experiment")
