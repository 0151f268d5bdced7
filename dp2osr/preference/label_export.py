"""The labels of a candidate folder for others: a parquet file that `datasets` loads, one row a candidate, with a card."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dp2osr.errors import UserError, listed
from dp2osr.files import read_json
from dp2osr.hub.cards import without_places, write_card
from dp2osr.outputs import check_output, refuse_inputs
from dp2osr.preference.groups import check_same_candidates
from dp2osr.preference.settings import ExportLabelsSettings
from dp2osr.rewards.chosen import read_with_reward
from dp2osr.rewards.config import RewardConfig
from dp2osr.rewards.data_card import LABELS, OF_GT, data_card
from dp2osr.rewards.reward import finite_groups_of, hybrid_reward
from dp2osr.rewards.table import (
    GT_CANDIDATE,
    IDS,
    ScoreTable,
    own_columns,
    read_metadata,
    scores_path,
    sidecar_path,
    write_table,
)
from dp2osr.sampling.store import CandidateStore, reading

ADDED = ("seed", "reward")  # columns of the export beside those of the score table


def export_labels(args: ExportLabelsSettings) -> None:
    """Write `candidates.parquet`, `gt.parquet` where true images were scored, and the card; scores are those of the table, to the bit.

    Raises:
        UserError: see `read_with_reward` and `check_same_candidates`; files of others in the place; a column of the user's that has the
            name of one that is added.
    """
    output = Path(args.output_dir)
    check_output(output)
    store, path = CandidateStore(args.candidates_dir), scores_path(args.candidates_dir, args.scores)
    refuse_inputs(output, {"--candidates_dir": store.folder, "--scores": path}, (LABELS, OF_GT))
    check_place(output)
    with reading([store.folder], "export"):
        table, config = read_with_reward(args.reward_config, store.folder, args.scores)
        check_same_candidates(store, table)
        columns, metadata = pq.read_table(path), read_metadata(path)
        own = own_columns(columns.column_names, metadata)
        taken = [name for name in ADDED if name in own]
        if taken:
            raise UserError(f"{path}: has a column '{taken[0]}' of your own, and one of that name is added; rename it")
        candidate = columns["candidate"].to_numpy()
        kept = [name for name in columns.column_names if name in {*IDS, *metadata["metrics"], *own}]
        rows = columns.select(kept).filter(pa.array(candidate != GT_CANDIDATE))
        of_gt = columns.select(kept).filter(pa.array(candidate == GT_CANDIDATE))
        seeds = seeds_of(store, rows)
    about = {**without_places(metadata), "candidates": without_places(store.settings), "gt_path": None, "exported": {"reward": config.name}}
    about["reward_files"] = {name: name for name in metadata.get("reward_configs", {})}
    added = {"seed": pa.array(seeds, pa.int64()), "reward": pa.array(rewards_of(rows, table, config), pa.float64(), from_pandas=True)}
    written = {**{name: rows[name] for name in IDS}, **added, **{name: rows[name] for name in kept if name not in IDS}}
    if of_gt.num_rows:
        write_table(output / OF_GT, {name: of_gt[name] for name in kept}, about)
    else:
        (output / OF_GT).unlink(missing_ok=True)
    write_table(output / LABELS, written, about, sidecar=True)
    write_card(
        output, data_card(str(args.output_dir), table.image_ids, store.settings, about, written, config, has_gt=bool(of_gt.num_rows))
    )
    print(f"{output / LABELS}: {rows.num_rows} candidates of {len(table.image_ids)} images, reward {config.name}")


def check_place(output: Path) -> None:
    """Raise `UserError` where the files to be written are another program's."""
    for name in (LABELS, OF_GT, sidecar_path(LABELS).name):
        path, mine = output / name, False
        if not path.exists():
            continue
        with suppress(UserError, TypeError):
            mine = "exported" in (read_json(path) if name.endswith(".json") else read_metadata(path))
        if not mine:
            raise UserError(f"{path}: is there and no export of labels; give another --output_dir")


def seeds_of(store: CandidateStore, rows: pa.Table) -> list[int | None]:
    """The seed of each row's candidate; None where the group does not say it, as imported ones."""
    of_image: dict[str, list[int]] = {}
    found: list[int | None] = []
    for image_id, number in zip(rows["image_id"].to_pylist(), rows["candidate"].to_pylist(), strict=True):
        if image_id not in of_image:
            of_image[image_id] = read_json(store.groups / image_id / "group.json")["seeds"]
        seeds = of_image[image_id]
        found.append(seeds[number] if number < len(seeds) and isinstance(seeds[number], int) else None)
    return found


def rewards_of(rows: pa.Table, table: ScoreTable, config: RewardConfig) -> np.ndarray:
    """(rows,) rewards; NaN in groups with a NaN or infinite score, which are named."""
    scores = {spec.name: table.scores[spec.name] for spec in config.metrics}
    finite = finite_groups_of(scores, config, table.gt_scores)
    rewards = np.full(next(iter(scores.values())).shape, np.nan)
    if finite.any():
        known, of_gt = ({name: values[finite] for name, values in of.items()} for of in (scores, table.gt_scores))
        rewards[finite] = hybrid_reward(known, table.lower_better, config, of_gt)
    left_out = [image_id for image_id, good in zip(table.image_ids, finite, strict=True) if not good]
    if left_out:
        print(f"{len(left_out)} groups have a NaN or infinite score, and no reward: {listed(left_out)}")
    place = {image_id: row for row, image_id in enumerate(table.image_ids)}
    groups = np.array([place[image_id] for image_id in rows["image_id"].to_pylist()], int)
    return rewards[groups, rows["candidate"].to_numpy().astype(int)]
