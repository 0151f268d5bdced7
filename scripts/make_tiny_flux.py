"""Lay out an untrained tiny FLUX and its ControlNet in diffusers' folder layout around a trained autoencoder."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    from dp2osr.config import at_least
    from dp2osr.config import parse_args as parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--vae", required=True, help="folder of a trained AutoencoderKL")
    parser.add_argument("--manifest", default="configs/photographs.csv", help="its prompts are the tokenizers' corpus")
    parser.add_argument("--output_dir", required=True, help="the diffusers folder")
    parser.add_argument("--width", type=at_least(1), default=192, help="width of the transformer; a multiple of 16 × the number of heads")
    parser.add_argument("--num_attention_heads", type=at_least(1), default=6, help="attention heads")
    parser.add_argument("--num_layers", type=at_least(1), default=4, help="double blocks of the transformer")
    parser.add_argument("--num_single_layers", type=at_least(0), default=4, help="single blocks of the transformer")
    parser.add_argument("--num_double_layers", type=at_least(1), default=2, help="double blocks of the ControlNet")
    parser.add_argument("--text_width", type=at_least(1), default=64, help="width of both text encoders")
    parser.add_argument("--seed", type=at_least(0), default=0, help="initial weights")
    return parse(parser, argv)


def main():
    args = parse_args()
    from dp2osr.backbones.tiny import make_new, make_tiny_flux

    make_new(make_tiny_flux, args, ("width", "num_attention_heads", "num_layers", "num_single_layers", "num_double_layers", "text_width"))


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
