"""Score every candidate of a candidate folder with the metrics of a reward config: raw scores to one parquet table."""

import argparse

from dp2osr.config import at_least, parse_args
from dp2osr.errors import run


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates_dir", required=True, help="folder made by gen_candidates.py")
    parser.add_argument("--gt_path", help="folder of GT images, named as the LR images; needed by FR metrics")
    parser.add_argument("--reward_config", default="embedded", help="name in configs/rewards or a YAML file (default: %(default)s)")
    parser.add_argument(
        "--extra_metrics", nargs="+", default=[], metavar="METRIC", help="further pyiqa metrics, outside the reward: psnr ssim ..."
    )
    parser.add_argument("--output", help="score table (default: <candidates_dir>/scores.parquet)")
    parser.add_argument("--batch_size", type=at_least(1), default=8, help="images scored together (default: %(default)s)")
    return parser


def main():
    args = parse_args(build_parser())
    from dp2osr.rewards.label import label_candidates

    label_candidates(args.candidates_dir, args.gt_path, args.reward_config, args.extra_metrics, args.output, args.batch_size)


if __name__ == "__main__":
    run(main)
