"""Train dp2o_naturalness, the head that tells photographs from what degradations, bicubic and SR models make of them.

    python scripts/fetch_photographs.py
    python scripts/train_naturalness.py

Run the same command again after an interruption: the pairs and the samples that are there are kept.
"""

from dataclasses import dataclass, field
from typing import Annotated

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, Natural, NonNegative, at_least, metavar
from dp2osr.places import ROOT


def shipped_models():
    """BASE:CONTROLNET of every embedded model."""
    models = ROOT / "preset" / "models"
    return [f"{models / name}:{models / f'c-{name}'}" for name in ("tiny-flux", "tiny-sd2")]


@dataclass(kw_only=True)
class NaturalnessSettings(Settings):
    """Training of `dp2o_naturalness`."""

    train_dir: str = "runs/photographs/train"
    """Folder of training photographs."""
    val_dir: str = "runs/photographs/val"
    """Folder of held-out photographs."""
    models: Annotated[list[str], metavar("BASE:CONTROLNET")] = field(default_factory=shipped_models)
    """The models whose samples are learnt."""
    num_inference_steps: list[Count] = field(default_factory=lambda: [4, 10, 25])
    """Of the samples: each of them."""
    num_candidates: Count = 1
    """Samples of a model with each number of steps, an image."""
    train_images: Count = 64
    """Crops that each model samples, of those to train on."""
    val_images: Count = 32
    """Crops that each model samples, of those held out."""
    crop_size: Annotated[int, at_least(32)] = 128
    """Side of a crop, pixels."""
    crops_per_image: Count = 2
    """Crops a photograph."""
    min_detail: NonNegative = 3.0
    """Least RMS gradient of a crop, grey levels a pixel."""
    max_train_steps: Count = 1500
    """Optimizer steps of the head."""
    seed: Natural = 0
    """Decides crops, distortions, samples and initial weights."""
    work_dir: str = "runs/naturalness"
    """Gets the pairs and the samples."""
    output: str = str(ROOT / "preset" / "metrics" / "naturalness.safetensors")
    """Weights to write."""


def main():
    args = parse(NaturalnessSettings, description=__doc__)
    import json

    from dp2osr.rewards.naturalness_training import train_naturalness

    print(json.dumps(train_naturalness(args), indent=1))


if __name__ == "__main__":
    run(main)
