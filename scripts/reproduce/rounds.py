"""Offline preference data against rounds (the paper's second open question), at the same cost of sampling, scoring and training.

python scripts/reproduce/rounds.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("rounds", __doc__))
