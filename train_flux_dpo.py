"""Post-train a ControlNet on preference groups: stage four of DP²O-SR, on FLUX: velocity errors, N = 4 of M = 64.

    python gen_candidates.py --config configs/tiny_flux/quickstart/sample.yaml
    python label_rewards.py --config configs/tiny_flux/quickstart/label.yaml
    accelerate launch train_flux_dpo.py --config configs/tiny_flux/quickstart/train.yaml

configs/flux_dev has the settings of FLUX.1-dev. Run it again and it goes on from its last checkpoint.
"""

from dp2osr.cli import given, parse
from dp2osr.errors import run
from dp2osr.training.checks import check_given
from dp2osr.training.settings import TrainSettings


def main() -> None:
    settings = parse(TrainSettings, description=__doc__, backbone="flux")
    check_given(settings, given(TrainSettings))
    from dp2osr.training.trainer import train_preferences

    train_preferences(settings)


if __name__ == "__main__":
    run(main)
