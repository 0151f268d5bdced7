"""Score every candidate of a candidate folder with the metrics of a reward config: raw scores to one parquet table.

    python label_rewards.py --candidates_dir runs/candidates --gt_path preset/train/gt --reward_config embedded

Run it again and it scores what is new, changed or lacks a metric.
"""

import argparse

from dp2osr.config import at_least, parse_args, positive
from dp2osr.errors import run


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates_dir", required=True, help="folder made by gen_candidates.py")
    parser.add_argument("--gt_path", help="folder of GT images, named as the LR images; needed by FR metrics")
    parser.add_argument(
        "--reward_config",
        help="name in configs/rewards or a YAML file (default: default, the four and four of the full-size models; "
        "embedded, for the tiny ones, needs no weights from a network)",
    )
    parser.add_argument(
        "--extra_metrics", nargs="+", default=[], metavar="METRIC", help="further pyiqa metrics, outside the reward: psnr ssim ..."
    )
    parser.add_argument("--output", help="score table (default: <candidates_dir>/scores.parquet)")
    parser.add_argument("--exclude_metrics", nargs="+", default=[], metavar="METRIC", help="metrics of the config to leave out this time")
    parser.add_argument(
        "--metrics_dir",
        help="folder of scripts/fetch_metrics.py with pyiqa's weights (default: DP2OSR_METRICS_DIR, else pyiqa's own places)",
    )
    parser.add_argument("--batch_size", type=at_least(1), default=8, help="images scored together at most (default: %(default)s)")
    parser.add_argument(
        "--memory_limit", type=positive, help="GB a process may take, weights and all; batches shrink to it (default: no limit)"
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="of the metrics' networks; what bf16 does to the first group's ranking is printed (default: %(default)s)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the metrics' networks with torch.compile: minutes at the start, then faster; what it does to the first group's "
        "ranking is printed",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first NaN or infinite score (default: warn and go on)")
    return parser


def main():
    args = parse_args(build_parser())
    from dp2osr.rewards.label import label_candidates

    label_candidates(args)


if __name__ == "__main__":
    run(main)
