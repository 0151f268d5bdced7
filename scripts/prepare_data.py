"""Test sets as they are distributed → data/<set>/{lr,gt}/<id>.png; any folder of HR photographs → a manifest to train from.

    python scripts/prepare_data.py RealSR --source StableSR_testsets/RealSRVal_crop128
    python scripts/prepare_data.py RealLR200 --source RealLR200.zip
    python scripts/prepare_data.py HR --source runs/pairs/gt --min_side 64     # runs/pairs/gt/manifest.csv, of any folder of photographs

Sets: RealSR, DRealSR, DIV2K-Val (StableSR's test sets, or their own releases), RealLR200 (SeeSR's release), RealLQ250 (DreamClear's).
Each gets a manifest.csv with sizes and hashes; --manifest compares it with somebody else's, so that two laboratories know that they
measure on the same files. scripts/make_lr_pairs.py takes a manifest of photographs for --image_path.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dp2osr.cli import Settings, given, parse
from dp2osr.errors import run
from dp2osr.fields import Count, default_is


@dataclass(kw_only=True)
class PrepareSettings(Settings):
    """Which set, from where, to where."""

    name: tyro.conf.Positional[Literal["RealSR", "DRealSR", "DIV2K-Val", "RealLR200", "RealLQ250", "HR"]]
    """The set, or HR for photographs to train from."""
    source: str
    """Folder, or zip or tar archive, as distributed."""
    output_dir: Annotated[str | None, default_is("data")] = None
    """A test set: gets a folder of the set's name."""
    any_count: bool = False
    """A test set: accept another number of images than it has."""
    manifest: str | None = None
    """manifest.csv of the same set made elsewhere, to compare with."""
    min_side: Annotated[Count | None, default_is("512")] = None
    """HR: least side of a photograph, pixels."""
    skip_unreadable: Annotated[bool, default_is("stop")] = False
    """HR: leave out photographs that cannot be read."""


def main():
    from dp2osr.data import test_sets
    from dp2osr.errors import UserError, listed

    args = parse(PrepareSettings, description=__doc__)
    others = ("output_dir", "any_count") if args.name == "HR" else ("min_side", "skip_unreadable")
    for flag in sorted(given(PrepareSettings) & set(others)):
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
    run(main)
