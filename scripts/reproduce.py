"""The paper's tables, figures and ablations, and experiments of your own; what each asks is the title of its YAML.

    python scripts/reproduce.py table3                  # hierarchical weights, on the tiny models
    python scripts/reproduce.py fig4 --preset paper --plan
    python scripts/reproduce.py mine --experiment mine.yaml

NAME is a file of configs/reproduce/<preset>. Run it again and it goes on where it was stopped.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.experiments.settings import ExperimentSettings


def main():
    settings = parse(ExperimentSettings, description=__doc__)
    from dp2osr.experiments.run import run_experiment

    run_experiment(settings)


if __name__ == "__main__":
    run(main)
