"""Train dp2o_rank, the embedded reward's own small no-reference metric, to rank distortion strengths of photographs."""

from dataclasses import dataclass

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, Natural, Positive
from dp2osr.places import ROOT


@dataclass(kw_only=True)
class RankMetricSettings(Settings):
    """Training of `dp2o_rank`."""

    train_dir: str = "runs/photographs/train"
    """Folder of training photographs."""
    val_dir: str = "runs/photographs/val"
    """Folder of held-out photographs."""
    output: str = str(ROOT / "preset" / "metrics" / "tiny_rank.safetensors")
    """Weights to write."""
    max_train_steps: Count = 900
    """Optimizer steps."""
    train_batch_size: Count = 10
    """Ladders a step, each of one crop at four strengths."""
    crop_size: Count = 96
    """Side of a training crop, pixels."""
    learning_rate: Positive = 0.002
    """Peak rate of the one-cycle schedule."""
    seed: Natural = 0
    """Decides initial weights, crops and distortions."""


def main():
    args = parse(RankMetricSettings, description=__doc__)
    from dp2osr.rewards.rank_metric import train_rank_metric

    print(train_rank_metric(args))


if __name__ == "__main__":
    run(main)
