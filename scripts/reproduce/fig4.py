"""N best and worst of M candidates: the held-out reward against N/M (the paper's Fig. 4).

python scripts/reproduce/fig4.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("fig4", __doc__))
