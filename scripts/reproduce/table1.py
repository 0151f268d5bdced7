"""The models before and after on test sets, metric by metric, beside the published values (the paper's Table 1).

python scripts/reproduce/table1.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_image_table

if __name__ == "__main__":
    run(lambda: run_image_table("table1", __doc__))
