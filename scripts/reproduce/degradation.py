"""Preference data of other degradations than the one that is met: the same training on four kinds of LR images.

python scripts/reproduce/degradation.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("degradation", __doc__))
