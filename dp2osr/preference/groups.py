"""Preference groups: scores and candidates on disk → winners, losers and weights of each LR image."""

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dp2osr.errors import UserError
from dp2osr.preference.hierarchy import advantages, hpo_weights
from dp2osr.preference.loss import reads
from dp2osr.preference.pairs import curate
from dp2osr.rewards.chosen import check_scored, label_command
from dp2osr.rewards.config import RewardConfig
from dp2osr.rewards.reward import finite_groups_of, hybrid_reward
from dp2osr.rewards.table import ScoreTable
from dp2osr.sampling.pruned import check_kept
from dp2osr.sampling.resize import control_image
from dp2osr.sampling.store import CandidateStore


@dataclass
class PreferenceGroup:
    """What one visit of a group needs. N winners come first, then N losers."""

    image_id: str
    candidates: np.ndarray  # (2N,) candidate numbers
    latents: torch.Tensor  # (2N, C, h, w) float32, scaled
    control: torch.Tensor  # (1, 3, H, W) in [0, 1], the upsampled LR
    prompt: dict[str, torch.Tensor]  # its embedding, for one image
    weights: torch.Tensor  # (N, N) float32, winner by loser
    advantages: torch.Tensor | None = None  # (2N,) float32, of the losses that read them

    def on(self, backbone: Any) -> "PreferenceGroup":
        """The same with the prompt where the backbone computes, in its precision."""
        return replace(self, prompt={name: value.to(backbone.device, backbone.dtype) for name, value in self.prompt.items()})


class PreferenceGroups:
    """The curated groups of a candidate store.

    Args:
        store: `CandidateStore`.
        table: raw scores (`read_scores`).
        config: reward config.
        num_candidates: M, a prefix of the candidates; None takes all.
        top_n: N.
        weighting: of `hpo_weights`.

    Attributes:
        left_out: ids of the groups with a NaN or infinite score of the reward.

    Raises:
        UserError: scores of images that the store lacks or of candidates with other settings, too few candidates, a metric that was
            not scored, no group with finite scores, candidates that were pruned away.
    """

    def __init__(
        self,
        store: CandidateStore,
        table: ScoreTable,
        config: RewardConfig,
        num_candidates: int | None,
        top_n: int,
        weighting: str = "both",
    ) -> None:
        check_same_candidates(store, table)
        promptless = [image_id for image_id in table.image_ids if not store.has_prompt(image_id)]
        if promptless:
            some = ", ".join(promptless[:3])
            raise UserError(f"{store.folder}: {len(promptless)} groups have no prompt.safetensors ({some}); sample into a new folder")
        check_scored(config, table, store.folder)
        scores, of_gt, finite = finite_scores(store, table, config, num_candidates)
        self.store = store
        self.image_ids = [image_id for image_id, good in zip(table.image_ids, finite) if good]
        self.left_out = [image_id for image_id, good in zip(table.image_ids, finite) if not good]
        self.rewards = hybrid_reward(scores, table.lower_better, config, of_gt)
        self.winners, self.losers = curate(self.rewards, top_n)
        check_kept(store.folder, {image_id: [*self.winners[row], *self.losers[row]] for row, image_id in enumerate(self.image_ids)})
        self.weights = hpo_weights(self.rewards, self.winners, self.losers, weighting)
        self.advantages = advantages(self.rewards, self.winners, self.losers)

    def __len__(self) -> int:
        return len(self.image_ids)

    def warnings(self) -> list[str]:
        """Lines about groups that teach nothing: with equal rewards (trained on, as the formula has it), or passed over."""
        flat, total = int((self.rewards.std(axis=1) == 0).sum()), len(self) + len(self.left_out)
        lines = [f"{flat} of {total} groups have equal rewards; they are trained on"] if flat else []
        if self.left_out:
            some = ", ".join(self.left_out[:3])
            lines.append(f"{len(self.left_out)} of {total} groups have a NaN or infinite score and are passed over ({some})")
        return lines

    def fingerprint(self, loss: str = "sigmoid") -> str:
        """Hash of what a training with `loss` will see of the scores: images, winners, losers, weights, and advantages if it reads them."""
        content = [" ".join(self.image_ids).encode(), self.winners.tobytes(), self.losers.tobytes(), self.weights.tobytes()]
        content += [self.advantages.tobytes()] if "advantages" in reads(loss) else []
        return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]

    def only(self, indices: Sequence[int] | np.ndarray) -> "PreferenceGroups":
        """These groups alone, with the weights that they have among all."""
        few = copy(self)
        few.image_ids = [self.image_ids[index] for index in indices]
        for name in ("rewards", "winners", "losers", "weights", "advantages"):
            setattr(few, name, getattr(self, name)[indices])
        return few

    def read(self, index: int, backbone: Any, chosen: np.ndarray | None = None) -> PreferenceGroup:
        """Load group `index` from disk: its winners and losers, or the candidates `chosen`; no other latents are read."""
        return self.load(index, backbone, chosen).on(backbone)

    def load(self, index: int, backbone: Any, chosen: np.ndarray | None = None) -> PreferenceGroup:
        """The same in the host's memory alone, as a thread may read it."""
        chosen = np.concatenate([self.winners[index], self.losers[index]]) if chosen is None else chosen
        group = self.store.read(self.image_ids[index], chosen.tolist())
        image, _, _ = control_image(group.lr, group.upscale, backbone.native_size, backbone.size_multiple)
        prompt = self.store.read_tensors(group.image_id, "prompt")
        weights, advantages = (torch.from_numpy(of_groups[index]).float() for of_groups in (self.weights, self.advantages))
        return PreferenceGroup(group.image_id, chosen, group.latents.float(), image, prompt, weights, advantages)


