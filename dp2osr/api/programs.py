"""What the programs do, called from Python with the same settings: same results, same resuming, same files.

Each function takes the settings dataclass of its program and returns where the results are. Run it again and it does what is left.
What a program prints, the function prints too. A path in the settings may be text or a `Path`.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dp2osr.api.wording import mendable
from dp2osr.cli import Settings
from dp2osr.data.settings import PairsSettings
from dp2osr.errors import UserError
from dp2osr.evaluation.settings import EvaluateSettings
from dp2osr.rewards.settings import BestOfSettings, LabelSettings
from dp2osr.sampling.settings import GenerateSettings, RestoreSettings
from dp2osr.training.baseline_settings import BaselineSettings
from dp2osr.training.settings import TrainSettings

if TYPE_CHECKING:
    from dp2osr.evaluation.candidates import Evaluation
    from dp2osr.evaluation.image_comparison import ImageTable

Kind = TypeVar("Kind", bound=Settings)


def make_pairs(settings: PairsSettings) -> Path:
    """LR/GT pairs of photographs, as `scripts/make_lr_pairs.py` makes them.

    Returns:
        the folder, with `lr/` and `gt/`.

    Raises:
        UserError: settings of another program, images that cannot be used, a folder that holds pairs of other settings.

    Example:
        dp2osr.make_pairs(dp2osr.PairsSettings(image_path="my_photographs", output_dir="data/mine", crop_size=128))
    """
    settings = _checked(settings, PairsSettings, "make_pairs")
    from dp2osr.data.lr_pairs import pairs_by_settings

    with mendable():
        pairs_by_settings(settings)
    return Path(settings.output_dir)


def sample(settings: GenerateSettings) -> Path:
    """M candidates of each LR image, as `gen_candidates.py` samples them: stage one.

    Returns:
        the candidate folder.

    Raises:
        UserError: settings of another program, models or images that cannot be used, memory that does not suffice, a folder that holds
            candidates of other settings.

    Example:
        dp2osr.sample(dp2osr.GenerateSettings(
            pretrained_model_name_or_path="preset/models/tiny-sd2", controlnet_model_name_or_path="preset/models/c-tiny-sd2",
            image_path="preset/train/lr", max_images=84, num_candidates=16, output_dir="runs/candidates",
        ))
    """
    settings = _checked(settings, GenerateSettings, "sample")
    from dp2osr.sampling.generate import generate_candidates

    with mendable():
        generate_candidates(settings)
    return Path(settings.output_dir)


def label(settings: LabelSettings) -> Path:
    """Raw scores of all candidates, as `label_rewards.py` computes them: stage two.

    Returns:
        the score table, a parquet file with the columns `image_id`, `candidate` (-1 is the GT) and one a metric.

    Raises:
        UserError: settings of another program, an unknown metric, FR metrics without `gt_path`, a GT of another size.

    Example:
        dp2osr.label(dp2osr.LabelSettings(candidates_dir="runs/candidates", gt_path="preset/train/gt", reward_config="embedded"))
    """
    settings = _checked(settings, LabelSettings, "label")
    from dp2osr.rewards.label import label_candidates
    from dp2osr.rewards.table import scores_path

    with mendable():
        label_candidates(settings)
    return Path(scores_path(settings.candidates_dir, settings.output))


def train(settings: TrainSettings) -> Path:
    """Preference training of a ControlNet, as `train_sd2_dpo.py` and `train_flux_dpo.py` do it: stage four.

    `backbone` that is left open is the kind of the base model, and then this is the program of that kind. A setting counts as given where
    it differs from its default; one that would do nothing is refused.

    Returns:
        the policy's folder, which `dp2osr.load` takes.

    Raises:
        UserError: settings of another program or that do not go together, candidates of another model, a folder of another run.
        KeyboardInterrupt: the training was interrupted; its step is finished and saved, and it goes on when it is called again.

    Example:
        dp2osr.train(dp2osr.TrainSettings(
            pretrained_model_name_or_path="preset/models/tiny-sd2", controlnet_model_name_or_path="preset/models/c-tiny-sd2",
            candidates_dir="runs/candidates", top_n=4, groups_per_step=4, learning_rate=1e-4, max_train_steps=50, output_dir="runs/dp2o",
        ))
    """
    settings = _checked(settings, TrainSettings, "train")
    from dp2osr.training.checks import check_given
    from dp2osr.training.trainer import train_preferences

    with mendable(), interruptible():
        settings = replace(settings, backbone=settings.backbone or kind_of_base(settings))
        check_given(settings, changed(settings))
        forget_accelerator()
        train_preferences(settings)
    return Path(settings.output_dir)


def train_base(settings: BaselineSettings) -> Path:
    """Training of a base ControlNet on degraded photographs, as `scripts/train_controlnet.py` does it.

    Returns:
        the ControlNet's folder.

    Raises:
        UserError: settings of another program or that do not go together, photographs that cannot be used, a folder of another run.
    """
    settings = _checked(settings, BaselineSettings, "train_base")
    from dp2osr.training.baseline import train_baseline
    from dp2osr.training.baseline_checks import check_baseline_given

    with mendable(), interruptible():
        check_baseline_given(settings, changed(settings))
        forget_accelerator()
        train_baseline(settings)
    return Path(settings.output_dir)


def evaluate(settings: EvaluateSettings) -> "Evaluation | ImageTable":
    """A comparison of methods by their candidates or by folders of SR images, as `scripts/evaluate.py` makes it.

    Returns:
        `Evaluation` with `candidates`, `ImageTable` with `images`; tables and pages lie in `output_dir`.

    Raises:
        UserError: settings of another program or that do not go together, candidates without scores, images without a GT.

    Example:
        dp2osr.evaluate(dp2osr.EvaluateSettings(images=["policy=runs/sr"], gt_path="preset/test/gt", output_dir="runs/table"))
    """
    settings = _checked(settings, EvaluateSettings, "evaluate")
    from dp2osr.evaluation.dispatch import compare_methods

    with mendable():
        return compare_methods(settings, changed(settings))


def restore(settings: RestoreSettings) -> Path:
    """SR images of a folder, as `test_sd2b_controlnet.py` and `test_flux_controlnet.py` write them.

    `BestOfSettings`, which are restore settings too, can keep the best of an image's samples alone (`keep="best"`).

    Returns:
        the folder of results.

    Raises:
        UserError: settings of another program, models or images that cannot be used, memory that does not suffice, results of other
            settings in the folder.

    Example:
        dp2osr.restore(dp2osr.RestoreSettings(
            pretrained_model_name_or_path="preset/models/tiny-sd2", controlnet_model_name_or_path="runs/dp2o",
            image_path="preset/test/lr", upscale=4, output_dir="runs/sr",
        ))
    """
    settings = _checked(settings, RestoreSettings, "restore")
    from dp2osr.rewards.best_of import restore_images
    from dp2osr.sampling.restore import restore_folder

    with mendable():
        if isinstance(settings, BestOfSettings):
            restore_images(settings)
        else:
            restore_folder(settings)
    return Path(settings.output_dir)


def _checked(settings: Kind, kind: type[Kind], name: str) -> Kind:
    """The settings, `Path`s in them as text; `UserError` where they are another program's."""
    if not isinstance(settings, kind):
        raise UserError(f"dp2osr.{name} takes dp2osr.{kind.__name__}(...), not {type(settings).__name__}")
    return replace(settings, **{entry.name: _as_text(getattr(settings, entry.name)) for entry in fields(settings)})


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def changed(settings: Settings) -> set[str]:
    """Names of the settings that differ from their defaults: what Python knows of those that were given."""

    def default(entry: Any) -> Any:
        return entry.default if entry.default_factory is MISSING else entry.default_factory()

    return {entry.name for entry in fields(settings) if getattr(settings, entry.name) != default(entry)}


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, a training that ends at Ctrl-C with a checkpoint is KeyboardInterrupt, as a notebook expects, and not the program's exit."""
    try:
        yield
    except SystemExit as ended:
        if ended.code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt from None


def kind_of_base(settings: TrainSettings) -> str | None:
    """The kind of a base model, "sd2" or "flux", by its folder; None for another, which the program refuses."""
    from dp2osr.backbones import model_source
    from dp2osr.backbones.kinds import kind_of

    return kind_of(model_source(settings).pipeline())


def forget_accelerator() -> None:
    """Let a training have its own precision: accelerate keeps that of the first one in a process. Processes of a launch keep theirs."""
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
