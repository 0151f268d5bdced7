"""Super-resolve a folder of images with SD2 and any ControlNet: C-SD2, DP²O-SD2, the tiny preset, or one that you trained.

    python test_sd2b_controlnet.py --pretrained_model_name_or_path preset/models/tiny-sd2 \\
        --controlnet_model_name_or_path preset/models/c-tiny-sd2 --image_path preset/test/lr --upscale 4 --output_dir runs/sr
"""

import argparse

from dp2osr.config import MODEL_FLAGS, SAMPLING_FLAGS, parse_args
from dp2osr.errors import run


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[MODEL_FLAGS, SAMPLING_FLAGS], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_path", required=True, help="folder of LR images, or one image, of any size")
    parser.add_argument("--output_dir", required=True, help="gets <stem>.png, or <stem>_<sample>.png where several are asked for")
    parser.add_argument("--upscale", type=float, default=1, help="size of the result over size of the input (default: %(default)s)")
    parser.add_argument(
        "--process_size", type=int, help="inputs with a smaller side are enlarged to it first, pixels (default: the model's)"
    )
    parser.add_argument("--sample_times", type=int, default=1, help="samples an image, each from its own seed (default: %(default)s)")
    parser.add_argument("--suffix", default="", help="appended to the stem of every result (default: none)")
    return parser


def main():
    args = parse_args(build_parser())
    from dp2osr.sampling.restore import restore_folder

    restore_folder(args)


if __name__ == "__main__":
    run(main)
