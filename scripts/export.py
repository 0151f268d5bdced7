"""Write the candidates that a reward ranks first as images: the winners of a labelled folder, to be looked at.

    python scripts/export.py --candidates_dir runs/candidates --output_dir runs/winners

The folder is that of the examples of gen_candidates.py and label_rewards.py. The images are decoded as they were scored: by the folder's
own base model, with its colour fix. Of a pruned folder the winners are there and the rest is not, which is one line.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.preference.settings import ExportSettings


def main():
    args = parse(ExportSettings, description=__doc__)
    from dp2osr.preference.export import export_candidates

    export_candidates(args)


if __name__ == "__main__":
    run(main)
