"""Explain a reward on the candidates that it scored: which metrics agree, which one drives it, where one alone decides.

    python scripts/inspect_rewards.py --candidates_dir runs/candidates --gt_path preset/train/gt --output_dir runs/reward

Writes rewards.html, one self-contained page, rewards.parquet, a row a candidate with its reward, rank and parts, and correlation.csv,
how much any two metrics agree on the candidates of an image.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dp2osr.config import DefaultsAndLines, at_least, given_flags, parse_args
from dp2osr.errors import run
from dp2osr.flags import refuse_ignored


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsAndLines)
    parser.add_argument("--candidates_dir", required=True, help="candidate folder of gen_candidates.py")
    parser.add_argument("--scores", help="table of label_rewards.py; scores.parquet in the candidate folder if not given")
    parser.add_argument("--reward_config", help="name in configs/rewards or a YAML; the one that the scores were made for if not given")
    parser.add_argument("--gt_path", help="folder of GT images, named as the LR images: shown beside the candidates, and for the maps")
    parser.add_argument("--output_dir", required=True, help="rewards.html, rewards.parquet and correlation.csv go here")
    parser.add_argument("--top_n", type=at_least(1), help="N, candidates that count as winners; a quarter of M if not given")
    parser.add_argument("--max_groups_in_report", type=at_least(0), default=5, help="groups shown, evenly over the spread of their rewards")
    parser.add_argument(
        "--validation_image_path", help="folder of sharp photographs: also check which known distortions each metric orders"
    )
    parser.add_argument("--resolution", type=at_least(8), default=128, help="side of their crops, pixels: that of the candidates")
    parser.add_argument("--num_crops", type=at_least(1), default=20, help="crops of them")
    parser.add_argument("--metrics_dir", help="folder of scripts/fetch_metrics.py with pyiqa's weights")
    return parser


def main():
    parser = build_parser()
    args = parse_args(parser)
    if not args.validation_image_path:
        refuse_ignored(given_flags(parser), ("resolution", "num_crops"), "without --validation_image_path")
    from dp2osr.evaluation.inspect_rewards import run_inspection

    print("\n".join(run_inspection(args)))


if __name__ == "__main__":
    run(main)
