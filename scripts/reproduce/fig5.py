"""Best, Mean and Worst of M candidates before and after preference training (the paper's Fig. 5).

python scripts/reproduce/fig5.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("fig5", __doc__))
