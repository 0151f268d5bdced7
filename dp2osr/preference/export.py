"""The winners of a labelled candidate folder as images, for the eye: what the reward ranks first, decoded as it was scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dp2osr.data.images import tensor_to_pil
from dp2osr.device import compute_device
from dp2osr.digests import digest
from dp2osr.errors import UserError, counted, listed
from dp2osr.files import clear_parts
from dp2osr.outputs import check_output, refuse_inputs
from dp2osr.preference.groups import check_same_candidates
from dp2osr.preference.pairs import ranked
from dp2osr.preference.settings import ExportSettings
from dp2osr.results import RECORDS, Results
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.chosen import read_with_reward
from dp2osr.rewards.label import LazyDecoder
from dp2osr.rewards.reward import finite_groups_of, hybrid_reward
from dp2osr.sampling.pruned import check_kept
from dp2osr.sampling.store import CandidateStore, reading


def export_candidates(args: ExportSettings) -> None:
    """Write the `args.top` best (or worst) candidates of each group as PNGs; those that are there are kept.

    Groups without finite scores of the reward are passed over, and named.

    Raises:
        UserError: see `read_with_reward`, `check_same_candidates` and `Results`; more candidates than are scored, or some pruned away.
    """
    check_output(args.output_dir)
    store = CandidateStore(args.candidates_dir)
    refuse_inputs(args.output_dir, {"--candidates_dir": store.folder})
    table, config = read_with_reward(args.reward_config, store.folder, args.scores)
    check_same_candidates(store, table)
    scores = {spec.name: table.scores[spec.name][:, : args.num_candidates] for spec in config.metrics}
    finite = finite_groups_of(scores, config, table.gt_scores)
    if not finite.any():
        raise UserError(f"scores of {store.folder}: every group has a NaN or infinite score; run label_rewards.py again")
    known, of_gt = ({name: values[finite] for name, values in of.items()} for of in (scores, table.gt_scores))
    rewards = hybrid_reward(known, table.lower_better, config, of_gt)
    check_count(args, table.scores[config.metrics[0].name].shape[1])
    image_ids = [image_id for image_id, good in zip(table.image_ids, finite) if good]
    order = ranked(rewards)[:, :: -1 if args.worst else 1][:, : args.top]
    check_kept(store.folder, {image_id: numbers.tolist() for image_id, numbers in zip(image_ids, order)})
    settings = {"reward": config.name, "num_candidates": rewards.shape[1], "top": args.top, "worst": args.worst}
    results = Results(args.output_dir, settings)
    chosen = {image_id: dict(zip(names_of(image_id, args.top), numbers.tolist())) for image_id, numbers in zip(image_ids, order)}
    wanted = {name: made_of(store, image_id, m) for image_id, names in chosen.items() for name, m in names.items()}
    missing = set(results.missing(wanted))
    clear_parts(results.folder / RECORDS)
    clear_parts(results.folder)
    decode = LazyDecoder(store, compute_device(), Batches(8))
    with reading([store.folder], "export"):
        for row, (image_id, names) in enumerate(tqdm(chosen.items(), desc="export", unit="group")):
            lacking = {name: m for name, m in names.items() if name in missing}
            if lacking:
                for (name, m), image in zip(lacking.items(), decode_some(store, decode, image_id, list(lacking.values()))):
                    with results.writing(name, wanted[name], reward=float(rewards[row, m])) as part:
                        tensor_to_pil(image).save(part, format="PNG")
    left_out = [image_id for image_id, good in zip(table.image_ids, finite) if not good]
    told = f"; {len(left_out)} groups have a NaN or infinite score and are passed over: {listed(left_out)}" if left_out else ""
    print(f"{results.folder}: {counted(len(missing), 'image')} written, {len(wanted) - len(missing)} already there{told}")


def check_count(args: ExportSettings, scored: int) -> None:
    """Raise `UserError` unless the folder has as many scored candidates as are asked for."""
    if (args.num_candidates or 0) > scored:
        raise UserError(f"--num_candidates {args.num_candidates}: only {scored} candidates an image are scored")
    most = args.num_candidates or scored
    if args.top > most:
        raise UserError(f"--top {args.top}: of {most} candidates an image; give at most {most}")


def names_of(image_id: str, count: int) -> list[str]:
    """`photo.png`, or of several `photo_00.png`, `photo_01.png` ... by rank."""
    digits = max(2, len(str(count - 1)))
    return [f"{image_id}.png"] if count == 1 else [f"{image_id}_{rank:0{digits}d}.png" for rank in range(count)]


def made_of(store: CandidateStore, image_id: str, number: int) -> dict[str, Any]:
    """What an image is made of: its group's latents, and the candidate's number."""
    return {"id": image_id, "candidate": number, "latents": digest(Path(store.groups, image_id, "latents.safetensors"))}


def decode_some(store: CandidateStore, decode: LazyDecoder, image_id: str, numbers: Sequence[int]) -> torch.Tensor:
    """The images of some candidates of a group, (len(numbers), 3, H, W), as scoring sees them."""
    return decode(store.read(image_id, np.asarray(numbers).tolist()))
