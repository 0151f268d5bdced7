"""Labels that others published with scripts/export_labels.py, taken back as the score table of the same candidates."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dp2osr.digests import digest
from dp2osr.errors import UserError, listed
from dp2osr.files import read_json
from dp2osr.rewards.data_card import LABELS, OF_GT
from dp2osr.rewards.settings import ImportScoresSettings
from dp2osr.rewards.table import GT_CANDIDATE, IDS, metadata_of, open_parquet, sidecar_path
from dp2osr.sampling.store import CandidateStore

KNOWN_ALREADY = ("lower_better", "fr", "metrics", "first_number", "reward_config")  # flags that a folder of labels answers itself


def read_labels(args: ImportScoresSettings, store: CandidateStore) -> tuple[dict[str, pa.ChunkedArray], dict[str, Any]]:
    """(columns, metadata) of the score table in a folder of labels, rows in the order of label_rewards.py.

    Raises:
        UserError: no such folder, or not of scripts/export_labels.py; flags that would do nothing; labels of other candidates.
    """
    folder = Path(args.table)
    ignored = [f"--{name}" for name in KNOWN_ALREADY if getattr(args, name)]
    if ignored:
        raise UserError(f"{', '.join(ignored)}: would do nothing with the folder {folder}, which says it itself; leave it out")
    rows, metadata = open_labels(folder)
    check_same_samples(folder, rows, metadata, store)
    names = [name for name in rows.column_names if name not in ("seed", "reward")]
    parts = [rows.select(names)]
    if (folder / OF_GT).is_file():
        parts.append(read_parquet(folder / OF_GT).select(names))
    table = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
    candidate = table["candidate"].to_numpy()
    last = np.where(candidate == GT_CANDIDATE, np.iinfo(np.int32).max, candidate)  # the GT stands behind its image's candidates
    table = table.take(pa.array(np.lexsort([last, table["image_id"].to_numpy(zero_copy_only=False).astype(str)])))
    kept = {key: value for key, value in metadata.items() if key != "exported"}
    return {name: table[name] for name in names}, {**kept, "candidates": store.settings}


def open_labels(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """(rows, metadata) of `candidates.parquet`; where `datasets` has written it anew, the metadata are those of the JSON beside it."""
    path = folder / LABELS
    if not path.is_file():
        raise UserError(f"{folder}: has no {LABELS}; give a folder of scripts/export_labels.py, or a .csv or .parquet table")
    rows = read_parquet(path)
    metadata = metadata_of(path, rows.schema)
    lacking = [name for name in (*IDS, "seed", *metadata.get("metrics", ())) if name not in rows.column_names]
    if "exported" not in metadata or lacking:
        reason = f"lacks the column {lacking[0]}" if lacking else f"neither it nor {sidecar_path(path).name} says what made it"
        raise UserError(f"{path}: is not as scripts/export_labels.py wrote it ({reason}); give the file itself to read it as a plain table")
    return rows, metadata


def read_parquet(path: Path) -> pa.Table:
    """A parquet file; `UserError` where it cannot be read."""
    return open_parquet(path, pq.read_table, "fetch it again")


def check_same_samples(folder: Path, rows: pa.Table, metadata: dict[str, Any], store: CandidateStore) -> None:
    """Raise `UserError` where the candidates here are not those that were scored, by their seeds and their latents' hash; all are named."""
    scored, there = metadata.get("groups") or {}, set(store.ids())
    other = []
    for image_id, of_image in rows.select(["image_id", "candidate", "seed"]).to_pandas().groupby("image_id"):
        if image_id not in there:
            continue  # `check_rows` names it
        seeds = read_json(store.groups / str(image_id) / "group.json")["seeds"]
        numbers = of_image["candidate"].tolist()
        wanted = [seeds[number] if 0 <= number < len(seeds) else None for number in numbers]
        found = [None if pd.isna(seed) else int(seed) for seed in of_image["seed"]]
        sha = (scored.get(image_id) or {}).get("latents_sha256")
        if found != wanted or sha and sha != digest(store.groups / str(image_id) / "latents.safetensors"):
            other.append(str(image_id))
    if other:
        raise UserError(
            f"{folder}: {len(other)} of its images have other candidates in {store.folder} (seeds or latents differ): {listed(other)}; "
            f"give --table {folder / LABELS} with --metrics and --lower_better to take the scores all the same"
        )
