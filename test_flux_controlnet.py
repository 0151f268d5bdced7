"""Super-resolve a folder of images with FLUX and any ControlNet: C-FLUX, DP²O-FLUX, or one that you trained.

    python test_flux_controlnet.py --pretrained_model_name_or_path preset/models/tiny-flux \\
        --controlnet_model_name_or_path preset/models/c-tiny-flux --image_path preset/test/lr --upscale 4 --output_dir runs/sr_flux

Run it again and it does what is left: a result is kept if it was made of the same image with the same settings.
"""

from dataclasses import dataclass

from dp2osr.backbones.settings import FluxSettings
from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.rewards.settings import BestOfSettings


@dataclass(kw_only=True)
class FluxRestoreSettings(FluxSettings, BestOfSettings):
    """SR images of a folder by FLUX."""


def main() -> None:
    settings = parse(FluxRestoreSettings, description=__doc__, backbone="flux")
    from dp2osr.rewards.best_of import restore_images

    restore_images(settings)


if __name__ == "__main__":
    run(main)
