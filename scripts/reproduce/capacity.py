"""The sweep over N/M on models of several capacities: where the best ratio is, and where trainings collapse (third open question).

python scripts/reproduce/capacity.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.capacity import run_capacity

if __name__ == "__main__":
    run(lambda: run_capacity("capacity", __doc__))
