"""Ten samples an input, before and after: means and their spread over samples (the paper's Table 2).

python scripts/reproduce/table2.py
"""

from dp2osr.errors import run
from dp2osr.reproduce.program import run_image_table

if __name__ == "__main__":
    run(lambda: run_image_table("table2", __doc__))
