"""Where the policy changed the base's images, the same seeds before and after (the paper's Fig. 6 and its fourth open question).

    python studies/fig6.py --candidates base=runs/quickstart/test/base policy=runs/quickstart/test/policy \\
        --gt_path preset/test/gt --output_dir runs/reproduce/fig6

The change of each place is set against the detail of the GT there, the base's spread over seeds and its errors, and against what linear
filters of the base can explain: a policy that does the same everywhere is a filter, one that refines locally is not.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from studies.settings import LocalitySettings


def main():
    args = parse(LocalitySettings, description=__doc__)
    from studies.locality_report import run_locality

    run_locality(args)


if __name__ == "__main__":
    run(main)
