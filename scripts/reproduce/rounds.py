"""Offline preference data against rounds (the paper's second open question), at the same cost of sampling, scoring and training.

python scripts/reproduce/rounds.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("rounds", __doc__))
