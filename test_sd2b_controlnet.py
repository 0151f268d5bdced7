"""Super-resolve a folder of images with SD2 and any ControlNet: C-SD2, DP²O-SD2, the tiny preset, or one that you trained.

    python test_sd2b_controlnet.py --pretrained_model_name_or_path preset/models/tiny-sd2 \\
        --controlnet_model_name_or_path preset/models/c-tiny-sd2 --image_path preset/test/lr --upscale 4 --output_dir runs/sr

Run it again and it does what is left: a result is kept if it was made of the same image with the same settings.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.rewards.settings import BestOfSettings


def main() -> None:
    settings = parse(BestOfSettings, description=__doc__, backbone="sd2")
    from dp2osr.rewards.best_of import restore_images

    restore_images(settings)


if __name__ == "__main__":
    run(main)
