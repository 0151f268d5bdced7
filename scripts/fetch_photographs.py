"""Fetch the photographs of a manifest into OUTPUT/{train,pref,val,test}/STEM.png, their tags in OUTPUT/prompts.json."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", default="configs/photographs.csv", help="CSV, one row a photograph (default: %(default)s)")
    parser.add_argument("--output_dir", default="runs/photographs", help="where the split folders go (default: %(default)s)")
    parser.add_argument("--work_dir", default="runs/packages", help="where packages are unpacked (default: %(default)s)")
    parser.add_argument("--find_duplicates", action="store_true", help="name photographs of two splits that may be one picture")
    return parser


def main():
    from dp2osr.config import parse_args

    args = parse_args(build_parser())
    from functools import partial

    from tqdm import tqdm

    from dp2osr.data.photographs import fetch_photographs, near_duplicates, read_manifest
    from dp2osr.files import check_output

    check_output(args.output_dir)
    check_output(args.work_dir, "--work_dir")
    rows = read_manifest(args.manifest)
    written, kept = fetch_photographs(rows, args.output_dir, args.work_dir, progress=partial(tqdm, unit="photo"))
    print(f"{args.output_dir}: {written} photographs written, {kept} were there already")
    if args.find_duplicates:
        paths = [Path(args.output_dir) / row["split"] / f"{row['stem']}.png" for row in rows]
        across = [pair for pair in near_duplicates(paths) if pair[0].parent != pair[1].parent]
        for first, second, correlation, bits in across:
            print(f"may be one picture: {first} and {second} (correlation {correlation:.2f}, {bits} of 256 bits differ)")
        print(f"{len(across)} pairs of photographs of two splits that may be one picture")


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
