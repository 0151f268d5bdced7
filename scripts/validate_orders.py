"""Ask each metric of a reward config for orders that a blur-loving metric gets wrong; see dp2osr/rewards/orders.py.

    python scripts/validate_orders.py embedded --gt_path preset/test/gt --sr_path runs/sr

Prints a Markdown table: the share of the crops that a metric puts in the order.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def parse_args(argv=None):
    from dp2osr.config import DefaultsAndLines
    from dp2osr.config import parse_args as parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsAndLines)
    parser.add_argument("reward_config", metavar="CONFIG", help="name in configs/rewards or a YAML file")
    parser.add_argument("--gt_path", default=str(ROOT / "preset" / "test" / "gt"), help="folder of GT crops of held-out photographs")
    parser.add_argument("--sr_path", help="a model's samples of them, of the same names; without it the orders of samples are left out")
    parser.add_argument("--extra_metrics", nargs="+", default=[], metavar="NAME", help="metrics beside the reward's")
    parser.add_argument("--output", help="also write the numbers to this JSON file")
    return parse(parser, argv)


def main():
    args = parse_args()
    from dp2osr.files import check_output, write_json
    from dp2osr.results import check_own_files, own_files
    from dp2osr.rewards.config import MetricSpec, load_reward_config
    from dp2osr.rewards.orders import format_orders, orders_of_config

    output = Path(args.output) if args.output else None
    if output:
        check_output(output, "--output", is_file=True)
        check_own_files(output.parent, [output.name], "--output")
    config, extra = load_reward_config(args.reward_config), [MetricSpec(name) for name in args.extra_metrics]
    results = orders_of_config(config, args.gt_path, args.sr_path, extra)
    print(format_orders(results))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        with own_files(output.parent, [output.name], "--output"):
            write_json(output, results)


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
