"""A grid: trainings that differ in a few flags, each with several seeds, on the same candidates; read from one YAML."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from dp2osr import files
from dp2osr.cli import nearest_of
from dp2osr.errors import UserError
from dp2osr.evaluation.methods import RESERVED
from dp2osr.fields import regular_expression
from dp2osr.places import CONFIGS
from dp2osr.stats import CROP_SUFFIX

CONFIG_DIR = CONFIGS / "reproduce"
STAGES = ("sample", "label", "train", "test", "label_test")
KEYS = ("title", "stages", "evaluated_by", "seeds", "arms")
MORE_KEYS = ("axis", "crop_suffix", "reference_cache", "test", "checkpoints", "rivals", "best_mean_worst", "pictures")
ARM_KEYS = ("train", "reward", "sample", "rounds", "reference", "degradation", "seeds", "line", "at")
REFERENCES = ("moved", "fixed")


@dataclass(frozen=True)
class Arm:
    """One setting of a grid.

    Attributes:
        train: flags of training that differ from the grid's train.yaml.
        reward: keys of a reward's YAML that differ from that training's `reward_config`.
        seeds: of the training.
        sample: flags of sampling the candidates that differ from the grid's sample.yaml.
        rounds: of sampling and training; a further one samples other images with the policy, scores them and starts from it.
        reference: of a further round, "moved" to the policy that it starts from, or "fixed", the base.
        degradation: that makes the training's LR images anew from the GT images of the grid's label.yaml; None: sample.yaml's are taken.
        line, at: where a grid has an axis, the curve that the arm belongs to, and its place on the axis.
        checkpoint: the training's step whose policy is looked at; None: the last.
    """

    name: str
    train: dict
    reward: dict
    seeds: tuple
    line: str = ""
    at: float | None = None
    sample: dict = field(default_factory=dict)
    rounds: int = 1
    reference: str = "moved"
    degradation: str | None = None
    checkpoint: int | None = None

    def run_name(self, seed):
        return f"{self.name}-{seed}"


@dataclass(frozen=True)
class Grid:
    """All that decides an experiment.

    Attributes:
        name, title: of the YAML, and what it asks.
        stages: stage → the YAML of its program (`STAGES`).
        evaluated_by: reward config by which all policies are compared.
        arms: the first is the one that the others are compared with.
        axis: what the arms' `at` is, or None.
        crop_suffix: what an image id of the held-out set has beyond its photograph's name.
        reference_cache: whether trainings share the reference's errors on disk; of use where they visit the same candidates.
        test: flags of sampling held-out candidates that differ from the grid's test.yaml.
        checkpoints: steps at which every training is looked at; each arm then stands once for each, and the steps are the axis.
        rivals: {name: "bicubic", a folder of SR images of the held-out LR images, or a folder of stages whose base it is}.
        best_mean_worst: whether Best, Mean and Worst of m candidates are drawn too.
        pictures: how many images are shown, those on which the arms' rewards are furthest apart.
    """

    name: str
    title: str
    stages: dict
    evaluated_by: str
    arms: list
    axis: str | None = None
    crop_suffix: str = CROP_SUFFIX
    reference_cache: bool = False
    test: dict = field(default_factory=dict)
    checkpoints: tuple = ()
    rivals: dict = field(default_factory=dict)
    best_mean_worst: bool = False
    pictures: int = 0

    def flags(self, stage):
        """The content of a stage's YAML."""
        return read_yaml(self.stages[stage], "the flags of a program")

    @property
    def runs(self):
        """[(arm, seed)], seed by seed, so that an unfinished grid has all arms of its first seeds."""
        seeds = sorted({seed for arm in self.arms for seed in arm.seeds})
        return [(arm, seed) for seed in seeds for arm in self.arms if seed in arm.seeds]


def load_grid(name_or_yaml, preset):
    """Read `configs/reproduce/<preset>/<name>.yaml`, or a YAML by its path.

    Raises:
        UserError: no such file, not YAML, an unknown or missing key, a stage's YAML that is not there.
    """
    return read_grid(*read_experiment(name_or_yaml, preset))


def read_grid(path, content):
    """The `Grid` of the content of a YAML at `path`; see `load_grid`."""
    check_keys(path, content, (*KEYS, *MORE_KEYS), "an experiment")
    for key in KEYS:
        if key not in content:
            raise UserError(f"{path}: '{key}' is missing")
    seeds = _seeds(path, content["seeds"])
    if not isinstance(content["arms"], dict) or not content["arms"]:
        raise UserError(f"{path}: 'arms' must name at least one setting")
    axis, checkpoints = content.get("axis"), _checkpoints(path, content)
    pictures = content.get("pictures", 0)
    if not isinstance(pictures, int) or pictures < 0:
        raise UserError(f"{path}: 'pictures' must be a number of images, not {pictures!r}")
    arms = [_arm(path, str(name), settings or {}, seeds, axis) for name, settings in content["arms"].items()]
    if checkpoints:
        arms = [_at_checkpoint(path, arm, step) for arm in arms for step in checkpoints]
    return Grid(
        path.stem,
        str(content["title"]),
        _stages(path, content["stages"]),
        str(content["evaluated_by"]),
        arms,
        "training step" if checkpoints else axis,
        crop_suffix(path, content),
        bool(content.get("reference_cache", False)),
        _flags(path, content, "test"),
        checkpoints,
        _rivals(path, content, arms),
        bool(content.get("best_mean_worst", False)),
        pictures,
    )


