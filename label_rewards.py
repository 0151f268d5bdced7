"""Score every candidate of a candidate folder with the metrics of a reward config: raw scores to one parquet table.

    python label_rewards.py --candidates_dir runs/candidates --gt_path preset/train/gt --reward_config embedded

Run it again and it scores what is new, changed or lacks a metric.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.rewards.settings import LabelSettings


def main() -> None:
    settings = parse(LabelSettings, description=__doc__)
    from dp2osr.rewards.label import label_candidates

    label_candidates(settings)


if __name__ == "__main__":
    run(main)
