"""Train a small AutoencoderKL on photographs (the tiny models' autoencoder; full-size SD2 and FLUX bring their own)."""

from dataclasses import dataclass, field

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, Natural, NonNegative


@dataclass(kw_only=True)
class AutoencoderSettings(Settings):
    """Training of a small autoencoder."""

    train_dir: str
    """Folder of training photographs."""
    val_dir: str
    """Folder of held-out photographs."""
    output_dir: str
    """Checkpoint, log and final vae/ folder."""
    block_out_channels: list[Count] = field(default_factory=lambda: [16, 32, 64])
    """Channels a level; each level but the last halves the side."""
    latent_channels: Count = 4
    """Latent channels."""
    resolution: Count = 64
    """Side of a training crop, pixels."""
    train_batch_size: Count = 8
    """Crops a step."""
    max_train_steps: Count = 1800
    """Optimizer steps."""
    learning_rate: NonNegative = 0.0007
    """Peak rate; cosine to zero."""
    lr_warmup_steps: Count = 200
    """Linear warm-up, steps."""
    chroma_weight: NonNegative = 1.0
    """Weight of the L1 in Cb, Cr."""
    kl_weight: NonNegative = 1e-06
    """Weight of the mean KL."""
    checkpointing_steps: Count = 200
    """Steps between checkpoints and held-out scores."""
    seed: Natural = 0
    """Decides initial weights, crops and noise."""


def main():
    args = parse(AutoencoderSettings, description=__doc__)
    from studies.autoencoder import check_autoencoder_output, new_autoencoder, train_autoencoder

    check_autoencoder_output(args)
    train_autoencoder(new_autoencoder(args), args)


if __name__ == "__main__":
    run(main)
