"""The held-out reward during training, beside other methods (the paper's Fig. 1b).

python scripts/reproduce/fig1b.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("fig1b", __doc__))
