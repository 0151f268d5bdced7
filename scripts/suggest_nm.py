"""Propose M and N for a model before its training: a few steps for each, judged by photographs that they did not visit.

    python scripts/suggest_nm.py --config configs/reproduce/tiny/sd2/train.yaml --candidates_dir runs/candidates \\
        --output_dir runs/suggest_nm

Takes the flags of training. Candidates of the base must be sampled and scored, for a part of the planned images, with the largest M
that is thought of; nothing is sampled or scored here. One line for each M and N: the gap of winners and losers and the first-order
gain, Cov(r̂, R), both in σ of the reward. The gain orders settings and does not foretell G. A stopped run goes on.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dp2osr.config import at_least, model_flags, parse_args, positive, regular_expression
from dp2osr.errors import run
from dp2osr.training.options import training_flags


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[model_flags(), training_flags()], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("probe").add_argument
    add("--sizes", type=at_least(2), nargs="+", help="M that are tried (default: powers of two from 4 to all that are scored)")
    add("--tops", type=at_least(1), nargs="+", help="N that are tried (default: powers of two up to M/2)")
    add("--probe_steps", type=at_least(1), default=20, help="optimizer steps for each (default: %(default)s)")
    add("--probe_visits", type=at_least(2), default=32, help="candidates a step, for every N (default: %(default)s)")
    add("--held_out_share", type=positive, default=0.25, help="of the photographs (default: %(default)s)")
    add("--held_out_groups", type=at_least(2), default=24, help="held-out groups that judge (default: %(default)s)")
    add("--held_out_candidates", type=at_least(2), default=16, help="candidates of each (default: %(default)s)")
    add("--held_out_timesteps", type=at_least(1), default=4, help="timesteps for each (default: %(default)s)")
    add(
        "--crop_suffix",
        type=regular_expression,
        default=r"_\d\d$",
        help="of image ids, after the photograph's name (default: %(default)s)",
    )
    parser.set_defaults(report_to="none")
    return parser


def main():
    args = parse_args(build_parser())
    from dp2osr.training.probe import run_probe

    run_probe(args)


if __name__ == "__main__":
    run(main)
