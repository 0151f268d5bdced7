"""One picture of many: LR, bicubic, candidate 0 of each candidate folder, GT, a row an image.

    python scripts/contact_sheet.py --candidates base=runs/candidates --gt_path preset/train/gt --output runs/sheet.png

The folder is that of the example of gen_candidates.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dp2osr.config import DefaultsAndLines, at_least, parse_args
from dp2osr.errors import UserError, run


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsAndLines)
    parser.add_argument("--candidates", nargs="+", required=True, help="title=FOLDER, of gen_candidates.py")
    parser.add_argument("--gt_path", required=True, help="GT images, by name")
    parser.add_argument("--output", required=True, help="the PNG")
    parser.add_argument("--columns", type=at_least(1), default=2, help="images side by side")
    parser.add_argument("--zoom", type=at_least(1), default=1, help="enlargement, nearest neighbour")
    return parser


def main():
    args = parse_args(build_parser())
    if not all("=" in word for word in args.candidates):
        raise UserError("--candidates: each must be title=FOLDER")
    from dp2osr.data.contact_sheet import contact_sheet

    contact_sheet(dict(word.split("=", 1) for word in args.candidates), args.gt_path, args.output, args.columns, args.zoom)


if __name__ == "__main__":
    run(main)
