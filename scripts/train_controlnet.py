"""Train a baseline ControlNet on degraded photographs: C-SD2 and C-FLUX by the paper's recipes, or a tiny preset with its backbone."""

from dp2osr.cli import given, parse
from dp2osr.errors import run
from dp2osr.training.baseline_options import check_baseline_given
from dp2osr.training.baseline_settings import BaselineSettings


def main():
    settings = parse(BaselineSettings, description=__doc__)
    check_baseline_given(settings, given(BaselineSettings))
    from dp2osr.training.baseline import train_baseline

    train_baseline(settings)


if __name__ == "__main__":
    run(main)
