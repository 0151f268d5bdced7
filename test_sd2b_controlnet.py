"""Super-resolve a folder of images with SD2 and any ControlNet: C-SD2, DP²O-SD2, the tiny preset, or one that you trained.

    python test_sd2b_controlnet.py --pretrained_model_name_or_path preset/models/tiny-sd2 \\
        --controlnet_model_name_or_path preset/models/c-tiny-sd2 --image_path preset/test/lr --upscale 4 --output_dir runs/sr

Run it again and it does what is left: a result is kept if it was made of the same image with the same settings.
"""

import argparse

from dp2osr.config import model_flags, parse_args, restore_flags, sampling_flags
from dp2osr.errors import run


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__,
        parents=[model_flags(), sampling_flags(), restore_flags()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(backbone="sd2")
    return parser


def main():
    args = parse_args(build_parser())
    from dp2osr.sampling.restore import restore_folder

    restore_folder(args)


if __name__ == "__main__":
    run(main)
