"""Check that each metric of a reward config orders blur, noise, JPEG and down-sampling of held-out photographs.

    python scripts/validate_reward.py embedded

Exit code 0: every metric does; 1: one or more do not, and are named.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def parse_args(argv=None):
    from dp2osr.config import DefaultsAndLines, at_least
    from dp2osr.config import parse_args as parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsAndLines)
    parser.add_argument("reward_config", metavar="CONFIG", help="name in configs/rewards or a YAML file")
    parser.add_argument("--image_path", default=str(ROOT / "preset" / "test" / "gt"), help="folder of held-out photographs, undistorted")
    parser.add_argument(
        "--resolution", type=at_least(8), default=128, help="side of a crop, pixels: that of the images the reward will score"
    )
    parser.add_argument("--num_crops", type=at_least(1), default=40, help="crops, spread over the photographs")
    parser.add_argument("--output", help="also write the numbers to this JSON file")
    return parse(parser, argv)


def main():
    args = parse_args()
    from dataclasses import asdict

    from dp2osr.errors import UserError
    from dp2osr.files import check_output, write_json
    from dp2osr.results import check_own_files, own_files
    from dp2osr.rewards.config import load_reward_config
    from dp2osr.rewards.ordering import format_table, validate_config

    output = Path(args.output) if args.output else None
    if output:
        check_output(output, "--output", is_file=True)
        check_own_files(output.parent, [output.name], "--output")
    if not Path(args.image_path).exists():
        wanted = f"a folder of sharp photographs of at least {args.resolution} pixels a side"
        raise UserError(f"{args.image_path}: not there; pass --image_path, {wanted}")
    results = validate_config(load_reward_config(args.reward_config), args.image_path, args.resolution, args.num_crops)
    print(format_table(results))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        with own_files(output.parent, [output.name], "--output"):
            write_json(output, {name: asdict(result) for name, result in results.items()})
    sys.exit(1 if any(result.failures for result in results.values()) else 0)


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
