"""What the tests of training share: fixtures and helpers."""

import pytest
from conftest import ROOT, run_program
from safetensors.torch import load_file

from dp2osr.training.trainer import PreferenceTrainer

STEPS = 6


def words(kind, labelled, output, *more):
    return [
        kind.training_program, *kind.model_flags, "--candidates_dir", str(labelled), "--reward_config", str(labelled / "reward.yaml"),
        "--output_dir", str(output),
        "--top_n", "2", "--groups_per_step", "2", "--max_train_steps", str(STEPS), "--checkpointing_steps", "2", "--learning_rate", "1e-4",
        "--report_to", "none", "--seed", "0", *more,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def trained(kind, labelled, tmp_path_factory):
    output = tmp_path_factory.mktemp("policy") / "run"
    run_program(*words(kind, labelled, output))
    return output


def weights(folder):
    return load_file(folder / "model.safetensors")


def run_training(kind, labelled, output, *more):
    """The program in this process."""
    args = kind.training_settings(words(kind, labelled, output, *map(str, more))[1:])
    trainer = PreferenceTrainer(args)
    trainer.train()
    return trainer


class FallingRewards:
    """A validator whose gains are given."""

    def __init__(self, gains):
        self.gains = iter(gains)

    def __call__(self, policy):
        return {"G": next(self.gains)}

    def sheet(self):
        from PIL import Image

        return Image.new("RGB", (4, 4))


def copy_validation_images(folder, count=2):
    """`count` held-out LR images in `folder`/lr, their GT in `folder`/gt; the flags that name them."""
    for side in ("lr", "gt"):
        (folder / side).mkdir()
        for path in sorted((ROOT / f"preset/test/{side}").glob("*.png"))[:count]:
            (folder / side / path.name).write_bytes(path.read_bytes())
    return ["--validation_image_path", str(folder / "lr"), "--validation_gt_path", str(folder / "gt"), "--validation_candidates", "2"]
