"""Lay out an untrained tiny Stable Diffusion 2 and its ControlNet in diffusers' folder layout around a trained autoencoder."""

from dp2osr.cli import parse
from dp2osr.errors import run
from studies.settings import TinySD2Settings


def main():
    args = parse(TinySD2Settings, description=__doc__)
    from studies.tiny_models import make_new, make_tiny_sd2

    make_new(make_tiny_sd2, args, ("block_out_channels", "conditioning_channels", "text_width"))


if __name__ == "__main__":
    run(main)
