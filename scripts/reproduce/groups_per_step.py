"""How many groups an optimizer step needs: the same training with fewer visits.

python scripts/reproduce/groups_per_step.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_experiment

if __name__ == "__main__":
    run(lambda: run_experiment("groups_per_step", __doc__))
