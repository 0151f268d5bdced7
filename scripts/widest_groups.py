"""Adaptive M: of groups with a few scored candidates take those whose rewards spread most, to be sampled in full.

    python gen_candidates.py --config C --num_candidates 4 --output_dir runs/first
    python label_rewards.py --candidates_dir runs/first --reward_config embedded --gt_path preset/train/gt
    python scripts/widest_groups.py --candidates_dir runs/first --image_path preset/train/lr --share 0.333 --output_dir runs/candidates
    python gen_candidates.py --config C --image_path runs/candidates/images.csv --num_candidates 16 --output_dir runs/candidates

with one C, the settings of the sampling. The candidates that are there are kept. Then label and train as ever. docs/cheap.md has what it
gained.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.preference.settings import WidestSettings


def main():
    args = parse(WidestSettings, description=__doc__)
    from dp2osr.preference.widest import keep_widest

    keep_widest(args)


if __name__ == "__main__":
    run(main)
