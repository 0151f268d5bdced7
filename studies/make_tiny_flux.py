"""Lay out an untrained tiny FLUX and its ControlNet in diffusers' folder layout around a trained autoencoder."""

from dataclasses import dataclass

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, Natural


@dataclass(kw_only=True)
class TinyFluxSettings(Settings):
    """Sizes of an untrained tiny FLUX."""

    vae: str
    """Folder of a trained AutoencoderKL."""
    manifest: str = "configs/photographs.csv"
    """Its prompts are the tokenizers' corpus."""
    output_dir: str
    """The diffusers folder."""
    width: Count = 192
    """Width of the transformer; a multiple of 16 × the number of heads."""
    num_attention_heads: Count = 6
    """Attention heads."""
    num_layers: Count = 4
    """Double blocks of the transformer."""
    num_single_layers: Natural = 4
    """Single blocks of the transformer."""
    num_double_layers: Count = 2
    """Double blocks of the ControlNet."""
    text_width: Count = 64
    """Width of both text encoders."""
    seed: Natural = 0
    """Initial weights."""


def main():
    args = parse(TinyFluxSettings, description=__doc__)
    from studies.tiny_models import make_new, make_tiny_flux

    make_new(make_tiny_flux, args, ("width", "num_attention_heads", "num_layers", "num_single_layers", "num_double_layers", "text_width"))


if __name__ == "__main__":
    run(main)
