"""Train a small AutoencoderKL on photographs (the tiny models' autoencoder; full-size SD2 and FLUX bring their own)."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    from dp2osr.config import at_least
    from dp2osr.config import parse_args as parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--train_dir", required=True, help="folder of training photographs")
    parser.add_argument("--val_dir", required=True, help="folder of held-out photographs")
    parser.add_argument("--output_dir", required=True, help="checkpoint, log and final vae/ folder")
    parser.add_argument(
        "--block_out_channels",
        type=at_least(1),
        nargs="+",
        default=[16, 32, 64],
        help="channels a level; each level but the last halves the side",
    )
    parser.add_argument("--latent_channels", type=at_least(1), default=4, help="latent channels")
    parser.add_argument("--resolution", type=at_least(1), default=64, help="side of a training crop, pixels")
    parser.add_argument("--train_batch_size", type=at_least(1), default=8, help="crops a step")
    parser.add_argument("--max_train_steps", type=at_least(1), default=1800, help="optimizer steps")
    parser.add_argument("--learning_rate", type=at_least(0, float), default=7e-4, help="peak rate; cosine to zero")
    parser.add_argument("--lr_warmup_steps", type=at_least(1), default=200, help="linear warm-up, steps")
    parser.add_argument("--chroma_weight", type=at_least(0, float), default=1.0, help="weight of the L1 in Cb, Cr")
    parser.add_argument("--kl_weight", type=at_least(0, float), default=1e-6, help="weight of the mean KL")
    parser.add_argument("--checkpointing_steps", type=at_least(1), default=200, help="steps between checkpoints and held-out scores")
    parser.add_argument("--seed", type=at_least(0), default=0, help="decides initial weights, crops and noise")
    return parse(parser, argv)


def main():
    args = parse_args()
    from dp2osr.training.autoencoder import check_autoencoder_output, new_autoencoder, train_autoencoder

    check_autoencoder_output(args)
    train_autoencoder(new_autoencoder(args), args)


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