def finite_scores(
    store: CandidateStore, table: ScoreTable, config: RewardConfig, num_candidates: int | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """(the config's scores, those of the GT, which of the table's groups they are of): of the groups whose scores are all finite.

    Args:
        num_candidates: M, a prefix of the candidates; None takes all.

    Raises:
        UserError: fewer candidates are scored, or no group has finite scores.
    """
    scored = next(iter(table.scores.values())).shape[1]
    num_candidates = num_candidates or scored
    if num_candidates > scored:
        raise UserError(f"--num_candidates {num_candidates}: only {scored} candidates an image are scored")
    scores = {spec.name: table.scores[spec.name][:, :num_candidates] for spec in config.metrics}
    finite = finite_groups_of(scores, config, table.gt_scores)
    if not finite.any():
        again = label_command(store.folder, config, table.metadata)
        raise UserError(f"scores of {store.folder}: every group has a NaN or infinite score; run {again}, and read its warnings")
    of_gt = {name: values[finite] for name, values in table.gt_scores.items()}
    return {name: values[finite] for name, values in scores.items()}, of_gt, finite


def check_same_candidates(store: CandidateStore, table: ScoreTable) -> None:
    """Refuse scores of images that a store lacks, or of candidates with other settings (UserError)."""
    absent = sorted(set(table.image_ids) - set(store.ids()))
    if absent:
        some = ", ".join(absent[:3])
        raise UserError(f"{store.folder}: has no candidates of {len(absent)} scored images ({some}); sample them or score again")
    scored_of = table.metadata.get("candidates") or store.settings
    other = sorted(key for key in {*scored_of, *store.settings} if scored_of.get(key) != store.settings.get(key))
    if other == ["num_candidates"] and scored_of[other[0]] < store.settings[other[0]]:  # more were sampled since: the first are the same
        return
    if other:
        told = ", ".join(other)
        raise UserError(f"{store.folder}: the scores are of candidates with other settings ({told}); run label_rewards.py on it again")


def groups_of_step(step: int, count: int, num_groups: int, seed: int) -> list[int]:
    """Indices of the `count` groups that step `step` visits: epoch by epoch in a fresh order, from (seed, step) alone."""
    positions = np.arange(step * count, (step + 1) * count)
    orders = {epoch: np.random.default_rng((seed, 2, int(epoch))).permutation(num_groups) for epoch in set(positions // num_groups)}
    return [int(orders[position // num_groups][position % num_groups]) for position in positions]
