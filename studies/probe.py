"""Which N of which M: a few steps of training for each, and whether what they taught holds on photographs that they did not visit.

Of a policy p ∝ p_ref · exp(r̂), with r̂ = β · (e_ref − e_θ)/2 as in Diffusion-DPO, the mean reward rises by Cov(r̂, R) over the
reference's own candidates, to first order. That is what a probe measures: it needs no new samples and no metric.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dp2osr import stats
from dp2osr.cli import field_names
from dp2osr.errors import UserError
from dp2osr.evaluation.tables import fraction
from dp2osr.files import keep_settings, read_json, write_json
from dp2osr.preference.groups import PreferenceGroups
from dp2osr.provenance import weights_hash
from dp2osr.rewards.chosen import as_dict
from dp2osr.rewards.table import read_scores, scores_path
from dp2osr.sampling.store import reading
from dp2osr.training.adapters import distance
from dp2osr.training.folder import check_folder
from dp2osr.training.settings import ValidationSampling
from dp2osr.training.trainer import PreferenceTrainer

FREE_SETTINGS = (
    "config", "output_dir", "force", "sizes", "tops", "top_n", "num_candidates", "max_train_steps", "groups_per_step", "reward_config",
    *field_names(ValidationSampling),
)  # fmt: skip


def split_groups(image_ids, share, seed, crop_suffix=stats.CROP_SUFFIX):
    """(visited, held-out) indices of groups; all crops of a photograph are on one side.

    Raises:
        UserError: no photograph is left to visit, or fewer than two to judge by.
    """
    photographs = np.array(stats.photographs_of(image_ids, crop_suffix))
    names = np.random.default_rng(seed).permutation(np.unique(photographs))
    count = round(share * len(names))
    if not 2 <= count < len(names):
        raise UserError(f"--held_out_share {share}: of {len(names)} photographs, two at least must judge and one be visited; sample more")
    held_out = np.isin(photographs, names[:count])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def settings_to_probe(sizes, tops, scored):
    """[(M, N)] with N ≤ M/2, the largest M first; by default powers of two: M from 4 up to all that are scored, N from 1.

    Raises:
        UserError: an M that is not scored, or none that fits an N.
    """
    sizes = sizes or [size for size in stats.subset_sizes(scored) if size >= 4]
    if max(sizes, default=0) > scored:
        raise UserError(f"--sizes {max(sizes)}: {scored} candidates an image are scored")
    if not sizes:
        raise UserError(f"{scored} candidates an image are scored; by itself it tries M from 4: sample more, or give --sizes")
    found = [(size, top) for size in sorted(sizes, reverse=True) for top in (tops or stats.subset_sizes(size // 2)) if 2 * top <= size]
    if not found:
        raise UserError(f"--tops {' '.join(map(str, tops))}: none is at most half of an M of {sorted(sizes)}")
    return found


class Probe:
    """Trains the policy of a trainer from its reference for some steps, for one (M, N) after the other.

    Args:
        trainer: a `PreferenceTrainer` of one process without LoRA, at its start.
        steps: of each training.
        visited: candidates a step, the same for every N: ⌊visited / 2N⌋ groups, at least one.
        held_out_share: of the photographs.
        groups, candidates, timesteps: how many held-out groups are looked at, candidates of each, timesteps for each.
        crop_suffix: what an image id has beyond its photograph's name.
    """

    def __init__(self, trainer, steps, visited, held_out_share, groups, candidates, timesteps, crop_suffix=stats.CROP_SUFFIX):
        self.trainer, self.steps, self.visited, self.timesteps = trainer, steps, visited, timesteps
        args = trainer.args
        self.config = trainer.reward
        self.table = read_scores(scores_path(args.candidates_dir, args.scores), self.config)
        everything = self.groups_of(next(iter(self.table.scores.values())).shape[1], 1)
        self.train_on, held_out = split_groups(everything.image_ids, held_out_share, args.seed, crop_suffix)
        self.visited_ids = {everything.image_ids[index] for index in self.train_on}
        self.held_out = held_out[np.linspace(0, len(held_out) - 1, min(groups, len(held_out))).astype(int)]
        self.judged = everything.only(self.held_out)
        self.candidates = np.arange(min(candidates, self.judged.rewards.shape[1]))
        self.photographs = stats.photographs_of(self.judged.image_ids, crop_suffix)
        self.reference_errors = {}  # (group, timestep's number) → (m,); the same for every (M, N)

    def groups_of(self, size, top_n):
        trainer = self.trainer
        return PreferenceGroups(trainer.groups.store, self.table, self.config, size, top_n, trainer.args.weighting)

    def run(self, size, top_n, resamples=2000):
        """A record of (M, N): its pairs, the policy's step, and the first-order gain on held-out photographs with its interval."""
        trainer = self.trainer
        groups = self.groups_of(size, top_n)  # a NaN beyond its first M candidates drops a group for a larger M alone: ids, not places
        trainer.groups = groups.only([place for place, image_id in enumerate(groups.image_ids) if image_id in self.visited_ids])
        trainer.args.num_candidates, trainer.args.top_n = size, top_n
        trainer.args.groups_per_step = max(1, self.visited // (2 * top_n))
        trainer.policy.load_state_dict(trainer.origin.state_dict())
        trainer.start_anew()
        for _ in range(self.steps):
            record, _ = trainer.train_step()
            trainer.step += 1
        gains = self.gains()
        weights = stats.bootstrap_weights(self.photographs, resamples, trainer.args.seed)
        estimate = stats.ratio_of_means(gains, stats.spread(self.judged.rewards), weights)
        best, worst = (np.take_along_axis(trainer.groups.rewards, side, 1) for side in (trainer.groups.winners, trainer.groups.losers))
        return {
            "M": size,
            "N": top_n,
            "groups_per_step": trainer.args.groups_per_step,
            "gap": float((best.mean() - worst.mean()) / stats.spread(trainer.groups.rewards).mean()),
            "accuracy": record["implicit_accuracy"],
            "distance": distance(trainer.policy, trainer.origin),
            "gain": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "by_group": gains.tolist(),
            "photographs": self.photographs,
        }

    @torch.no_grad()
    def gains(self):
        """(G,) Cov(r̂, R) over the candidates of each held-out group, r̂ a mean over timesteps."""
        trainer, gains = self.trainer, []
        for index in range(len(self.judged)):
            group = self.judged.read(index, trainer.backbone, self.candidates)
            control = trainer.backbone.prepare_control(group.control)
            implicit = torch.zeros(len(self.candidates), dtype=torch.float64)
            for visit in range(self.timesteps):
                timestep, noise = trainer.objective.draw(0, group, visit)
                models = [trainer.policy] + [trainer.frozen] * ((index, visit) not in self.reference_errors)
                policy, *found = trainer.objective.errors(models, group, control, timestep, noise, slice(0, len(self.candidates)))
                if found:
                    [self.reference_errors[index, visit]] = found
                implicit += (self.reference_errors[index, visit] - policy).double().cpu() / self.timesteps
            rewards = self.judged.rewards[index, self.candidates]
            implicit = 0.5 * trainer.args.beta * implicit.numpy()
            gains.append(np.mean((implicit - implicit.mean()) * (rewards - rewards.mean())))
        return np.array(gains)


def probe_all(probe, wanted, path, show=lambda record: None):
    """Records of every (M, N) of `wanted`, in the order in which they were run; those in the JSON at `path` are not run again.

    Args:
        show: called with each record, in the order of `wanted`.
    """
    records = read_json(path) if path.exists() else []
    for size, top_n in wanted:
        found = [record for record in records if (record["M"], record["N"]) == (size, top_n)]
        if not found:
            found = [probe.run(size, top_n)]
            records += found
            write_json(path, records)
        show(found[0])
    return [record for record in records if (record["M"], record["N"]) in wanted]


def suggest(records, resamples=2000, seed=0):
    """(best, cheapest): the record of the largest gain, and that of the smallest M which cannot be told from it.

    Told apart are two records where the interval of their difference, over held-out photographs, leaves zero out; among several of one M
    the one of the larger gain counts.

    Args:
        records: of `Probe.run`.
    """
    best = max(records, key=lambda record: record["gain"])
    weights = stats.bootstrap_weights(best["photographs"], resamples, seed)

    def worse(record):
        lost = np.array(best["by_group"]) - np.array(record["by_group"])
        return stats.ratio_of_means(lost, np.ones(len(lost)), weights).low > 0

    return best, min((record for record in records if not worse(record)), key=lambda record: (record["M"], -record["gain"]))


def run_probe(args):
    """Probe every (M, N), print a line for each and what is proposed; `probe.json` and `settings.json` in `args.output_dir`, resumable.

    Args:
        args: the flags of scripts/suggest_nm.py.

    Raises:
        UserError: flags that a probe has no use for, settings other than those of the records that are there, several processes.
    """
    unused = ("lora_rank", "force", "reference_controlnet_model_name_or_path", "pairs_per_group")
    given = [f"--{flag}" for flag in unused if getattr(args, flag)]
    if given:
        raise UserError(f"{', '.join(given)}: a probe trains whole ControlNets from their reference on all pairs; leave it out")
    names = ("controlnet_model_name_or_path", "pretrained_model_name_or_path", "candidates_dir")
    check_folder(args.output_dir, {f"--{name}": getattr(args, name) for name in names}, ("probe.json",))
    table = read_scores(scores_path(args.candidates_dir, args.scores))
    wanted = settings_to_probe(args.sizes, args.tops, next(iter(table.scores.values())).shape[1])
    output = Path(args.output_dir)
    with tempfile.TemporaryDirectory() as folder, reading([args.candidates_dir], "probe"):
        fixed = {"output_dir": folder, "top_n": 1, "num_candidates": None, "validation_steps": 0, "max_train_steps": args.probe_steps}
        trainer = PreferenceTrainer(replace(args, **fixed, lr_scheduler="constant_with_warmup"))
        if trainer.accelerator.num_processes > 1:
            raise UserError("one process is enough for the probe; start it with python")
        probe = Probe(
            trainer, args.probe_steps, args.probe_visits, args.held_out_share, args.held_out_groups,
            args.held_out_candidates, args.held_out_timesteps, args.crop_suffix,
        )  # fmt: skip
        hashes = {"groups_hash": trainer.groups.fingerprint(), "start_hash": weights_hash(args.controlnet_model_name_or_path)}
        settings = vars(args) | hashes | {"reward": as_dict(trainer.reward)}
        keep_settings(output / "settings.json", settings, FREE_SETTINGS, also={"reward": lambda: None})
        print(f"{len(probe.train_on)} groups are visited, {len(probe.held_out)} judge\n")
        print("| M | N | N/M | gap, σ | accuracy | gain | |\n|---|---|---|---|---|---|---|")
        records = probe_all(probe, wanted, output / "probe.json", _show)
    best, cheapest = suggest(records, seed=args.seed)
    print(f"\nBest: N = {best['N']} of M = {best['M']}.")
    print(f"The smallest M that cannot be told from it: N = {cheapest['N']} of M = {cheapest['M']}.")


def _show(record):
    cells = [
        record["M"],
        record["N"],
        fraction(record["N"] / record["M"]),
        f"{record['gap']:.2f}",
        f"{record['accuracy']:.2f}",
        f"{record['gain']:.3f}",
    ]
    print("| " + " | ".join(map(str, [*cells, f"[{record['low']:.3f}, {record['high']:.3f}]"])) + " |", flush=True)