def _flags(path, content, key):
    if not isinstance(content.get(key, {}), dict):
        raise UserError(f"{path}: '{key}' must be lines of 'name: value'")
    return dict(content.get(key, {}))


def crop_suffix(path, content):
    """The regular expression of an experiment's YAML, by default `CROP_SUFFIX`; `UserError` where it is none."""
    try:
        return regular_expression(str(content.get("crop_suffix", CROP_SUFFIX)))
    except ValueError as error:
        raise UserError(f"{path}: 'crop_suffix': {error}") from None


def _rivals(path, content, arms):
    rivals = {str(name): str(value) for name, value in _flags(path, content, "rivals").items()}
    taken = {"base", *RESERVED, *(arm.name for arm in arms), *(arm.line for arm in arms)} - {"bicubic"}
    for name, where in rivals.items():
        if name == "bicubic" and (Path(where) / "test.yaml").is_file():
            raise UserError(f"{path}: rival 'bicubic': is the enlarged LR images, not a model; give the model another name")
        if name in taken or not name or set(name) & set("=,|"):
            raise UserError(
                f"{path}: rival '{name}': a name without the signs = , | that no arm has, and not {', '.join(RESERVED[1:])} or base"
            )
    return rivals


def _checkpoints(path, content):
    steps = content.get("checkpoints", [])
    if not isinstance(steps, list) or not all(isinstance(step, int) and step > 0 for step in steps) or len(set(steps)) < len(steps):
        raise UserError(f"{path}: 'checkpoints' must be a list of different steps above 0, not {steps!r}")
    if steps and content.get("axis") is not None:
        raise UserError(f"{path}: 'checkpoints' are the axis; leave 'axis' out")
    return tuple(sorted(steps))


def _at_checkpoint(path, arm, step):
    """The arm, looked at after `step` steps of its training."""
    if arm.rounds > 1:
        raise UserError(f"{path}: arm '{arm.name}': 'checkpoints' are of one training, not of {arm.rounds} rounds")
    return replace(arm, name=f"{arm.name}@{step}", line=arm.name, at=step, checkpoint=step)


def _arm(path, name, settings, seeds, axis):
    check_keys(path, settings, ARM_KEYS, f"arm '{name}'")
    if not name or set(name) & set("/\\= ,|@") or name == "base":
        raise UserError(f"{path}: arm '{name}': a name without spaces and the signs / = , | @ that is not 'base'")
    for key in ("train", "reward", "sample"):
        if not isinstance(settings.get(key, {}), dict):
            raise UserError(f"{path}: arm '{name}': '{key}' must be lines of 'flag: value'")
    at = settings.get("at")
    if (axis is None) != (at is None) or at is not None and not (isinstance(at, (int, float)) and 0 < at < math.inf):
        raise UserError(f"{path}: arm '{name}': 'at' must be a number above 0 where the experiment has an 'axis', and only there")
    rounds, reference = settings.get("rounds", 1), settings.get("reference", "moved")
    if not isinstance(rounds, int) or rounds < 1 or reference not in REFERENCES:
        raise UserError(f"{path}: arm '{name}': 'rounds' is a whole number from 1, 'reference' one of {', '.join(REFERENCES)}")
    degradation = settings.get("degradation")
    if degradation is not None and not isinstance(degradation, str):
        raise UserError(f"{path}: arm '{name}': 'degradation' must be a name in configs/degradation or a YAML, not {degradation!r}")
    if degradation and rounds > 1:
        raise UserError(f"{path}: arm '{name}': 'degradation' is of one round, not of {rounds}")
    return Arm(
        name,
        dict(settings.get("train", {})),
        dict(settings.get("reward", {})),
        _seeds(path, settings["seeds"]) if "seeds" in settings else seeds,
        str(settings.get("line", "")),
        at,
        dict(settings.get("sample", {})),
        rounds,
        reference,
        degradation,
    )


def _stages(path, folder):
    if not isinstance(folder, str):
        raise UserError(f"{path}: 'stages' must be a folder, not {folder!r}")
    stages = {stage: Path(folder) / f"{stage}.yaml" for stage in STAGES}
    for file in stages.values():
        if not file.is_file():
            raise UserError(f"{path}: {file} is missing, a stage of this experiment")
    return stages


def _seeds(path, seeds):
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: 'seeds' must be a list of different whole numbers, not {seeds!r}")
    return tuple(seeds)


def read_experiment(name_or_yaml, preset):
    """(path, content) of an experiment's YAML; `UserError` where there is none."""
    path = Path(name_or_yaml) if str(name_or_yaml).endswith((".yaml", ".yml")) else CONFIG_DIR / preset / f"{name_or_yaml}.yaml"
    if not path.exists():
        known = sorted(f"{file.parent.name}/{file.stem}" for file in CONFIG_DIR.glob("*/*.yaml"))
        raise UserError(f"{path}: there is no such experiment; known: {', '.join(known)}")
    return path, read_yaml(path, "an experiment")


def read_yaml(path, what):
    """The dictionary of a YAML file; `UserError` where it is not readable, or `what` it should be is not 'key: value' lines."""
    content = files.read_yaml(path, "a readable YAML")
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be lines of 'key: value', {what}")
    return content


def check_keys(path, content, known, what):
    """Raise `UserError` unless `content` is a dictionary with keys of `known` alone."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: {what} must be lines of 'key: value'")
    for key in content:
        if key not in known:
            raise UserError(f"{path}: {what} has no key '{key}'{nearest_of(key, known)}")
