"""Candidates that no training by given settings reads are removed: of M latents a group, 2N stay."""

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from dp2osr.errors import listed
from dp2osr.outputs import check_output
from dp2osr.preference.groups import PreferenceGroups
from dp2osr.preference.settings import PruneSettings
from dp2osr.rewards.chosen import as_dict, read_with_reward
from dp2osr.rewards.table import scores_path
from dp2osr.sampling.pruned import bytes_of, keep_candidates, kept_in, record_pruning
from dp2osr.sampling.store import CandidateStore


def prune_candidates(args: PruneSettings) -> None:
    """Keep, of every group, the winners and losers that training with these settings reads; the scores stay whole, since weights need them.

    Groups that training passes over (a NaN score, or none) stay as they are. A group is replaced whole; run again, it does what is left.

    Raises:
        UserError: see `read_with_reward`, `PreferenceGroups` and `Locks.alone`.
    """
    check_output(args.candidates_dir, "--candidates_dir")
    store = CandidateStore(args.candidates_dir)
    table, config = read_with_reward(args.reward_config, args.candidates_dir, args.scores)
    groups = PreferenceGroups(store, table, config, args.num_candidates, args.top_n)
    chosen = np.sort(np.concatenate([groups.winners, groups.losers], axis=1), axis=1)
    kept = {image_id: numbers.tolist() for image_id, numbers in zip(groups.image_ids, chosen)}
    describe(store, groups, kept, args)
    if args.dry_run:
        print("nothing is changed: --dry_run")
        return
    with store.locks.alone("scripts/prune.py"):
        record_pruning(store.folder, config.name, as_dict(config), groups.rewards.shape[1], args.top_n)
        store.clear_parts(kept)
        changed = 0
        for image_id, numbers in tqdm(kept.items(), desc="prune", unit="group"):
            with store.locks.held(image_id, wait=True):
                if kept_in(store.groups / image_id) != numbers:
                    keep_candidates(store.groups / image_id, numbers)
                    changed += 1
    print(f"{store.folder}: {changed} groups pruned, {len(kept) - changed} were; now {gigabytes(disk(store))}")


def describe(store: CandidateStore, groups: PreferenceGroups, kept: Mapping[str, Sequence[int]], args: PruneSettings) -> None:
    """Print what stays, what is passed over, and the disk before and after."""
    ids, total = store.ids(), groups.rewards.shape[1]
    before = disk(store)
    after = sum(bytes_of(store.groups / image_id, kept.get(image_id)) for image_id in ids)
    print(f"{store.folder}: {2 * args.top_n} of {total} candidates are kept in {len(kept)} of {len(ids)} groups")
    untouched = sorted(set(ids) - set(kept))
    if untouched:
        print(f"{len(untouched)} groups keep all, since training passes over them (no finite score): {listed(untouched)}")
    print(f"disk: {gigabytes(before)} before, {gigabytes(after)} after; {scores_path(store.folder, args.scores)} stays whole")


def disk(store: CandidateStore) -> int:
    """Bytes of the files of all groups."""
    return sum(bytes_of(store.groups / image_id) for image_id in store.ids())


def gigabytes(count: float) -> str:
    """Bytes for a reader, in units of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.{0 if unit == 'bytes' else 1}f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
