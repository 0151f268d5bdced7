"""What curation makes of the scores, as a table to read before training."""

import numpy as np

from dp2osr.preference.groups import PreferenceGroups
from dp2osr.preference.settings import PreferenceSettings
from dp2osr.rewards.chosen import read_with_reward
from dp2osr.sampling.store import CandidateStore


def describe_preferences(args: PreferenceSettings) -> list[str]:
    """Lines of text: one row a group (winners' and losers' mean reward, σ_g, range of the pair weights), then the summary."""
    store = CandidateStore(args.candidates_dir)
    table, config = read_with_reward(args.reward_config, args.candidates_dir, args.scores)
    groups = PreferenceGroups(store, table, config, args.num_candidates, args.top_n, args.weighting)
    best = np.take_along_axis(groups.rewards, groups.winners, 1).mean(1)
    worst = np.take_along_axis(groups.rewards, groups.losers, 1).mean(1)
    spread = groups.rewards.std(axis=1)
    width = max(8, *(len(image_id) for image_id in groups.image_ids))
    lines = [f"{'image':{width}}  winners  losers   sigma  weights"]
    for index, image_id in enumerate(groups.image_ids):
        low, high = groups.weights[index].min(), groups.weights[index].max()
        lines.append(f"{image_id:{width}}  {best[index]:7.3f} {worst[index]:7.3f} {spread[index]:7.3f}  {low:.3f} - {high:.3f}")
    pairs = len(groups) * args.top_n**2
    lines.append(
        f"{len(groups)} groups of M = {groups.rewards.shape[1]}, {pairs} pairs with N = {args.top_n}; mean sigma {spread.mean():.3f}"
    )
    return lines + groups.warnings()
