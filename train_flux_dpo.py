"""Post-train a ControlNet on preference groups: stage four of DP²O-SR, on FLUX: velocity errors, N = 4 of M = 64.

    python gen_candidates.py --config configs/tiny_flux/quickstart/sample.yaml
    python label_rewards.py --config configs/tiny_flux/quickstart/label.yaml
    accelerate launch train_flux_dpo.py --config configs/tiny_flux/quickstart/train.yaml

configs/flux_dev has the settings of FLUX.1-dev. Run it again and it goes on from its last checkpoint.
"""

import argparse

from dp2osr.config import given_flags, model_flags, parse_args
from dp2osr.errors import run
from dp2osr.training.options import check_given, training_flags


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[model_flags(), training_flags()], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(backbone="flux", top_n=4)
    return parser


def main():
    parser = build_parser()
    args = parse_args(parser)
    check_given(args, given_flags(parser))
    from dp2osr.training.trainer import PreferenceTrainer

    PreferenceTrainer(args).train()


if __name__ == "__main__":
    run(main)
