"""Train a baseline ControlNet on degraded photographs: C-SD2 by the paper's recipe, or the tiny preset with its backbone."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dp2osr.config import at_least, finite, given_flags, model_flags, parse_args, share, timestep_flags
from dp2osr.errors import run
from dp2osr.training.options import SCHEDULES, check_baseline_given


def build_parser():
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, parents=[model_flags(), timestep_flags()], formatter_class=formatter)
    add = parser.add_argument
    add("--controlnet_model_name_or_path", help="start from this ControlNet instead of a copy of the UNet's encoder")
    add("--train_dir", required=True, help="folder of HR photographs")
    add("--output_dir", required=True, help="state, log, controlnet/ and, with --train_backbone, model/")
    add("--degradation", default="resshift", help="name in configs/degradation or a YAML")
    add("--prompt_file", help="JSON {photograph's stem: tags}")
    add("--resolution", type=at_least(1), default=512, help="side of a degraded GT crop, pixels")
    add(
        "--window",
        type=at_least(1),
        default=64,
        help="side of a training window in latent pixels; resolution / VAE scale takes whole crops",
    )
    add("--full_window_share", type=share, default=1.0, help="share of the steps, at the end, that train on whole crops")
    add("--pool_size", type=at_least(1), default=100_000, help="pairs degraded and encoded before training, on each process")
    add(
        "--train_batch_size",
        type=at_least(1),
        default=8,
        help="windows a step on each process; fewer when whole crops are trained, the same pixels",
    )
    add("--gradient_accumulation_steps", type=at_least(1), default=1, help="micro-batches a step")
    add("--max_train_steps", type=at_least(1), default=35_000, help="optimizer steps")
    add("--learning_rate", type=at_least(0, float), default=2e-4, help="peak rate")
    add("--lr_scheduler", default="constant_with_warmup", choices=SCHEDULES, help="schedule of the rate")
    add("--lr_warmup_steps", type=at_least(0), default=500, help="warm-up, steps")
    add("--weight_decay", type=at_least(0, float), default=1e-2, help="AdamW weight decay")
    add("--max_grad_norm", type=at_least(0, float), default=1.0, help="gradient clipping")
    add("--train_backbone", action="store_true", help="train the UNet and the text encoder too (tiny models)")
    add(
        "--conditioning_channels",
        type=at_least(1),
        nargs="+",
        help="SD2: channels of the control embedding, one number more than the autoencoder halves an image's side "
        "(default: the published 16 32 96 256, as many as that takes)",
    )
    add("--num_double_layers", type=at_least(0), default=4, help="FLUX: double blocks of the ControlNet")
    add("--num_single_layers", type=at_least(0), default=0, help="FLUX: single blocks of the ControlNet")
    add(
        "--image_weight", type=share, default=0.0, help="share of the error that is weighed as the decoded image feels it; 0: plain latents"
    )
    add(
        "--guidance_range",
        type=finite,
        nargs=2,
        default=[1.0, 1.0],
        metavar=("LOW", "HIGH"),
        help="FLUX: the guidance that the network is told, drawn anew in every step",
    )
    add("--drop_share", type=share, default=0.1, help="share of windows trained with an empty prompt")
    add("--negative_share", type=share, default=0.0, help="share of windows that learn the degraded image under the negative prompt")
    add("--negative_prompt", default="dotted, noise, blur, lowres, smooth", help="the prompt of those windows")
    add("--save_fp16", action="store_true", help="store weights in fp16")
    add("--checkpointing_steps", type=at_least(1), default=500, help="steps between checkpoints")
    return parser


def main():
    parser = build_parser()
    args = parse_args(parser)
    check_baseline_given(args, given_flags(parser))
    from dp2osr.training.baseline import train_baseline

    train_baseline(args)


if __name__ == "__main__":
    run(main)
