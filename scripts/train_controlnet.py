"""Train a baseline ControlNet on degraded photographs: C-SD2 by the paper's recipe, or the tiny preset with its backbone."""

from dp2osr.cli import given, parse
from dp2osr.errors import run
from dp2osr.training.options import check_baseline_given
from dp2osr.training.settings import BaselineSettings


def main():
    settings = parse(BaselineSettings, description=__doc__)
    check_baseline_given(settings, given(BaselineSettings))
    from dp2osr.training.baseline import train_baseline

    train_baseline(settings)


if __name__ == "__main__":
    run(main)
