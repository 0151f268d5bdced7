"""The score table: one parquet row a candidate, raw scores, and in the schema and a JSON beside it what made them.

Users add columns of their own with pandas, which drops the schema's metadata: then the JSON is read.
"""

import json
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dp2osr.errors import UserError
from dp2osr.files import write_text
from dp2osr.rewards.config import RewardConfig, nearest

METADATA_KEY = b"dp2osr"
GT_CANDIDATE = -1
SCORES = "scores.parquet"  # in a candidate folder
IDS = ("image_id", "candidate")


def scores_path(candidates_dir: str | Path, scores: str | Path | None = None) -> Path:
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


def sidecar_path(path: str | Path) -> Path:
    """The JSON beside a score table that holds its metadata once more."""
    return Path(path).with_name(f"{Path(path).name}.json")


def sidecar_text(metadata: dict[str, Any]) -> str:
    """What such a file holds."""
    return json.dumps(metadata, sort_keys=True, indent=1) + "\n"


def write_sidecar(path: str | Path, metadata: dict[str, Any]) -> None:
    """Write the metadata of the score table at `path` beside it."""
    write_text(sidecar_path(path), sidecar_text(metadata))


def write_scores(
    path: str | Path, columns: Mapping[str, np.ndarray | pa.ChunkedArray], metadata: dict[str, Any], sidecar: bool = True
) -> None:
    """Write a score table; the file is whole or absent.

    Args:
        path: parquet file to write.
        columns: `image_id` (N,) strings, `candidate` (N,) integers (−1 = the GT), metric name → (N,) raw scores
            (NaN for an FR metric of the GT); the user's own columns as arrow arrays of any type.
        metadata: JSON-able; needs `metrics`: {name: {"lower_better", "mode", "options"}}.
        sidecar: whether `sidecar_path` is written, too.
    """
    types = {"image_id": pa.string(), "candidate": pa.int32()}
    arrays = {
        name: values if isinstance(values, pa.ChunkedArray) else pa.array(values, types.get(name, pa.float64()))
        for name, values in columns.items()
    }
    write_table(path, arrays, metadata, sidecar)


def write_table(
    path: str | Path, columns: Mapping[str, np.ndarray | pa.Array | pa.ChunkedArray], metadata: dict[str, Any], sidecar: bool = False
) -> None:
    """Write columns of equal length as parquet, with JSON-able metadata in its schema; the file is whole or absent."""
    path = Path(path)
    arrow = (pa.Array, pa.ChunkedArray)
    table = pa.table({name: values if isinstance(values, arrow) else pa.array(values) for name, values in columns.items()})
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table, part)
    if sidecar:
        write_sidecar(path, metadata)
    part.replace(path)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata dictionary of a score table, without reading the scores. Raises UserError as `read_columns`."""
    return _metadata(path, _open(path, pq.read_schema))


def read_columns(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(columns, metadata) as `write_scores` takes them, the columns as numpy arrays; the user's own are among them.

    Raises:
        UserError: no such file, not parquet, or not a score table.
    """
    table = _open(path, pq.read_table)
    metadata = _metadata(path, table.schema)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    columns["image_id"] = columns["image_id"].astype(str).astype(object)
    columns["candidate"] = _numbers(path, table, "candidate").astype(np.int32)
    return columns | {name: _numbers(path, table, name) for name in metadata["metrics"]}, metadata


def _numbers(path: str | Path, table: pa.Table, name: str) -> np.ndarray:
    """(N,) float64 of a column, NaN where it is empty; `UserError` where it holds something else."""
    kind = table[name].type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(f"{path}: column '{name}' holds {kind}, and a metric needs numbers; write it as numbers")
    values = table[name].cast(pa.float64()).to_numpy()
    if name == "candidate" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise UserError(f"{path}: column 'candidate' must hold a whole number in every row; write the table with the rows that it had")
    return values


def own_columns(names: Iterable[str], metadata: dict[str, Any]) -> list[str]:
    """Of the columns of a score table those that are the user's: neither ids nor metrics, nor an index that pandas wrote."""
    ours = {*IDS, *metadata["metrics"]}
    return [name for name in names if name not in ours and not re.fullmatch(r"__index_level_\d+__", name)]


