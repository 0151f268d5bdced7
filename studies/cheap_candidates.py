"""What cheap candidates are beside dear ones: how alike their orders are, how far they spread, and how well the base denoises them.

    python studies/cheap_candidates.py --reward_config embedded --num_groups 20 --candidates \\
        dear=runs/reproduce/candidates/tiny-sd2/candidates "dpm_4=runs/reproduce/candidates/tiny-sd2,num_inference_steps=4/candidates"

The first folder is the dear one. Candidates of one number begin from the same noise, but for those that branched.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.stats import kendalltau
from tqdm import tqdm

from dp2osr import stats
from dp2osr.cli import Settings, parse
from dp2osr.errors import UserError, run
from dp2osr.fields import Count, metavar
from dp2osr.rewards.reward import hybrid_reward

RANGES = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))  # shares of the noise schedule


@dataclass(kw_only=True)
class CheapSettings(Settings):
    """Scored candidate folders of the same images."""

    candidates: Annotated[list[str], metavar("NAME=DIR")]
    """Candidate folders, the dear one first. Of another set of images those in common are compared."""
    reward_config: str = "embedded"
    """A name in configs/rewards, or a YAML file."""
    num_candidates: Count = 16
    """M, the first of each folder."""
    top_n: Count = 4
    """N: winners and losers that the base denoises."""
    num_groups: Count = 20
    """Groups whose candidates the base denoises."""
    bootstrap: Count = 2000
    """Resamples for the intervals, over photographs."""


def main():
    args = parse(CheapSettings, description=__doc__)
    from dp2osr.evaluation.methods import parse_candidates
    from dp2osr.rewards.chosen import check_scored
    from dp2osr.rewards.config import load_reward_config
    from dp2osr.rewards.table import read_scores, scores_path
    from dp2osr.sampling.store import CandidateStore

    config, folders = load_reward_config(args.reward_config), parse_candidates(args.candidates)
    if len(folders) < 2:
        raise UserError("--candidates: takes two folders or more, the dear one first")
    tables = {name: read_scores(scores_path(folder), config) for name, folder in folders.items()}
    for name, table in tables.items():
        check_scored(config, table, folders[name])
        scored = next(iter(table.scores.values())).shape[1]
        if scored < args.num_candidates:
            raise UserError(f"{folders[name]}: has {scored} candidates an image, fewer than --num_candidates {args.num_candidates}")
    shared = [image for image in next(iter(tables.values())).image_ids if all(image in table.image_ids for table in tables.values())]
    if not shared:
        raise UserError("--candidates: have no image in common")
    stores = {name: CandidateStore(folder) for name, folder in folders.items()}
    print(orders_and_spreads(tables, shared, config, args))
    print()
    print(denoising_errors(stores, tables, shared[: args.num_groups], config, args))


def orders_and_spreads(tables, shared, config, args):
    """Kendall's τ with the dear rewards, the mean reward beside theirs, and the spread within a group beside theirs, as Markdown."""
    import pandas as pd

    from dp2osr.evaluation.tables import interval, markdown

    scores = {name: scores_of(table, shared, args.num_candidates) for name, table in tables.items()}
    dear, *others = scores
    lower = tables[dear].lower_better
    of_gt = {name: values[rows(tables[dear], shared)] for name, values in tables[dear].gt_scores.items()}
    weights = stats.bootstrap_weights(stats.photographs_of(shared), args.bootstrap, seed=0)
    own = {name: hybrid_reward(values, lower, config, of_gt) for name, values in scores.items()}
    found = []
    for name in others:
        order = np.array([kendalltau(*pair).statistic for pair in zip(own[dear], own[name], strict=True)])
        tau = stats.ratio_of_means(order, np.ones(len(order)), weights)
        parts = stats.pooled_parts({key: scores[key] for key in (dear, name)}, lower, config, of_gt)
        pooled = {key: sum(of_metrics.values()) for key, of_metrics in parts.items()}
        level = stats.gain(pooled[name], pooled[dear], weights)
        width = stats.ratio_of_means(stats.spread(pooled[name]), stats.spread(pooled[dear]), weights)
        cells = {"τ": interval(tau), "mean reward, σ": interval(level, signed=True), "spread": interval(width)}
        found.append({"candidates": name} | cells)
    return f"{len(shared)} images in common × {args.num_candidates} candidates\n\n{markdown(pd.DataFrame(found))}"


def denoising_errors(stores, tables, images, config, args):
    """The base's mean squared error on winners and on losers at each range of noise, beside its error on the dear ones, as Markdown."""
    import pandas as pd

    from dp2osr.backbones import load_backbone
    from dp2osr.evaluation.tables import markdown
    from dp2osr.preference.groups import PreferenceGroups

    base = next(iter(stores.values())).settings
    backbone = load_backbone(base["model"])
    controlnet = backbone.load_controlnet(base["controlnet"]).requires_grad_(False)
    rows, dear = [], None
    for name, store in stores.items():
        groups = PreferenceGroups(store, tables[name], config, args.num_candidates, args.top_n)
        errors = np.array(
            [
                errors_of(backbone, controlnet, groups.read(groups.image_ids.index(image), backbone))
                for image in tqdm(images, desc=name, unit="group")
                if image in groups.image_ids
            ]
        ).mean(axis=0)  # (ranges, 2)
        dear = errors if dear is None else dear
        for place, of in enumerate(("winners", "losers")):
            rows.append([name, of, *(f"{error:.4f} ({error / first:.2f})" for error, first in zip(errors[:, place], dear[:, place]))])
    columns = ["candidates", "", *(f"{low:g} to {high:g}" for low, high in RANGES)]
    return f"{len(images)} groups, N = {args.top_n}\n\n{markdown(pd.DataFrame(rows, columns=columns))}"


def errors_of(backbone, controlnet, group):
    """(ranges, 2) mean squared errors of a group's winners and losers, from the same timestep and noise for all."""
    import torch

    control, found = backbone.prepare_control(group.control), []
    for number, share in enumerate(RANGES):
        generator = torch.Generator().manual_seed(number)
        timestep = backbone.draw_timesteps(1, generator, share)
        noise = torch.randn(group.latents.shape[1:], generator=generator).expand_as(group.latents).to(backbone.device)
        latents = group.latents.to(backbone.device)
        timesteps = timestep.expand(len(latents))
        noisy = backbone.add_noise(latents, noise, timesteps)
        with torch.no_grad():
            (prediction,) = backbone.predict([controlnet], noisy, timesteps, group.prompt, control)
        errors = (prediction - backbone.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))
        found.append([half.mean().item() for half in errors.chunk(2)])
    return found


def rows(table, shared):
    """Row numbers of the images `shared` in a table."""
    place = {image: row for row, image in enumerate(table.image_ids)}
    return [place[image] for image in shared]


def scores_of(table, shared, count):
    """{metric: (G, M)} of the images in common."""
    chosen = rows(table, shared)
    return {name: values[chosen, :count] for name, values in table.scores.items()}


if __name__ == "__main__":
    run(main)
