"""What the tests of baseline share: fixtures and helpers."""

import shutil

import pytest
from conftest import MODEL, ROOT

from dp2osr.cli import given, parse
from dp2osr.training.baseline import BaselineTrainer, train_baseline
from dp2osr.training.baseline_options import check_baseline_given
from dp2osr.training.baseline_settings import BaselineSettings

BASELINE = [
    "scripts/train_controlnet.py", "--pretrained_model_name_or_path", MODEL, "--train_dir", str(ROOT / "preset/train/gt"),
    "--resolution", "64", "--window", "8", "--full_window_share", "0.5", "--train_batch_size", "4",
    "--learning_rate", "1e-3", "--lr_warmup_steps", "1", "--dataloader_num_workers", "0", "--report_to", "none",
    "--conditioning_channels", "8", "16", "32", "--negative_share", "0.2", "--train_backbone", "--checkpointing_steps", "2",
]  # fmt: skip


def parsed(*more):
    """The program's flags, checked, in this process."""
    argv = [*BASELINE[1:], *more]
    settings = parse(BaselineSettings, argv)
    check_baseline_given(settings, given(BaselineSettings, argv))
    return settings


def train_controlnet(*more):
    """The program in this process."""
    train_baseline(parsed(*more))


def made_trainer(tmp_path, kind, *more):
    """A trainer of a kind's tiny model with its ControlNet, not started yet."""
    words = [
        *kind.model_flags, "--train_dir", ROOT / "preset/train/gt", "--output_dir", tmp_path / "out", "--full_window_share", "0.5",
        "--resolution", 64, "--window", 8, "--train_batch_size", 4, "--dataloader_num_workers", 0, "--report_to", "none",
        "--max_train_steps", 4, *more,
    ]  # fmt: skip
    return BaselineTrainer(parse(BaselineSettings, words))


@pytest.fixture
def photographs(tmp_path):
    """Twelve photographs in a folder."""
    for path in sorted((ROOT / "preset/train/gt").glob("*.png"))[:12]:
        shutil.copy(path, tmp_path / path.name)
    return tmp_path
