"""Make the score table of a candidate folder of scores that others computed; training reads it as one of label_rewards.py.

    python scripts/import_scores.py --table theirs.csv --candidates_dir runs/imported --lower_better lpips niqe

The table is a CSV or a parquet file with the columns image_id, candidate (from 0, or from --first_number; -1 for the GT) and one a metric.
A folder of scripts/export_labels.py is taken too, with nothing but --candidates_dir: it says itself what its columns are.
Every group needs all of its candidates. The new table says that its scores were imported, of which file, by its hash.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.rewards.settings import ImportScoresSettings


def main():
    args = parse(ImportScoresSettings, description=__doc__)
    from dp2osr.rewards.foreign_scores import import_scores

    import_scores(args)


if __name__ == "__main__":
    run(main)
