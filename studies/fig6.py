"""Where the policy changed the base's images, the same seeds before and after (the paper's Fig. 6 and its fourth open question).

    python studies/fig6.py --candidates base=runs/quickstart/test/base policy=runs/quickstart/test/policy \\
        --gt_path preset/test/gt --output_dir runs/reproduce/fig6

The change of each place is set against the detail of the GT there, the base's spread over seeds and its errors, and against what linear
filters of the base can explain: a policy that does the same everywhere is a filter, one that refines locally is not.
"""

from dataclasses import dataclass
from typing import Annotated

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, RegularExpression, at_least, metavar


@dataclass(kw_only=True)
class LocalitySettings(Settings):
    """Where a policy changed its base's images."""

    candidates: Annotated[tuple[str, str], metavar("NAME=DIR")]
    """Candidate folders of the same images and seeds, the base first."""
    gt_path: str
    """Folder of GT images, named as the LR images."""
    output_dir: str
    """Figure, table and settings go here."""
    num_candidates: Annotated[int, at_least(2)] = 8
    """Seeds of an image that are compared."""
    num_shown: Count = 4
    """Images in the figure, evenly over how much they changed."""
    bootstrap: Count = 2000
    """Resamples for the intervals."""
    crop_suffix: RegularExpression = "_\\d\\d$"
    """Of image ids, after the photograph's name."""


def main():
    args = parse(LocalitySettings, description=__doc__)
    from studies.locality_report import run_locality

    run_locality(args)


if __name__ == "__main__":
    run(main)
