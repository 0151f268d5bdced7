"""Lay out an untrained tiny FLUX and its ControlNet in diffusers' folder layout around a trained autoencoder."""

from dp2osr.cli import parse
from dp2osr.errors import run
from studies.settings import TinyFluxSettings


def main():
    args = parse(TinyFluxSettings, description=__doc__)
    from studies.tiny_models import make_new, make_tiny_flux

    make_new(make_tiny_flux, args, ("width", "num_attention_heads", "num_layers", "num_single_layers", "num_double_layers", "text_width"))


if __name__ == "__main__":
    run(main)
