"""The ablation of hierarchical weights: none, intra-group, inter-group, both (the paper's Table 3), by what they do to each metric.

python scripts/reproduce/table3.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("table3", __doc__))
