"""Train a small AutoencoderKL on photographs (the tiny models' autoencoder; full-size SD2 and FLUX bring their own)."""

from dp2osr.cli import parse
from dp2osr.errors import run
from studies.settings import AutoencoderSettings


def main():
    args = parse(AutoencoderSettings, description=__doc__)
    from studies.autoencoder import check_autoencoder_output, new_autoencoder, train_autoencoder

    check_autoencoder_output(args)
    train_autoencoder(new_autoencoder(args), args)


if __name__ == "__main__":
    run(main)
