"""Fetch the photographs of a manifest into OUTPUT/{train,pref,val,test}/STEM.png, their tags in OUTPUT/prompts.json."""

from dataclasses import dataclass
from pathlib import Path

from dp2osr.cli import Settings, parse
from dp2osr.errors import run


@dataclass(kw_only=True)
class FetchSettings(Settings):
    """Which photographs are fetched, and to where."""

    manifest: str = "configs/photographs.csv"
    """CSV, one row a photograph."""
    output_dir: str = "runs/photographs"
    """Where the split folders go."""
    work_dir: str = "runs/packages"
    """Where packages are unpacked."""
    find_duplicates: bool = False
    """Name photographs of two splits that may be one picture."""


def main():
    args = parse(FetchSettings, description=__doc__)
    from functools import partial

    from tqdm import tqdm

    from dp2osr.data.photographs import fetch_photographs, near_duplicates, read_manifest
    from dp2osr.outputs import check_output

    check_output(args.output_dir)
    check_output(args.work_dir, "--work_dir")
    rows = read_manifest(args.manifest)
    written, kept = fetch_photographs(rows, args.output_dir, args.work_dir, progress=partial(tqdm, unit="photo"))
    print(f"{args.output_dir}: {written} photographs written, {kept} already there")
    if args.find_duplicates:
        paths = [Path(args.output_dir) / row["split"] / f"{row['stem']}.png" for row in rows]
        across = [pair for pair in near_duplicates(paths) if pair[0].parent != pair[1].parent]
        for first, second, correlation, bits in across:
            print(f"may be one picture: {first} and {second} (correlation {correlation:.2f}, {bits} of 256 bits differ)")
        print(f"{len(across)} pairs of photographs of two splits that may be one picture")


if __name__ == "__main__":
    run(main)
