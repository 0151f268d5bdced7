"""What the best of M samples gives, for a base and for its policy: each metric's change against one sample of the base.

    python studies/best_of_samples.py --candidates base=runs/test/base policy=runs/test/policy --choose_by nr_only

The choice is by a reward that needs no GT, as `--keep best` makes it. Metrics outside of it say whether more than it rises.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dp2osr.cli import Settings, parse
from dp2osr.errors import UserError, run
from dp2osr.evaluation.methods import parse_candidates
from dp2osr.evaluation.tables import interval, markdown
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.reward import hybrid_reward
from dp2osr.rewards.table import read_scores, scores_path
from dp2osr.stats import bootstrap_weights, photographs_of, ratio_of_means, spread


@dataclass(kw_only=True)
class BestOfStudySettings(Settings):
    """Scored candidates of methods on the same images."""

    candidates: list[str]
    """NAME=FOLDER, the base first."""
    choose_by: str = "nr_only"
    """Reward that chooses: a name in configs/rewards, or a YAML file."""


def main():
    args = parse(BestOfStudySettings, description=__doc__)
    config = load_reward_config(args.choose_by)
    tables = {name: read_scores(scores_path(folder)) for name, folder in parse_candidates(args.candidates).items()}
    base = next(iter(tables.values()))
    if any(list(table.image_ids) != list(base.image_ids) for table in tables.values()):
        raise UserError("--candidates: not of the same images")
    weights = bootstrap_weights(photographs_of(base.image_ids), 2000, 0)
    best = {name: hybrid_reward(table.scores, table.lower_better, config).argmax(axis=1) for name, table in tables.items()}
    rows = []
    for metric, lower in base.lower_better.items():
        chooses = " (chooses)" if metric in [spec.name for spec in config.metrics] else ""
        row = {"metric": f"{metric} {'↓' if lower else '↑'}{chooses}"}
        sign, unit = -1 if lower else 1, spread(base.scores[metric])
        for name, table in tables.items():
            values = table.scores[metric]
            for what, of_images in (("one sample", values.mean(axis=1)), ("the best", values[np.arange(len(values)), best[name]])):
                change = ratio_of_means(sign * (of_images - base.scores[metric].mean(axis=1)), unit, weights)
                row[f"{name}, {what}"] = f"{of_images.mean():.3f} ({interval(change, signed=True)})"
        rows.append(row)
    print(markdown(pd.DataFrame(rows)))


if __name__ == "__main__":
    run(main)
