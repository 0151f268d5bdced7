"""Does a probe before the training order the settings of the sweep over M and N? Run scripts/reproduce/fig4.py first.

python scripts/reproduce/predict_nm.py
python scripts/reproduce/predict_nm.py --experiment capacity     # after capacity.py: the first line of each of its models
"""

from dp2osr.errors import run
from dp2osr.reproduce.prediction import run_prediction

if __name__ == "__main__":
    run(lambda: run_prediction(__doc__))
