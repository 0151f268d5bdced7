"""The score table: one parquet row a candidate, raw scores, and in the schema what made them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dp2osr.errors import UserError

METADATA_KEY = b"dp2osr"
GT_CANDIDATE = -1
SCORES = "scores.parquet"  # in a candidate folder


def scores_path(candidates_dir, scores=None):
    """The score table that a program reads: the one given, else the candidate folder's own."""
    return Path(scores or Path(candidates_dir) / SCORES)


@dataclass(frozen=True)
class ScoreTable:
    """Raw scores of G groups of M candidates.

    Attributes:
        image_ids: G ids, sorted.
        scores: metric → (G, M) float64, column m = candidate m.
        gt_scores: NR metric → (G,) float64, the GT's own score; empty where no GT was scored.
        lower_better: metric → direction, as pyiqa says.
        metadata: `{"pyiqa", "metrics", "candidates", ...}` as written.
    """

    image_ids: list[str]
    scores: dict[str, np.ndarray]
    gt_scores: dict[str, np.ndarray]
    lower_better: dict[str, bool]
    metadata: dict = field(repr=False, default_factory=dict)


def write_scores(path, columns, metadata):
    """Write a score table; the file is whole or absent.

    Args:
        path: parquet file to write.
        columns: `image_id` (N,) strings, `candidate` (N,) integers (−1 = the GT), metric name → (N,) raw scores
            (NaN for an FR metric of the GT).
        metadata: JSON-able; needs `metrics`: {name: {"lower_better", "mode", "options"}}.
    """
    types = {"image_id": pa.string(), "candidate": pa.int32()}
    write_table(path, {name: pa.array(values, types.get(name, pa.float64())) for name, values in columns.items()}, metadata)


def write_table(path, columns, metadata):
    """Write columns of equal length as parquet, with JSON-able metadata in its schema; the file is whole or absent."""
    path = Path(path)
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table, part)
    part.replace(path)


def read_metadata(path):
    """The metadata dictionary of a score table, without reading the scores. Raises UserError as `read_columns`."""
    return _metadata(path, _open(path, pq.read_schema))


def read_columns(path):
    """(columns, metadata) as `write_scores` takes them, the columns as numpy arrays.

    Raises:
        UserError: no such file, not parquet, or not a score table.
    """
    table = _open(path, pq.read_table)
    metadata = _metadata(path, table.schema)
    missing = {"image_id", "candidate", *metadata["metrics"]} - set(table.column_names)
    if missing:
        raise UserError(f"{path}: column '{min(missing)}' is missing; run label_rewards.py again")
    return {name: table[name].to_numpy() for name in table.column_names}, metadata


def read_scores(path):
    """Read a score table as arrays over groups.

    Raises:
        UserError: as `read_columns`; no candidate; groups of different sizes, a candidate missing or given twice.
    """
    columns, metadata = read_columns(path)
    image_ids, group = np.unique(columns["image_id"].astype(str), return_inverse=True)
    candidate = columns["candidate"].astype(np.int64)
    count = int(candidate.max(initial=-1)) + 1
    if not count:
        raise UserError(f"{path}: holds no candidate's scores")
    is_gt = candidate == GT_CANDIDATE
    position = np.where(is_gt, 0, candidate) + group * count
    _check_complete(path, image_ids, np.bincount(position[~is_gt], minlength=len(image_ids) * count).reshape(-1, count))
    has_gt = np.bincount(group[is_gt], minlength=len(image_ids))
    scores, gt_scores = {}, {}
    for name, metric in metadata["metrics"].items():
        values = np.empty(len(image_ids) * count)
        values[position[~is_gt]] = columns[name][~is_gt]
        scores[name] = values.reshape(-1, count)
        if metric["mode"] == "NR" and (has_gt == 1).all():
            gt_scores[name] = np.empty(len(image_ids))
            gt_scores[name][group[is_gt]] = columns[name][is_gt]
    directions = {name: bool(metric["lower_better"]) for name, metric in metadata["metrics"].items()}
    return ScoreTable(image_ids.tolist(), scores, gt_scores, directions, metadata)


def _check_complete(path, image_ids, times):
    wrong = np.argwhere(times != 1)
    if len(wrong):
        group, candidate = wrong[0]
        problem = "is missing" if times[group, candidate] == 0 else "is given more than once"
        where = f"candidate {candidate} of image '{image_ids[group]}'"
        raise UserError(f"{path}: {where} {problem}; every group must hold the same candidates, run label_rewards.py again")


def _open(path, reader):
    if not Path(path).is_file():
        raise UserError(f"{path}: no such score table; label_rewards.py makes it")
    try:
        return reader(path)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable parquet file ({reason}); delete it and run label_rewards.py again") from None


def _metadata(path, schema):
    raw = (schema.metadata or {}).get(METADATA_KEY)
    metadata = json.loads(raw) if raw else {}
    if "metrics" not in metadata:
        raise UserError(f"{path}: a parquet file, but not a score table of label_rewards.py")
    return metadata
