"""Compare candidate stores by reward and by metric: tables, Best/Mean/Worst curves and a self-contained report.html."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def make_parser():
    from dp2osr.config import at_least

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--candidates",
        nargs="+",
        required=True,
        metavar="NAME=DIR",
        help="candidate folders with scores.parquet; the first is the reference of all comparisons",
    )
    parser.add_argument("--gt_path", required=True, help="folder of GT images, named as the LR images")
    parser.add_argument(
        "--reward_config", default="embedded", metavar="NAME_OR_YAML", help="reward: a name in configs/rewards or a YAML file"
    )
    parser.add_argument("--output_dir", required=True, help="metrics.csv, summary.json, summary.md, curves.png and report.html go here")
    parser.add_argument("--training_log", nargs="+", help="train_log.jsonl of the policy's training, or one a round, for its curves")
    parser.add_argument(
        "--num_candidates", type=at_least(2), help="use the first M candidates of each image (default: the smallest M among the methods)"
    )
    parser.add_argument("--bootstrap", type=at_least(1), default=2000, help="resamples for the intervals over photographs")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument(
        "--crop_suffix",
        default=r"_\d\d$",
        help="regular expression of what an image id has beyond its photograph's name; '' if every image is a photograph",
    )
    parser.add_argument("--max_images_in_report", type=at_least(0), default=12, help="images shown, evenly over the gains")
    parser.add_argument("--no_bicubic", action="store_true", help="leave out bicubic, whose metrics are computed here")
    return parser


def main():
    from dp2osr.config import parse_args

    args = parse_args(make_parser())
    from dp2osr.evaluation.run import run_evaluation

    run_evaluation(args)


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
