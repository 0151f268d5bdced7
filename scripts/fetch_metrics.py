"""Fetch the weights of a reward config's metrics into one folder, or check what is there; label_rewards.py --metrics_dir reads it.

Run it where there is a network and copy the folder. Every file's SHA-256 is kept in manifest.json and compared when the folder is used.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dp2osr.config import parse_args
from dp2osr.errors import run


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--reward_config", default="default", help="name in configs/rewards or a YAML file")
    parser.add_argument("--extra_metrics", nargs="+", default=[], metavar="METRIC", help="further pyiqa metrics")
    parser.add_argument("--exclude_metrics", nargs="+", default=[], metavar="METRIC", help="metrics of the config to leave out")
    parser.add_argument("--fid", action="store_true", help="Inception's weights too, for scripts/evaluate.py --fid")
    parser.add_argument("--metrics_dir", required=True, help="folder to fill; files that are there are not fetched again")
    return parser


def main():
    args = parse_args(build_parser())
    from dp2osr.files import check_output
    from dp2osr.rewards.config import MetricSpec, load_reward_config
    from dp2osr.rewards.label import chosen_metrics
    from dp2osr.rewards.fetch import fetch_weights

    check_output(args.metrics_dir, "--metrics_dir")
    specs = chosen_metrics(load_reward_config(args.reward_config), args.extra_metrics, args.exclude_metrics)
    specs += [MetricSpec("fid")] if args.fid else []
    print("\n".join(fetch_weights(specs, args.metrics_dir)))


if __name__ == "__main__":
    run(main)
