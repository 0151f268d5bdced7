"""Where the policy changed the base's images, the same seeds before and after (the paper's Fig. 6 and its fourth open question).

    python scripts/reproduce/fig6.py --candidates base=runs/quickstart/test/base policy=runs/quickstart/test/policy \\
        --gt_path preset/test/gt --output_dir runs/reproduce/fig6

The change of each place is set against the detail of the GT there, the base's spread over seeds and its errors, and against what linear
filters of the base can explain: a policy that does the same everywhere is a filter, one that refines locally is not.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def make_parser():
    from dp2osr.config import at_least, regular_expression

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--candidates", nargs=2, required=True, metavar="NAME=DIR", help="candidate folders of the same images and seeds, the base first")
    add("--gt_path", required=True, help="folder of GT images, named as the LR images")
    add("--output_dir", required=True, help="figure, table and settings go here")
    add("--num_candidates", type=at_least(2), default=8, help="seeds of an image that are compared (default: %(default)s)")
    add("--num_shown", type=at_least(1), default=4, help="images in the figure, evenly over how much they changed (default: %(default)s)")
    add("--bootstrap", type=at_least(1), default=2000, help="resamples for the intervals (default: %(default)s)")
    add(
        "--crop_suffix",
        type=regular_expression,
        default=r"_\d\d$",
        help="of image ids, after the photograph's name (default: %(default)s)",
    )
    return parser


def main():
    from dp2osr.config import parse_args

    args = parse_args(make_parser())
    from dp2osr.evaluation.locality_report import run_locality

    run_locality(args)


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
