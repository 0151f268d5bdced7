"""Train a tiny base on one GPU for so many minutes: a step is one CUDA graph, from the draw of its windows to the mean of the weights.

    python studies/train_on_gpu.py --config configs/tiny_flux/baseline_gpu.yaml --minutes 6

A tiny model's step has thousands of small kernels; started one by one they leave such a GPU idle nine tenths of the time. Recipe and
flags are those of `scripts/train_controlnet.py`, but for three things: the rate follows the clock (a cosine over `--minutes`), the text
encoders stay as they are, and crops in the pool are replaced by new ones all the time. It cannot be resumed. On a CPU there is no graph.
"""

from dataclasses import dataclass

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.fields import Count, Natural, Positive
from dp2osr.training.baseline_settings import BaselineSettings


@dataclass(kw_only=True)
class GpuTrainingSettings(BaselineSettings):
    """A baseline's settings, and how long to train; `max_train_steps`, `lr_scheduler` and checkpoints are not read."""

    minutes: Positive = 6.0
    """Training time, from the first step on."""
    snapshots: Natural = 4
    """Models kept from along the way, evenly over the time."""
    fresh: Count = 16
    """Crops of the pool that are replaced by new ones at a time."""
    refresh_every: Count = 4
    """Steps between these times."""


def main():
    args = parse(GpuTrainingSettings, description=__doc__)
    from studies.graphed_training import train

    train(args)


if __name__ == "__main__":
    run(main)
