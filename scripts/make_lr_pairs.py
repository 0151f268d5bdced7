"""Make LR/GT pairs of a folder of HR images: `<output_dir>/gt/*.png` and `<output_dir>/lr/*.png`, paired by name.

    python scripts/make_lr_pairs.py --image_path preset/test/gt --output_dir runs/pairs --crop_size 64 --crops_per_image 2

Run the same command again after an interruption: it does what is left.
"""

from dp2osr.cli import parse
from dp2osr.data.settings import PairsSettings
from dp2osr.errors import run


def main():
    args = parse(PairsSettings, description=__doc__)
    from dp2osr.data.lr_pairs import pairs_by_settings

    pairs_by_settings(args)


if __name__ == "__main__":
    run(main)
