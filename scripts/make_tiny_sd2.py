"""Lay out an untrained tiny Stable Diffusion 2 and its ControlNet in diffusers' folder layout around a trained autoencoder."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    from dp2osr.config import at_least
    from dp2osr.config import parse_args as parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--vae", required=True, help="folder of a trained AutoencoderKL")
    parser.add_argument("--manifest", default="configs/photographs.csv", help="its prompts are the tokenizer's corpus")
    parser.add_argument("--output_dir", required=True, help="the diffusers folder")
    parser.add_argument("--block_out_channels", type=at_least(1), nargs="+", default=[32, 64, 128], help="UNet channels a level")
    parser.add_argument(
        "--conditioning_channels", type=at_least(1), nargs="+", default=[8, 16, 32], help="channels of the control embedding"
    )
    parser.add_argument("--text_width", type=at_least(1), default=64, help="width of the text encoder")
    parser.add_argument("--seed", type=at_least(0), default=0, help="initial weights")
    return parse(parser, argv)


def main():
    args = parse_args()
    from dp2osr.backbones.tiny import make_new, make_tiny_sd2

    make_new(make_tiny_sd2, args, ("block_out_channels", "conditioning_channels", "text_width"))


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
