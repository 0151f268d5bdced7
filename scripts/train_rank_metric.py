"""Train dp2o_rank, the embedded reward's own small no-reference metric, to rank distortion strengths of photographs."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def parse_args(argv=None):
    from dp2osr.config import at_least, positive
    from dp2osr.config import parse_args as parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--train_dir", default="runs/photographs/train", help="folder of training photographs")
    parser.add_argument("--val_dir", default="runs/photographs/val", help="folder of held-out photographs")
    parser.add_argument("--output", default=str(ROOT / "preset" / "metrics" / "tiny_rank.safetensors"), help="weights to write")
    parser.add_argument("--max_train_steps", type=at_least(1), default=900, help="optimizer steps")
    parser.add_argument("--train_batch_size", type=at_least(1), default=10, help="ladders a step, each of one crop at four strengths")
    parser.add_argument("--crop_size", type=at_least(1), default=96, help="side of a training crop, pixels")
    parser.add_argument("--learning_rate", type=positive, default=2e-3, help="peak rate of the one-cycle schedule")
    parser.add_argument("--seed", type=at_least(0), default=0, help="decides initial weights, crops and distortions")
    return parse(parser, argv)


def main():
    args = parse_args()
    from dp2osr.rewards.rank_metric import train_rank_metric

    print(train_rank_metric(args))


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
