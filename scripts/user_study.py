"""A blind user study on one page, and its votes as percentages.

    python scripts/user_study.py make --images SD2=runs/sr FLUX=runs/sr_flux --lr_path preset/test/lr --output runs/study/page.html
    python scripts/user_study.py count --key runs/study/page.key.json votes-*.json     # the files that participants send

The page shows an LR image beside the methods' results, in random order and without names, and gives each participant's votes as a file. It
needs no server. Keep the key: it alone tells which result is whose.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def make_parser():
    from dp2osr.config import at_least

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write the page and its key")
    make.add_argument(
        "--images", nargs="+", required=True, metavar="NAME=DIR", help="two to nine methods' SR images, named as the LR images"
    )
    make.add_argument("--lr_path", required=True, help="folder of the LR images")
    make.add_argument("--output", required=True, help="the page, .html; its key is written beside it")
    make.add_argument("--num_images", type=at_least(1), help="images shown, drawn at random (default: all)")
    make.add_argument("--seed", type=int, default=0, help="of that draw (default: %(default)s)")
    make.add_argument("--question", default="Which is the best restoration of the input?", help="(default: %(default)s)")
    count = commands.add_parser("count", help="percentages with 95 %% intervals")
    count.add_argument("votes", nargs="+", metavar="VOTES.json", help="files that participants downloaded")
    count.add_argument("--key", required=True, help="the page's .key.json")
    count.add_argument("--bootstrap", type=at_least(1), default=2000, help="resamples for the intervals (default: %(default)s)")
    return parser


def main():
    from dp2osr.config import parse_args

    args = parse_args(make_parser())
    from dp2osr.evaluation import user_study
    from dp2osr.evaluation.image_folders import parse_folders

    if args.command == "make":
        user_study.make_study(parse_folders(args.images), args.lr_path, args.output, args.num_images, args.seed, args.question)
        print(f"{args.output}: open it in a browser, or send it; {Path(args.output).with_suffix('.key.json')}: keep it")
    else:
        methods, everyone = user_study.read_votes(args.votes, args.key)
        print(user_study.votes_table(methods, everyone, args.bootstrap))


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
