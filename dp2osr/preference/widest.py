"""Adaptive M: of groups with a few scored candidates, those whose rewards spread most go on to be sampled in full."""

import csv
import io
import math
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dp2osr.data.inputs import scan
from dp2osr.errors import UserError, listed
from dp2osr.files import read_json, replace_folder, write_text
from dp2osr.outputs import check_no_input, check_output
from dp2osr.preference.groups import check_same_candidates, finite_scores
from dp2osr.preference.settings import WidestSettings
from dp2osr.rewards.chosen import read_with_reward
from dp2osr.rewards.config import RewardConfig
from dp2osr.rewards.reward import Directions, Scores, bounded, reward_shares
from dp2osr.sampling.pruned import check_not_pruned
from dp2osr.sampling.store import CandidateStore

MANIFEST = "images.csv"


def group_spreads(scores: Scores, lower_better: Directions, config: RewardConfig, gt_scores: Scores | None = None) -> np.ndarray:
    """(G,) standard deviation of each group's rewards, on one scale for all groups.

    The reward of the paper is normalised within each group (Sec. 4.1), which hides how much groups differ. Here a metric counts in units
    of its standard deviation over all candidates, with its share of the weight.

    Args:
        scores: {metric: (G, M) raw}, finite.
        gt_scores: of a config that is bounded by them.
    """
    shares, total = reward_shares(scores, lower_better, config, gt_scores), np.zeros(1)
    for name, values in bounded(scores, lower_better, config, gt_scores).items():
        scale = values.std()
        if scale > 0:
            total = total + (-shares[name] if lower_better[name] else shares[name]) * values / scale
    return np.broadcast_to(total, next(iter(scores.values())).shape).std(axis=1)


def keep_widest(args: WidestSettings) -> None:
    """Copy the groups of a scored candidate folder whose rewards spread most to another one, with a manifest of their LR images.

    Run again it copies what is missing; groups that were sampled on meanwhile stay.

    Raises:
        UserError: a folder that cannot be read or is not scored, no group with finite scores, LR images that are not found, an output
            folder with other candidates or another choice.
    """
    check_output(args.output_dir)
    check_no_input(args.output_dir, [args.candidates_dir])
    store = CandidateStore(args.candidates_dir)
    check_not_pruned(store.folder, "give a folder that was not pruned")
    spreads = spreads_of(args, store)
    count = math.ceil(round(args.share * len(spreads), 6))  # without the rounding a third of 60 might be 21
    chosen = dict(sorted(spreads.items(), key=lambda item: (-item[1], item[0]))[:count])
    paths = lr_images(args.image_path, chosen)
    there = Path(args.output_dir) / "settings.json"
    known = read_json(there).get("num_candidates", 0) if there.is_file() else 0
    settings = {**store.settings, "num_candidates": max(known, store.settings["num_candidates"])}
    output = CandidateStore(args.output_dir, settings, begin=False)
    manifest, content = output.folder / MANIFEST, manifest_text(paths, chosen, output.folder)
    if manifest.is_file() and manifest.read_text(encoding="utf-8") != content:
        raise UserError(f"{manifest}: is of another choice of images; use the settings that it was made with, or give another --output_dir")
    output.begin()
    write_text(manifest, content)
    for image_id in tqdm(chosen, desc="copy", unit="group"):
        with output.locks.held(image_id, wait=True):
            if not (output.groups / image_id).exists():
                replace_folder(output.groups / image_id, partial(shutil.copytree, store.groups / image_id, dirs_exist_ok=True))
    output.locks.leave()
    rest = [value for image_id, value in spreads.items() if image_id not in chosen]
    beside = f", the others {np.mean(rest):.3f}" if rest else ""
    print(
        f"{output.folder}: {len(chosen)} of {len(spreads)} groups, those of the widest rewards: {np.mean(list(chosen.values())):.3f} on "
        f"average{beside}\ngo on with gen_candidates.py --image_path {manifest} --output_dir {output.folder}, its other "
        f"flags as before and a larger --num_candidates"
    )


def spreads_of(args: WidestSettings, store: CandidateStore) -> dict[str, float]:
    """{image id: spread} of the groups whose scores are finite."""
    table, config = read_with_reward(args.reward_config, args.candidates_dir, args.scores)
    check_same_candidates(store, table)
    scores, of_gt, finite = finite_scores(store, table, config, args.num_candidates)
    few = next(iter(scores.values())).shape[1]
    if few < 2:
        raise UserError(f"{store.folder}: {few} candidate an image has no spread; at least two must be scored")
    spreads = group_spreads(scores, table.lower_better, config, of_gt)
    return dict(zip(np.array(table.image_ids)[finite].tolist(), spreads.tolist(), strict=True))


def lr_images(image_path: str, chosen: Mapping[str, float]) -> dict[str, Path]:
    """{image id: its LR image} of those chosen."""
    found = {file.id: file.path for file in scan(image_path, recursive=True).files}
    missing = sorted(set(chosen) - set(found))
    if missing:
        raise UserError(f"{image_path}: has no LR image of {listed(missing)}; give the folder that the candidates were sampled from")
    return {image_id: found[image_id] for image_id in chosen}


def manifest_text(paths: Mapping[str, Path], spreads: Mapping[str, float], folder: Path) -> str:
    """CSV with the columns `file`, from `folder` on, `id` and `spread`; the widest first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "id", "spread"])
    writer.writerows([os.path.relpath(path, folder), image_id, f"{spreads[image_id]:.6f}"] for image_id, path in paths.items())
    return text.getvalue()