def read_scores(path: str | Path, config: RewardConfig | None = None) -> ScoreTable:
    """Read a score table as arrays over groups.

    Args:
        config: `RewardConfig`; the user's columns that it names are read as metrics.

    Raises:
        UserError: as `read_columns`; no candidate; groups of different sizes, a candidate missing or given twice; a column of the config
            that is missing, holds no numbers, or is a metric of label_rewards.py of another direction or mode.
    """
    columns, metadata = read_columns(path)
    if config and config.columns:
        columns, metadata = _with_own_metrics(path, columns, metadata, config)
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
            if metric.get("column") and np.isnan(gt_scores[name]).all():
                del gt_scores[name]  # the user has scored the candidates alone
    directions = {name: bool(metric["lower_better"]) for name, metric in metadata["metrics"].items()}
    return ScoreTable(image_ids.tolist(), scores, gt_scores, directions, metadata)


def _with_own_metrics(
    path: str | Path, columns: dict[str, np.ndarray], metadata: dict[str, Any], config: RewardConfig
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(columns, metadata) in which the config's columns are metrics as the others are."""
    own = own_columns(columns, metadata)
    for name, described in config.columns.items():
        computed = metadata["metrics"].get(name)
        if computed and any(computed[key] != described[key] for key in ("lower_better", "mode")):
            better = "lower" if computed["lower_better"] else "higher"
            problem = f"'{name}' is a metric of label_rewards.py ({computed['mode']}, {better} is better)"
            raise UserError(f"{path}: {problem}, and the reward config '{config.name}' says otherwise; name it there without 'better'")
        if name not in columns:
            where = f"which the reward config '{config.name}' names as one of your own"
            hint = nearest(name, own) if own else ""
            raise UserError(f"{path}: has no column '{name}', {where}; add it (docs/rewards.md) or take it out of the config{hint}")
    table = pa.table({name: pa.array(columns[name], from_pandas=True) for name in config.columns})
    columns = columns | {name: _numbers(path, table, name) for name in config.columns}
    return columns, metadata | {"metrics": metadata["metrics"] | {**config.columns, **metadata["metrics"]}}


def _check_complete(path: str | Path, image_ids: np.ndarray, times: np.ndarray) -> None:
    wrong = np.argwhere(times != 1)
    if len(wrong):
        group, candidate = wrong[0]
        problem = "is missing" if times[group, candidate] == 0 else "is given more than once"
        where = f"candidate {candidate} of image '{image_ids[group]}'"
        raise UserError(f"{path}: {where} {problem}; every group must hold the same candidates, run label_rewards.py again")


def _open(path: str | Path, reader: Callable[[str | Path], Any]) -> Any:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such score table; label_rewards.py makes it")
    return open_parquet(path, reader, "delete it and run label_rewards.py again")


def open_parquet(path: str | Path, reader: Callable[[str | Path], Any], way: str) -> Any:
    """What a `reader` of pyarrow makes of a parquet file; `UserError`, with the `way` out, where it cannot."""
    try:
        return reader(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0][:160]}); {way}") from None


def metadata_of(path: str | Path, schema: pa.Schema) -> dict[str, Any]:
    """What a table says of its making: in its schema or, where pandas or `datasets` has written it anew, beside it; {} if nowhere."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    try:
        content = json.loads(raw or sidecar_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _metadata(path: str | Path, schema: pa.Schema) -> dict[str, Any]:
    metadata, beside = metadata_of(path, schema), sidecar_path(path)
    if "metrics" not in metadata:
        problem = (
            f"a parquet file, but not a score table of label_rewards.py: nothing in it or in {beside.name} beside it says what made it"
        )
        raise UserError(f"{path}: {problem}; copy that .json from beside the table as it was, or move this file away and label again")
    missing = {*IDS, *metadata["metrics"]} - set(schema.names)
    if missing:
        ways = "write the table with all the columns that it had, or move it away and run label_rewards.py again"
        raise UserError(f"{path}: column '{min(missing)}' is missing; {ways}")
    return metadata


def images_with_gaps(columns: Mapping[str, np.ndarray], names: Iterable[str], with_gt: Container[str] = ()) -> list[str]:
    """Sorted ids of the images of which a candidate has a score that is NaN or infinite; of the metrics `with_gt`, or the GT."""
    bad, is_gt = np.zeros(len(columns["candidate"]), bool), columns["candidate"] == GT_CANDIDATE
    for name in names:
        bad |= ~np.isfinite(columns[name]) & (~is_gt if name not in with_gt else True)
    return sorted(set(columns["image_id"][bad].astype(str)))
