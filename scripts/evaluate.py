"""Compare models by their candidates, or any methods by folders of their SR images.

    python scripts/evaluate.py --candidates base=runs/quickstart/test/base policy=runs/quickstart/test/policy \\
        --gt_path preset/test/gt --output_dir runs/report
    python scripts/evaluate.py --images SD2=runs/sr FLUX=runs/sr_flux --gt_path preset/test/gt --output_dir runs/table

The first compares what scripts/quickstart.sh sampled, the second the images of the examples of the two test programs.

Candidates (scored by label_rewards.py) are compared by reward and by metric: tables, Best/Mean/Worst curves, a self-contained report.html.
Images are scored here, in one pass over the files, and compared by metric: Markdown, LaTeX and CSV tables with intervals and paired tests.
"""

from dp2osr.cli import given, parse
from dp2osr.errors import run
from dp2osr.evaluation.settings import EvaluateSettings


def main():
    args = parse(EvaluateSettings, description=__doc__)
    from dp2osr.evaluation.dispatch import compare_methods

    compare_methods(args, given(EvaluateSettings))


if __name__ == "__main__":
    run(main)
