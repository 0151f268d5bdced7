"""Make LR/GT pairs of a folder of HR images: `<output_dir>/gt/*.png` and `<output_dir>/lr/*.png`, paired by name.

    python scripts/make_lr_pairs.py --image_path preset/test/gt --output_dir runs/pairs --crop_size 64 --crops_per_image 2

Run the same command again after an interruption: it does what is left.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def build_parser():
    from dp2osr.config import DefaultsAndLines, at_least, input_flags

    parser = argparse.ArgumentParser(description=__doc__, parents=[input_flags()], formatter_class=DefaultsAndLines)
    parser.add_argument("--image_path", required=True, help="folder of HR images, any size and number")
    parser.add_argument("--output_dir", required=True, help="gets gt/, lr/ and settings.json")
    parser.add_argument("--degradation", default="resshift", help="a name in configs/degradation or a YAML file")
    parser.add_argument("--crop_size", type=int, default=0, help="side of a GT crop, pixels; 0 = whole images, cut to the scale's multiple")
    parser.add_argument("--crops_per_image", type=int, default=1, help="crops an image, named <stem>_00, <stem>_01 ...")
    parser.add_argument("--min_detail", type=at_least(0, float), default=0.0, help="least RMS gradient of a crop, grey levels a pixel")
    parser.add_argument("--seed", type=at_least(0), default=0, help="with an image's name it decides its crops and its degradation")
    parser.add_argument("--num_workers", type=int, default=1, help="processes; the pairs are the same for any number")
    return parser


def main():
    from dp2osr.config import parse_args

    args = parse_args(build_parser())
    from dp2osr.data.degradation import load_degradation
    from dp2osr.data.lr_pairs import PairSettings, make_pairs, report_line

    settings = PairSettings(load_degradation(args.degradation), args.crop_size, args.crops_per_image, args.min_detail, args.seed)
    report = make_pairs(args.image_path, args.output_dir, settings, args.num_workers, args.recursive, args.skip_unreadable, args.adopt)
    print(report_line(args.output_dir, report))


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
