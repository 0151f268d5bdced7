"""Post-train a ControlNet on preference groups: stage four of DP²O-SR, on FLUX: velocity errors, N = 4 of M = 64.

    accelerate launch train_flux_dpo.py --pretrained_model_name_or_path black-forest-labs/FLUX.1-dev \\
        --controlnet_model_name_or_path preset/models/c-flux/model.safetensors --candidates_dir runs/candidates \\
        --reward_config default --output_dir runs/dp2o
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
