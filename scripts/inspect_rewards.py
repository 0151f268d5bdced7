"""Explain a reward on the candidates that it scored: which metrics agree, which one drives it, where one alone decides.

    python scripts/inspect_rewards.py --candidates_dir runs/candidates --gt_path preset/train/gt --output_dir runs/reward

Writes rewards.html, one self-contained page, rewards.parquet, a row a candidate with its reward, rank and parts, and correlation.csv,
how much any two metrics agree on the candidates of an image.
"""

from dp2osr.cli import given, parse, refuse_ignored
from dp2osr.errors import run
from dp2osr.rewards.settings import InspectRewardSettings


def main():
    args = parse(InspectRewardSettings, description=__doc__)
    if not args.validation_image_path:
        refuse_ignored(given(InspectRewardSettings), ("resolution", "num_crops"), "without --validation_image_path")
    from dp2osr.evaluation.inspect_rewards import run_inspection

    print("\n".join(run_inspection(args)))


if __name__ == "__main__":
    run(main)
