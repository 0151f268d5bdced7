"""Write the labels of a candidate folder so that others can load them: one row a candidate, with a card.

    python scripts/export_labels.py --candidates_dir runs/candidates --output_dir runs/labels

The folder is one that `datasets.load_dataset` takes, from here or from a hub (scripts/push_to_hub.py). scripts/import_scores.py takes it
back, to the bit, where a candidate folder holds the same candidates.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.preference.settings import ExportLabelsSettings


def main():
    args = parse(ExportLabelsSettings, description=__doc__)
    from dp2osr.preference.label_export import export_labels

    export_labels(args)


if __name__ == "__main__":
    run(main)
