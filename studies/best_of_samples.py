"""What the best of M samples gives, for a base and for its policy: each metric's change against one sample of the base.

    python studies/best_of_samples.py --candidates base=runs/test/base policy=runs/test/policy --choose_by nr_only

The choice is by a reward that needs no GT, as `--keep best` makes it. Metrics outside of it say whether more than it rises.
"""

from dataclasses import dataclass

import numpy as np

from dp2osr.cli import Settings, parse
from dp2osr.errors import UserError, run
from dp2osr.evaluation.methods import parse_candidates
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
    print(f"| metric | {' | '.join(f'{name}, {what}' for name in tables for what in ('one sample', 'the best'))} |")
    print("|---" * (1 + 2 * len(tables)) + "|")
    for metric, lower in base.lower_better.items():
        sign, unit = -1 if lower else 1, spread(base.scores[metric])
        cells = []
        for table in tables.values():
            best = hybrid_reward(table.scores, table.lower_better, config).argmax(axis=1)
            values = table.scores[metric]
            for of_images in (values.mean(axis=1), values[np.arange(len(values)), best]):
                change = ratio_of_means(sign * (of_images - base.scores[metric].mean(axis=1)), unit, weights)
                cells.append(f"{of_images.mean():.3f} ({change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}])")
        chosen = " (chooses)" if metric in [spec.name for spec in config.metrics] else ""
        print(f"| {metric} {'↓' if lower else '↑'}{chosen} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run(main)
