"""Ways to make one reward of the metrics (the paper's min-max, ranks, z-scores, weights that heed conflicts), by what they do to each.

python scripts/reproduce/aggregation.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("aggregation", __doc__))
