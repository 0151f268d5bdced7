"""Show what training will be taught: winners, losers, spread and pair weights of each group.

    python scripts/inspect_preferences.py --candidates_dir runs/candidates --top_n 6

The folder is that of the examples of gen_candidates.py and label_rewards.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dp2osr.config import DefaultsAndLines, at_least, parse_args
from dp2osr.errors import run


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsAndLines)
    parser.add_argument("--candidates_dir", required=True, help="candidate folder of gen_candidates.py")
    parser.add_argument("--scores", help="table of label_rewards.py; scores.parquet in the candidate folder if not given")
    parser.add_argument("--reward_config", help="name in configs/rewards or a YAML; the one that the scores were made for if not given")
    parser.add_argument("--num_candidates", type=at_least(1), help="M; all that are scored if not given")
    parser.add_argument("--top_n", type=at_least(1), default=8, help="N")
    parser.add_argument("--weighting", default="both", choices=["none", "intra", "inter", "both"], help="hierarchical weights")
    return parser


def main():
    args = parse_args(build_parser())
    from dp2osr.preference.describe import describe_preferences

    print("\n".join(describe_preferences(args)))


if __name__ == "__main__":
    run(main)
