"""A score table made of scores that others computed; training reads it as one of label_rewards.py."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dp2osr.digests import sha256
from dp2osr.errors import UserError, listed
from dp2osr.files import read_text
from dp2osr.locks import Locks
from dp2osr.outputs import check_no_input, check_output
from dp2osr.rewards.chosen import record_reward
from dp2osr.rewards.config import RewardConfig, load_reward_config, nearest
from dp2osr.rewards.data_card import LABELS
from dp2osr.rewards.label_import import read_labels
from dp2osr.rewards.settings import ImportScoresSettings
from dp2osr.rewards.table import GT_CANDIDATE, IDS, images_with_gaps, read_metadata, scores_path, write_scores
from dp2osr.sampling.store import CandidateStore

SHOWN = 40  # names in a message
OF_OTHERS = "unknown (imported)"  # version of pyiqa that made the scores


def import_scores(args: ImportScoresSettings) -> None:
    """Write the scores of `args.table` as the table of a candidate folder; its metadata says where they are from.

    Raises:
        UserError: an unreadable table, columns or rows that are missing, twice or too many (all are named), a direction that pyiqa has
            otherwise, or a table of label_rewards.py in the place.
    """
    output = scores_path(args.candidates_dir, args.output)
    check_output(output, "--output", is_file=True)
    check_no_input(output, [args.table])
    store = CandidateStore(args.candidates_dir)
    if Path(args.table).is_dir():
        return import_labels(args, store, output)
    config = load_reward_config(args.reward_config) if args.reward_config else None
    table = read_table(args.table)
    names = metric_names(table, args)
    described = describe_metrics(names, args, config)
    table = table[[*IDS, *names]].assign(candidate=renumbered(table, args))
    check_rows(table, store, args.table)
    columns = {name: numbers(table[name], args.table) for name in names}
    rows = table.index[np.lexsort([table["candidate"], table["image_id"]])]
    columns = {"image_id": table["image_id"].to_numpy(), "candidate": table["candidate"].to_numpy(), **columns}
    metadata: dict[str, Any] = {
        "pyiqa": OF_OTHERS,
        "metrics": described,
        "candidates": store.settings,
        "groups": {},
        "imported": origin_of(args.table),
    }
    if config:
        metadata |= record_reward(metadata, config, args.reward_config)
    put(output, {name: values[rows] for name, values in columns.items()}, metadata)
    images = table["image_id"].nunique()
    print(f"{output}: {len(table)} rows of {images} images imported with {', '.join(names)}")
    report_gaps(columns, names)


def import_labels(args: ImportScoresSettings, store: CandidateStore, output: Path) -> None:
    """The same of a folder of scripts/export_labels.py, which says itself what its columns are: the scores are equal to the bit."""
    columns, metadata = read_labels(args, store)
    numbered = {name: columns[name].to_numpy(zero_copy_only=False) for name in (*IDS, *metadata["metrics"])}
    check_rows(pd.DataFrame({name: numbered[name] for name in IDS}), store, args.table)
    put(output, columns, {**metadata, "imported": origin_of(Path(args.table) / LABELS)})
    names = list(metadata["metrics"])
    print(f"{output}: {len(numbered['candidate'])} rows imported with {', '.join(names)}")
    report_gaps(numbered, names)


def origin_of(path: str | Path) -> dict[str, str]:
    """What an imported table says of the file that it is from."""
    return {"table": Path(path).name, "sha256": sha256(path)}


def put(output: Path, columns: Mapping[str, Any], metadata: dict[str, Any]) -> None:
    """Write an imported table, unless one of label_rewards.py is in its place."""
    locks = Locks(output.parent)
    with locks.held(f"{output.name} table", wait=True):
        check_place(output)
        write_scores(output, columns, metadata)
    locks.leave()


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV (of commas, semicolons or tabs) or parquet file, image ids as text; `UserError` where it cannot be read."""
    try:
        if str(path).lower().endswith(".parquet"):
            table = pd.read_parquet(path)
        else:
            text = read_text(path)
            header = text.partition("\n")[0]
            table = pd.read_csv(io.StringIO(text), sep=max(",;\t", key=header.count), dtype={"image_id": str}, skipinitialspace=True)
    except (OSError, ValueError) as error:  # of pandas and pyarrow too
        raise UserError(f"{path}: not a readable CSV or parquet table ({' '.join(str(error).split())[:160]})") from None
    missing = [name for name in IDS if name not in table.columns]
    if missing:
        there = ", ".join(map(str, table.columns))
        raise UserError(f"{path}: has no column {' and '.join(missing)}; it has {there}")
    return table.assign(image_id=table["image_id"].astype(str)).reset_index(drop=True)


def metric_names(table: pd.DataFrame, args: ImportScoresSettings) -> list[str]:
    """The columns that are taken as metrics; `UserError` where there is none, or a flag names another."""
    known = [str(name) for name in table.columns if name not in IDS]
    for flag in ("metrics", "lower_better", "fr"):
        absent = [name for name in getattr(args, flag) or () if name not in known]
        if absent:
            raise UserError(f"--{flag} {absent[0]}: {args.table} has no such column{nearest(absent[0], known)}")
    names = args.metrics or known
    if not names:
        raise UserError(f"{args.table}: has no column beside image_id and candidate; one a metric is needed")
    return names


