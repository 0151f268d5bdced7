"""Check that each metric of a reward config orders blur, noise, JPEG and down-sampling of held-out photographs.

    python scripts/validate_reward.py embedded

Exit code 0: every metric does; 1: one or more do not, and are named.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, at_least, metavar
from dp2osr.places import ROOT


@dataclass(kw_only=True)
class ValidateSettings(Settings):
    """Which reward is checked, on which photographs."""

    reward_config: tyro.conf.Positional[Annotated[str, metavar("CONFIG")]]
    """Name in configs/rewards or a YAML file."""
    image_path: str = str(ROOT / "preset" / "test" / "gt")
    """Folder of held-out photographs, undistorted."""
    resolution: Annotated[int, at_least(8)] = 128
    """Side of a crop, pixels: that of the images the reward will score."""
    num_crops: Count = 40
    """Crops, spread over the photographs."""
    output: str | None = None
    """Also write the numbers to this JSON file."""


def main():
    args = parse(ValidateSettings, description=__doc__)
    from dataclasses import asdict

    from dp2osr.errors import UserError
    from dp2osr.files import write_json
    from dp2osr.outputs import check_output
    from dp2osr.results import check_own_files, own_files
    from dp2osr.rewards.config import load_reward_config
    from dp2osr.rewards.ordering import format_table, validate_config

    output = Path(args.output) if args.output else None
    if output:
        check_output(output, "--output", is_file=True)
        check_own_files(output.parent, [output.name], "--output")
    if not Path(args.image_path).exists():
        wanted = f"a folder of sharp photographs of at least {args.resolution} pixels a side"
        raise UserError(f"{args.image_path}: not there; pass --image_path, {wanted}")
    results = validate_config(load_reward_config(args.reward_config), args.image_path, args.resolution, args.num_crops)
    print(format_table(results))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        with own_files(output.parent, [output.name], "--output"):
            write_json(output, {name: asdict(result) for name, result in results.items()})
    sys.exit(1 if any(result.failures for result in results.values()) else 0)


if __name__ == "__main__":
    run(main)
