"""Test sets as they are distributed → data/<set>/{lr,gt}/<id>.png; any folder of HR photographs → a manifest to train from.

    python scripts/prepare_data.py RealSR --source StableSR_testsets/RealSRVal_crop128
    python scripts/prepare_data.py RealLR200 --source RealLR200.zip
    python scripts/prepare_data.py HR --source runs/pairs/gt --min_side 64     # runs/pairs/gt/manifest.csv, of any folder of photographs

Each set gets a manifest.csv with sizes and hashes; --manifest compares it with somebody else's, so that two laboratories know that they
measure on the same files. scripts/make_lr_pairs.py takes a manifest of photographs for --image_path.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def make_parser():
    from dp2osr.config import at_least
    from dp2osr.data.test_sets import TEST_SETS

    sets = "\n".join(f"  {name}: {entry.count} images, from {entry.origin}" for name, entry in TEST_SETS.items())
    parser = argparse.ArgumentParser(description=f"{__doc__}\n{sets}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*TEST_SETS, "HR"], help="the set, or HR for photographs to train from")
    parser.add_argument("--source", required=True, help="folder, or zip or tar archive, as distributed")
    parser.add_argument("--output_dir", help="a test set: gets a folder of the set's name (default: data)")
    parser.add_argument("--any_count", action="store_true", help="a test set: accept another number of images than it has")
    parser.add_argument("--manifest", help="manifest.csv of the same set made elsewhere, to compare with")
    parser.add_argument("--min_side", type=at_least(1), help="HR: least side of a photograph, pixels (default: 512)")
    parser.add_argument("--skip_unreadable", action="store_true", help="HR: leave out photographs that cannot be read (default: stop)")
    return parser


def main():
    from dp2osr.config import given_flags, parse_args
    from dp2osr.data import test_sets
    from dp2osr.errors import UserError, listed

    parser = make_parser()
    args = parse_args(parser)
    others = ("output_dir", "any_count") if args.name == "HR" else ("min_side", "skip_unreadable")
    for flag in sorted(given_flags(parser) & set(others)):
        raise UserError(
            f"--{flag}: is not of {args.name} ({'it writes manifest.csv into --source' if args.name == 'HR' else 'only of HR'})"
        )
    left_out = {}
    if args.name == "HR":
        folder = Path(args.source)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of photographs")
        count, left_out = test_sets.write_manifest(folder, args.min_side or 512, args.skip_unreadable)
    else:
        folder = Path(args.output_dir or "data") / args.name
        count = test_sets.prepare(args.name, args.source, folder.parent, args.any_count)
    if args.manifest:
        test_sets.check_manifest(folder, args.manifest)
    same = f", the same as in {args.manifest}" if args.manifest else ""
    names = listed([f"{path.name} ({why})" for path, why in left_out.items()], 40)
    print(f"{folder}: {count} images, listed in manifest.csv{same}" + (f"; {len(left_out)} left out: {names}" if left_out else ""))


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
