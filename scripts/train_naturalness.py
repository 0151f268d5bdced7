"""Train dp2o_naturalness, the head that tells photographs from what degradations, bicubic and SR models make of them.

    python scripts/fetch_photographs.py
    python scripts/train_naturalness.py

Run the same command again after an interruption: the pairs and the samples that are there are kept.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def parse_args(argv=None):
    from dp2osr.config import DefaultsAndLines, at_least
    from dp2osr.config import parse_args as parse

    models = ROOT / "preset" / "models"
    shipped = [f"{models / name}:{models / f'c-{name}'}" for name in ("tiny-flux", "tiny-sd2", "tiny-sd2-16", "tiny-sd2-8")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsAndLines)
    parser.add_argument("--train_dir", default="runs/photographs/train", help="folder of training photographs")
    parser.add_argument("--val_dir", default="runs/photographs/val", help="folder of held-out photographs")
    parser.add_argument("--models", nargs="+", default=shipped, metavar="BASE:CONTROLNET", help="the models whose samples are learnt")
    parser.add_argument("--num_inference_steps", nargs="+", type=at_least(1), default=[4, 10, 25], help="of the samples: each of them")
    parser.add_argument("--num_candidates", type=at_least(1), default=1, help="samples of a model with each number of steps, an image")
    parser.add_argument("--train_images", type=at_least(1), default=64, help="crops that each model samples, of those to train on")
    parser.add_argument("--val_images", type=at_least(1), default=32, help="crops that each model samples, of those held out")
    parser.add_argument("--crop_size", type=at_least(32), default=128, help="side of a crop, pixels")
    parser.add_argument("--crops_per_image", type=at_least(1), default=2, help="crops a photograph")
    parser.add_argument("--min_detail", type=at_least(0, float), default=3.0, help="least RMS gradient of a crop, grey levels a pixel")
    parser.add_argument("--max_train_steps", type=at_least(1), default=1500, help="optimizer steps of the head")
    parser.add_argument("--seed", type=at_least(0), default=0, help="decides crops, distortions, samples and initial weights")
    parser.add_argument("--work_dir", default="runs/naturalness", help="gets the pairs and the samples")
    parser.add_argument("--output", default=str(ROOT / "preset" / "metrics" / "naturalness.safetensors"), help="weights to write")
    return parse(parser, argv)


def main():
    args = parse_args()
    import json

    from dp2osr.rewards.naturalness_training import train_naturalness

    print(json.dumps(train_naturalness(args), indent=1))


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
