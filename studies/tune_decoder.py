"""Make an autoencoder's decoder sharp: L1, a perceptual distance and a discriminator of patches, with the encoder as it is.

    python studies/tune_decoder.py --vae preset/models/tiny-flux/vae --train_dir photographs --output_dir runs/decoder --minutes 5

Latents stay what they were, so models trained on them need no training anew. This is how the autoencoder of Stable Diffusion was trained
(Rombach et al. 2022, Sec. 3.1). The perceptual distance is `dp2o_lpips`.
"""

from dataclasses import dataclass

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, Natural, NonNegative, Positive


@dataclass(kw_only=True)
class DecoderSettings(Settings):
    """Training of a decoder."""

    vae: str
    """Folder of a trained AutoencoderKL."""
    train_dir: str
    """Photographs, as scripts/train_controlnet.py takes them."""
    output_dir: str
    """Gets vae/, vae_without_discriminator/ and log.jsonl."""
    minutes: Positive = 5.0
    """Training time; the rate follows a cosine over it."""
    pool_size: Count = 8000
    """Crops that it is trained on."""
    resolution: Count = 128
    """Their side, pixels."""
    train_batch_size: Count = 32
    """Crops a step."""
    learning_rate: NonNegative = 5e-4
    """Peak rate of decoder and discriminator."""
    perceptual_weight: NonNegative = 0.1
    """Weight of the perceptual distance beside L1."""
    texture_weight: NonNegative = 0.2
    """Weight of `dp2o_dists`' distance."""
    discriminator_weight: NonNegative = 0.5
    """Share of the gradient at the last layer that the discriminator gets, beside what the rest has."""
    discriminator_from: NonNegative = 0.4
    """Share of the time without discriminator, at the start."""
    latent_noise: NonNegative = 0.1
    """Largest standard deviation of noise that is added to latents: what the decoder gets are samples."""
    ema_decay: NonNegative = 0.999
    """Of the mean of the weights, which is saved."""
    dataloader_num_workers: Natural = 2
    """Processes that read crops."""
    seed: Natural = 0
    """Decides crops and initial weights."""


def main():
    args = parse(DecoderSettings, description=__doc__)
    from studies.decoder import tune_decoder

    tune_decoder(args)


if __name__ == "__main__":
    run(main)
