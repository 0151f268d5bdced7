"""How good a model's samples are at each number of sampling steps: every metric, beside bicubic and GT, as one table.

    python studies/steps.py --models flux=preset/models/tiny-flux+preset/models/c-tiny-flux --image_path LR --gt_path GT \
        --output_dir runs/steps

Several stages of one training may be given, each by a name of its own; then the table is the curve of that training.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from studies.settings import StepsSettings


def main():
    args = parse(StepsSettings, description=__doc__)
    from studies.steps_table import tabulate

    tabulate(args)


if __name__ == "__main__":
    run(main)
