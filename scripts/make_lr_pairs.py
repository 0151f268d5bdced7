"""Make LR/GT pairs of a folder of HR images: `<output_dir>/gt/*.png` and `<output_dir>/lr/*.png`, paired by name.

    python scripts/make_lr_pairs.py --image_path preset/test/gt --output_dir runs/pairs --crop_size 64 --crops_per_image 2

Run the same command again after an interruption: it does what is left.
"""

from dp2osr.cli import parse
from dp2osr.data.settings import PairsSettings
from dp2osr.errors import run


def main():
    args = parse(PairsSettings, description=__doc__)
    from dp2osr.data.degradation_settings import load_degradation
    from dp2osr.data.lr_pairs import PairSettings, make_pairs, report_line

    settings = PairSettings(load_degradation(args.degradation), args.crop_size, args.crops_per_image, args.min_detail, args.seed)
    report = make_pairs(args.image_path, args.output_dir, settings, args.num_workers, args.recursive, args.skip_unreadable, args.adopt)
    print(report_line(args.output_dir, report))


if __name__ == "__main__":
    run(main)
