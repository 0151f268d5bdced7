"""Score every candidate of a store with every metric: one part file a group, then one table.

A group's scores are kept with the hash of its latents and of its GT, so that running the same command again scores what is
new, changed or interrupted, and asking for one more metric computes that metric alone.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from dp2osr.data.inputs import find_gt
from dp2osr.device import compute_device, set_tf32
from dp2osr.errors import UserError
from dp2osr.outputs import check_output
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.chosen import DEFAULT
from dp2osr.rewards.config import MetricSpec, RewardConfig, load_reward_config, nearest
from dp2osr.rewards.labeller import Labeller
from dp2osr.rewards.metrics import MetricSuite, check_modes
from dp2osr.rewards.settings import LabelSettings
from dp2osr.rewards.table import scores_path
from dp2osr.rewards.weight_files import check_manifest
from dp2osr.sampling.decode import decode_group, load_decoder
from dp2osr.sampling.pruned import check_not_pruned
from dp2osr.sampling.store import CandidateGroup, CandidateStore, reading
from dp2osr.sharing import Launch


def pair_gt(
    gt_path: str | Path | None, image_ids: Sequence[str], modes: Mapping[str, str], config: RewardConfig | None = None
) -> dict[str, Path]:
    """GT file of each image id, by stem; an empty dictionary without `gt_path`.

    Args:
        gt_path: folder of GT images or None; image_ids: the store's; modes: metric → "FR" | "NR".
        config: the reward, which may be bounded by the GT's own scores.

    Raises:
        UserError: an image id without a GT, or no `gt_path` although a metric compares with the GT or is bounded by its score.
    """
    if gt_path is None:
        full_reference = [name for name, mode in modes.items() if mode == "FR"]
        if full_reference:
            names = ", ".join(full_reference)
            raise UserError(f"{names} compare with the GT; pass --gt_path, or a reward config without FR metrics (nr_only)")
        if config and config.bounded:
            names = ", ".join(config.bounded)
            raise UserError(f"reward config '{config.name}': {names} are bounded by the GT's own scores; pass --gt_path")
        return {}
    return find_gt(gt_path, image_ids)


def label_candidates(args: LabelSettings) -> None:
    """Score a candidate folder and write its table; beside other ranks and other jobs on that folder.

    Args:
        args: flags of label_rewards.py.

    Raises:
        UserError: see `CandidateStore`, `load_reward_config`, `MetricSuite`, `pair_gt`, `Batches`; also a GT of another size than
            the candidates, an empty store, with `strict` a NaN or infinite score.
    """
    config = load_reward_config(args.reward_config or DEFAULT)
    store = CandidateStore(args.candidates_dir)
    check_not_pruned(store.folder, "the scores that it had are kept; for others sample into a new folder")
    check_output(scores_path(args.candidates_dir, args.output), "--output", is_file=True)
    image_ids = store.ids()
    if not image_ids:
        raise UserError(f"{args.candidates_dir}: holds no candidate group; run gen_candidates.py first")
    launch = Launch()
    device = compute_device()
    tf32 = set_tf32(device, args.disable_tf32)
    if launch.is_first:
        print(f"reward: {config.name}, {'as given' if args.reward_config else 'the default'}")
    if args.metrics_dir and launch.is_first:
        check_manifest(args.metrics_dir)
    batches = Batches(args.batch_size, device, args.memory_limit)
    specs = chosen_metrics(config, args.extra_metrics, args.exclude_metrics)
    suite = MetricSuite(specs, device, batches, args.precision, args.metrics_dir, args.compile)
    check_modes(config, suite)
    output = scores_path(args.candidates_dir, args.output)
    reward = {"config": config, "given": args.reward_config, "gt_path": args.gt_path}
    decode = LazyDecoder(store, device, batches)
    labeller = Labeller(store, suite, pair_gt(args.gt_path, image_ids, suite.modes, config), output, decode, args.strict, reward)
    labeller.check_version()
    labeller.check_own_columns()
    launch.agree("scoring", {"metrics": labeller.wanted, "groups": image_ids})
    if config.columns and launch.is_first:
        print(f"{', '.join(config.columns)}: not computed here; must be in {output} as a column of your own (docs/rewards.md)")
    with reading([args.candidates_dir], "scoring"), labeller.locks.leaving():
        launch.of_first("claims", labeller.claim)
        if (args.compile or tf32 or args.precision != "fp32") and launch.is_first:
            labeller.compare_with_exact(image_ids[0])
        scored = labeller.score_missing(image_ids, launch)
        if scored and launch.is_first:
            labeller.report_draws(image_ids[0])
        if launch.is_last("scoring"):
            report(labeller, labeller.merge(), len(image_ids))


def report(labeller: Labeller, written: bool, count: int) -> None:
    """Print what the table of `count` groups has, and which of them have scores that no training can use."""
    ending = "" if written else "; it was complete, nothing to do"
    print(f"{labeller.output}: {count} groups scored with {', '.join(labeller.wanted)}{ending}")
    bad = labeller.bad_groups()
    if bad:
        some = ", ".join(bad[:8]) + ", ..." * (len(bad) > 8)
        print(f"{len(bad)} of them have a NaN or infinite score; training passes over those whose reward needs it: {some}")


def chosen_metrics(config: RewardConfig, extra: Sequence[str], exclude: Sequence[str]) -> list[MetricSpec]:
    """`MetricSpec`s of a config and further names, without the excluded ones and those that are columns of the user's.

    Raises:
        UserError: an excluded metric that was not going to be scored, or nothing left.
    """
    in_config = {spec.name for spec in config.metrics}
    specs = config.metrics + [MetricSpec(name, imports=config.imports) for name in extra if name not in in_config]
    names = [spec.name for spec in specs]
    for name in exclude:
        if name not in names:
            raise UserError(f"--exclude_metrics {name}: reward config '{config.name}' does not have it{nearest(name, names)}")
    if set(exclude) >= set(names):
        raise UserError("--exclude_metrics: leaves no metric to score with")
    chosen = [spec for spec in specs if spec.name not in exclude and not spec.better]
    if not chosen:
        raise UserError(
            f"reward config '{config.name}': all its metrics are columns of your own, and there is nothing to score; add a metric"
        )
    return chosen


class LazyDecoder:
    """Decodes groups as the store's settings say, where they are scored; the autoencoder is loaded when the first group needs it."""

    def __init__(self, store: CandidateStore, device: torch.device, batches: Batches) -> None:
        self.settings, self.device, self.batches = store.settings, device, batches

    @cached_property
    def backbone(self) -> Any:
        return load_decoder(self.settings, self.device)

    def __call__(self, group: CandidateGroup) -> torch.Tensor:
        run = partial(self.batches.run, "the decoder") if self.batches.limit else None
        return decode_group(self.backbone, group, self.settings["align_method"], run, on_device=True)
