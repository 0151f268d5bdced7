"""Train a baseline ControlNet on degraded photographs: C-SD2 and C-FLUX by the paper's recipes, or a tiny preset with its backbone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dp2osr.config import given_flags, parse_args
from dp2osr.errors import run
from dp2osr.training import baseline_options


def build_parser():
    return baseline_options.build_parser(__doc__)


def main():
    parser = build_parser()
    args = parse_args(parser)
    baseline_options.check_baseline_given(args, given_flags(parser))
    from dp2osr.training.baseline import train_baseline

    train_baseline(args)


if __name__ == "__main__":
    run(main)
