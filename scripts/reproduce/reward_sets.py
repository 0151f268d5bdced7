"""Pairs by FR metrics alone, by NR metrics alone and by both, by what they do to each metric.

python scripts/reproduce/reward_sets.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("reward_sets", __doc__))
