"""Lay out an untrained tiny Stable Diffusion 2 and its ControlNet in diffusers' folder layout around a trained autoencoder."""

from dataclasses import dataclass, field

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, Natural


@dataclass(kw_only=True)
class TinySD2Settings(Settings):
    """Sizes of an untrained tiny SD2."""

    vae: str
    """Folder of a trained AutoencoderKL."""
    manifest: str = "configs/photographs.csv"
    """Its prompts are the tokenizer's corpus."""
    output_dir: str
    """The diffusers folder."""
    block_out_channels: list[Count] = field(default_factory=lambda: [32, 64, 128])
    """UNet channels a level."""
    conditioning_channels: list[Count] = field(default_factory=lambda: [8, 16, 32])
    """Channels of the control embedding."""
    text_width: Count = 64
    """Width of the text encoder."""
    seed: Natural = 0
    """Initial weights."""


def main():
    args = parse(TinySD2Settings, description=__doc__)
    from studies.tiny_models import make_new, make_tiny_sd2

    make_new(make_tiny_sd2, args, ("block_out_channels", "conditioning_channels", "text_width"))


if __name__ == "__main__":
    run(main)