def describe_metrics(names: Sequence[str], args: ImportScoresSettings, config: RewardConfig | None) -> dict[str, dict[str, Any]]:
    """{metric: its direction and mode} as a score table has them.

    Raises:
        UserError: what is said of a metric is not what pyiqa or the reward says; or the reward has a metric that the table lacks.
    """
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    described: dict[str, dict[str, Any]] = {}
    of_reward = config.columns if config else {}
    for name in names:
        lower = name in args.lower_better
        other = "higher" if lower else "lower"
        known = DEFAULT_CONFIGS.get(name)
        if known and bool(known.get("lower_better", False)) != lower:
            right = "name it there" if known.get("lower_better") else "leave it out there"
            raise UserError(f"--lower_better: of pyiqa's {name} {other} is better; {right}, or rename the column")
        if name in of_reward and of_reward[name]["lower_better"] != lower:
            raise UserError(f"--lower_better: the reward '{args.reward_config}' says that of {name} {other} is better")
        in_fr = name in args.fr or bool(config and name in {spec.name for spec in config.fr})
        mode = known["metric_mode"] if known else "FR" if in_fr else "NR"
        described[name] = {"lower_better": lower, "mode": mode, "options": {}, "column": True}
    missing = [spec.name for spec in config.metrics if spec.name not in described] if config else []
    if missing:
        raise UserError(
            f"{args.table}: lacks {listed(missing)} of the reward '{args.reward_config}'; give another --reward_config, or none"
        )
    return described


def renumbered(table: pd.DataFrame, args: ImportScoresSettings) -> np.ndarray:
    """(rows,) candidate numbers from 0, the GT's −1; `UserError` where a row has no number."""
    values = pd.to_numeric(table["candidate"], errors="coerce").to_numpy(float)
    bad = np.flatnonzero(~np.isfinite(values) | (values != np.round(values)))
    if len(bad):
        raise UserError(f"{args.table}: column 'candidate' has no whole number in {len(bad)} rows ({listed([*map(str, bad)])}, from 0)")
    found = values.astype(np.int64)
    return np.where(found == GT_CANDIDATE, GT_CANDIDATE, found - args.first_number)


def numbers(column: pd.Series, path: str | Path) -> np.ndarray:
    """(rows,) float64, NaN where a cell is empty; `UserError` where it holds something else."""
    found = pd.to_numeric(column, errors="coerce")
    bad = column.index[found.isna() & column.notna()]
    if len(bad):
        shown = listed([f"{column[row]!r} in row {row}" for row in bad[:SHOWN]])
        raise UserError(f"{path}: column '{column.name}' has no number in {len(bad)} rows ({shown}); leave the cell empty, or mend it")
    return found.to_numpy(float)


def check_rows(table: pd.DataFrame, store: CandidateStore, path: str | Path) -> None:
    """Raise `UserError` that names all images with rows that are missing, twice or too many."""
    ids, total = store.ids(), int(store.settings.get("num_candidates", 0))
    candidates = table[table["candidate"] != GT_CANDIDATE]
    found = {str(image_id): values.to_numpy() for image_id, values in candidates.groupby("image_id")["candidate"]}
    count = min(total, max((len(set(values.tolist())) for values in found.values()), default=0)) or total
    problems = [f"{image_id}: no such candidate group" for image_id in sorted(set(table["image_id"]) - set(ids))]
    for image_id in ids:
        values = found.get(image_id, np.zeros(0, int))
        numbers_there, times = np.unique(values, return_counts=True)
        wrong = {
            "no candidate": [] if len(values) else ["at all"],
            "lacks": sorted(set(range(count)) - set(numbers_there.tolist())) if len(values) else [],
            "has twice": numbers_there[times > 1].tolist(),
            f"has, of {total},": numbers_there[(numbers_there < 0) | (numbers_there >= count)].tolist(),
        }
        told = [f"{what} {listed([*map(str, which)])}" for what, which in wrong.items() if which]
        problems += [f"{image_id}: {', '.join(told)}"] if told else []
    twice = table[table["candidate"] == GT_CANDIDATE]["image_id"].value_counts()
    problems += [f"{image_id}: the GT (-1) {times} times" for image_id, times in twice.items() if times > 1]
    if problems:
        raise UserError(
            f"{path}: rows of {len(problems)} images do not fit the {len(ids)} groups of {store.folder}: {listed(problems, SHOWN)}; every "
            "group needs the same candidates, each once, numbered from --first_number"
        )


def check_place(output: Path) -> None:
    """Raise `UserError` where another table than an imported one is at `output`."""
    if output.exists() and "imported" not in read_metadata(output):
        raise UserError(
            f"{output}: is a table of label_rewards.py, which is not overwritten; name another one by --output, or add columns to it "
            "(docs/rewards.md)"
        )


def report_gaps(columns: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """Print which images have scores that are empty, NaN or infinite: training passes over them."""
    ids = images_with_gaps(columns, names)
    if ids:
        print(f"{len(ids)} of them have an empty, NaN or infinite score; training passes over those whose reward needs it: {listed(ids)}")
