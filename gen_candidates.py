"""Sample M candidates per LR image from a reference model: stage one of DP²O-SR.

    python gen_candidates.py --pretrained_model_name_or_path preset/models/tiny-sd2 \\
        --controlnet_model_name_or_path preset/models/c-tiny-sd2 --image_path preset/train/lr --max_images 84 --num_candidates 16 \\
        --output_dir runs/candidates

Run it again and it does what is left: a group is kept if it was made of the same image with the same settings. With a larger
--num_candidates the groups that are there get the candidates that they lack.
"""

import argparse

from dp2osr.config import at_least, input_flags, model_flags, parse_args, positive, sampling_flags
from dp2osr.errors import run


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[model_flags(), sampling_flags(), input_flags()], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_path", required=True, help="folder of LR images (or one image)")
    parser.add_argument("--output_dir", required=True, help="the candidate folder; run again to go on where it stopped")
    parser.add_argument("--num_candidates", type=at_least(1), default=32, help="M, candidates an LR image (default: %(default)s)")
    parser.add_argument(
        "--max_images", type=at_least(1), help="take only this many images, evenly spaced over their sorted names (default: all)"
    )
    parser.add_argument(
        "--images_offset",
        type=at_least(0),
        default=0,
        help="with --max_images: take the images this many places later (default: %(default)s)",
    )
    parser.add_argument("--upscale", type=positive, default=4, help="size of the result over size of the LR image (default: %(default)s)")
    parser.add_argument("--save_images", choices=["all", "none"], default="none", help="PNGs beside the latents (default: %(default)s)")
    return parser


def main():
    args = parse_args(build_parser())
    from dp2osr.sampling.sampler import generate_candidates

    generate_candidates(args)


if __name__ == "__main__":
    run(main)
