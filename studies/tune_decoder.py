"""Make an autoencoder's decoder sharp: L1, a perceptual distance and a discriminator of patches, with the encoder as it is.

    python studies/tune_decoder.py --vae preset/models/tiny-flux/vae --train_dir photographs --output_dir runs/decoder --minutes 5

Latents stay what they were, so models trained on them need no training anew. This is how the autoencoder of Stable Diffusion was trained
(Rombach et al. 2022, Sec. 3.1). The perceptual distance is `dp2o_lpips`.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from studies.settings import DecoderSettings


def main():
    args = parse(DecoderSettings, description=__doc__)
    from studies.decoder import tune_decoder

    tune_decoder(args)


if __name__ == "__main__":
    run(main)
