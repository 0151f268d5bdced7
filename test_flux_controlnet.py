"""Super-resolve a folder of images with FLUX and any ControlNet: C-FLUX, DP²O-FLUX, or one that you trained.

    python test_flux_controlnet.py --pretrained_model_name_or_path preset/models/tiny-flux \\
        --controlnet_model_name_or_path preset/models/c-tiny-flux --image_path preset/test/lr --upscale 4 --output_dir runs/sr_flux

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
    parser.add_argument("--num_double_layers", type=int, help="double blocks that the ControlNet must have (default: those of its file)")
    parser.add_argument("--num_single_layers", type=int, help="single blocks that the ControlNet must have (default: those of its file)")
    parser.set_defaults(backbone="flux")
    return parser


def main():
    args = parse_args(build_parser())
    from dp2osr.sampling.restore import restore_folder

    restore_folder(args)


if __name__ == "__main__":
    run(main)
