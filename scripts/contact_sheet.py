"""One picture of many: LR, bicubic, candidate 0 of each candidate folder, GT, a row an image.

    python scripts/contact_sheet.py --candidates base=runs/candidates --gt_path preset/train/gt --output runs/sheet.png

The folder is that of the example of gen_candidates.py.
"""

from dataclasses import dataclass

from dp2osr.cli import Settings, named_folders, parse
from dp2osr.errors import run
from dp2osr.fields import Count


@dataclass(kw_only=True)
class SheetSettings(Settings):
    """What a sheet shows."""

    candidates: list[str]
    """Title=FOLDER, of gen_candidates.py."""
    gt_path: str
    """GT images, by name."""
    output: str
    """The PNG."""
    columns: Count = 2
    """Images side by side."""
    zoom: Count = 1
    """Enlargement, nearest neighbour."""


def main():
    args = parse(SheetSettings, description=__doc__)
    folders = named_folders(args.candidates, "--candidates", "base=runs/candidates")
    from dp2osr.sampling.candidate_sheet import contact_sheet

    contact_sheet(folders, args.gt_path, args.output, args.columns, args.zoom)


if __name__ == "__main__":
    run(main)
