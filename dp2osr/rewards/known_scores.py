"""What is known of the scores of a candidate folder: a part file a group, with what its scores were made of, and the merged table."""

import shutil
from collections.abc import Mapping
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dp2osr.digests import digest
from dp2osr.errors import UserError, listed
from dp2osr.files import LONGEST_NAME, short_name
from dp2osr.locks import DOOR, Locks
from dp2osr.rewards.chosen import record_reward
from dp2osr.rewards.metrics import MetricSuite, bad_score, pyiqa_version
from dp2osr.rewards.table import GT_CANDIDATE, images_with_gaps, own_columns, read_columns, sidecar_path, write_scores, write_sidecar
from dp2osr.sampling.store import CandidateStore

Provenance = dict[str, str | None]
Table = tuple[dict[str, np.ndarray], dict[str, Any]]  # columns, metadata


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; UserError if it cannot be read."""
    try:
        return digest(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make this candidate group again") from None


class KnownScores:
    """Scores of the groups of one store by one suite, as the part files and the table at `output` have them; see `Labeller`."""

    def __init__(
        self, store: CandidateStore, suite: MetricSuite, gt_paths: Mapping[str, Path], output: str | Path, reward: dict[str, Any] | None
    ) -> None:
        self.store, self.suite, self.gt_paths = store, suite, gt_paths
        self.output, self.reward = Path(output), reward
        self.parts_dir = self.output.with_name(self.output.name + ".parts")
        self.wanted, self.locks = suite.describe(), Locks(self.output.parent)

    def _lock(self, image_id: str) -> str:
        return f"{self.output.name} {image_id}"

    def claim(self) -> None:
        """Say by which options and precision each metric is scored here, until the locks are left.

        Raises:
            UserError: another job scores one of them otherwise.
        """
        with self.locks.held(DOOR, wait=True):
            self.locks.claim({f"{name} in {self.output.name}": about for name, about in self.wanted.items()})

    def _known(self, image_id: str, provenance: Provenance) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Columns and metric descriptions of a group that were made of these latents and this GT."""
        columns, described, of = self._previous(image_id)
        return (columns, described) if of == provenance else ({}, {})

    def _missing(self, image_id: str, provenance: Provenance) -> list[str]:
        """Names of the metrics that a group's known scores lack, or have as NaN or infinity."""
        columns, described = self._known(image_id, provenance)
        return [name for name in self.wanted if described.get(name) != self.wanted[name] or self._bad(name, columns)]

    def _bad(self, name: str, columns: dict[str, np.ndarray]) -> str | None:
        """What is wrong with a group's scores, or None; a full-reference metric has none for the GT."""
        rows = slice(None) if self.suite.modes[name] == "NR" else columns["candidate"] != GT_CANDIDATE
        return bad_score(name, columns[name][rows], columns["image_id"][0], columns["candidate"][rows])

    def merge(self) -> bool:
        """Write `output` from the part files and its own earlier rows; returns whether there was anything to write.

        A metric that an earlier run scored for every group is kept beside the ones now asked for, and so are the user's own columns.
        """
        with self.locks.held(self._lock("table"), wait=True):
            return self._merge()

    def _merge(self) -> bool:
        image_ids = self.store.ids()
        whole = not self.parts_dir.exists() and self._earlier and set(self._earlier_rows) == set(image_ids)
        if self._earlier and whole and self._made_with(self._earlier[1]["metrics"]).items() <= self._earlier[1].items():
            if not sidecar_path(self.output).exists():
                write_sidecar(self.output, self._earlier[1])
            return False
        sources = [self._previous(image_id) for image_id in image_ids]
        described = [of_group for _, of_group, _ in sources]
        known = {name: description for of_group in described for name, description in of_group.items()} | self.wanted
        common = {name: known[name] for name in known if all(of_group.get(name) == known[name] for of_group in described)}
        for name in self.wanted.keys() - common.keys():
            raise UserError(f"{self.parts_dir}: a group lacks metric '{name}'; run the same command again")
        columns = {key: np.concatenate([columns[key] for columns, _, _ in sources]) for key in ("image_id", "candidate", *common)}
        provenance = {image_id: of for image_id, (_, _, of) in zip(image_ids, sources, strict=True)}
        metadata = {**(self._earlier[1] if self._earlier else {}), **self._metadata(common, provenance), **self._made_with(common)}
        write_scores(self.output, columns | self._own_columns(columns, provenance), metadata)
        shutil.rmtree(self.parts_dir, ignore_errors=True)
        return True

    def _own_columns(self, columns: dict[str, np.ndarray], provenance: Mapping[str, Provenance | None]) -> dict[str, pa.ChunkedArray]:
        """The user's columns of the earlier table for the rows of `columns`; empty where a group is new, or scored anew.

        Where values go that way, the table as it was stays beside the new one. Both are said.
        """
        names = own_columns(*self._earlier) if self._earlier else []
        if not names or not self._earlier:
            return {}
        earlier, metadata = self._earlier
        groups = metadata.get("groups", {}) if self._holds(metadata) else {}
        places = {row: place for place, row in enumerate(zip(earlier["image_id"], earlier["candidate"].tolist(), strict=True))}
        rows = list(zip(columns["image_id"], columns["candidate"].tolist(), strict=True))
        same = {image_id for image_id, of in provenance.items() if groups.get(image_id) == of}
        found = [places.get(row) if row[0] in same else None for row in rows]
        table = pq.read_table(self.output, columns=names)
        kept = {name: table[name].take(pa.array(found, pa.int64())) for name in names}
        print(f"{self.output}: kept your columns {', '.join(names)}")
        dropped = sorted(set(range(table.num_rows)) - set(found))
        lost = sorted({earlier["image_id"][row] for row in dropped if any(table[name][row].as_py() is not None for name in names)})
        if lost:
            before = self._copy_of_output(metadata)
            why = "their candidates or GT are others now, or gone"
            print(f"warning: their values for {len(lost)} images ({listed(lost)}) are left out: {why}; the table as it was is {before}")
        return kept

    def _copy_of_output(self, metadata: dict[str, Any]) -> Path:
        """Copy the earlier table, with its sidecar, to a name that is free; returns its path."""
        number = next(number for number in count(1) if not self.output.with_name(f"{self.output.name}.before{number}").exists())
        path = self.output.with_name(f"{self.output.name}.before{number}")
        shutil.copyfile(self.output, path)
        write_sidecar(path, metadata)
        return path

    def check_version(self) -> None:
        """Refuse to go on with a table of another pyiqa (UserError): its numbers do not mix with this one's, and none shall be lost."""
        if self._earlier and self._earlier[1].get("pyiqa") != pyiqa_version():
            there = self._earlier[1].get("pyiqa")
            problem = f"was scored with pyiqa {there}, and this is {pyiqa_version()}; numbers of two versions do not mix"
            raise UserError(f"{self.output}: {problem}: name another table by --output, or move this one away")

    def check_own_columns(self) -> None:
        """Refuse to score a metric that has the name of a column which the user has added (UserError)."""
        taken = sorted(set(own_columns(*self._earlier)) & set(self.wanted)) if self._earlier else []
        if taken:
            problem = f"has a column '{taken[0]}' of your own, and a metric of that name is to be scored"
            raise UserError(f"{self.output}: {problem}; rename your column, or name another table by --output")

    def bad_groups(self) -> list[str]:
        """Ids of the groups of the written table of which a candidate, or the GT, has a NaN or infinite score."""
        columns, _ = read_columns(self.output)
        return images_with_gaps(columns, self.wanted, with_gt=[name for name in self.wanted if self.suite.modes[name] == "NR"])

    def _provenance(self, image_id: str) -> Provenance:
        """What a group's scores were made from."""
        gt = self.gt_paths.get(image_id)
        return {
            "latents_sha256": file_hash(self.store.groups / image_id / "latents.safetensors"),
            "gt_sha256": file_hash(gt) if gt else None,
        }

    def _metadata(self, metrics: dict[str, Any], groups: Mapping[str, Provenance | None]) -> dict[str, Any]:
        return {"pyiqa": pyiqa_version(), "metrics": metrics, "candidates": self.store.settings, "groups": groups}

    def _made_with(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """What the table says of its making: this reward and the earlier ones whose metrics it still has."""
        if self.reward is None:
            return {}
        told = dict(self._earlier[1]) if self._earlier else {}
        kept = {
            name: content
            for name, content in told.get("reward_configs", {}).items()
            if all(spec["name"] in metrics or spec.get("better") for spec in content["fr"] + content["nr"])
        }
        return record_reward(told | {"reward_configs": kept}, **self.reward)

    def _part(self, image_id: str) -> Path:
        """The part file of a group; a name that would be too long for a file system is replaced by its hash."""
        name = f"{image_id}.parquet"
        return self.parts_dir / (name if len(name.encode()) <= LONGEST_NAME else f"{short_name(image_id)}.parquet")

    def _previous(self, image_id: str) -> tuple[dict[str, np.ndarray], dict[str, Any], Provenance | None]:
        """(columns, metric descriptions, provenance) known of a group: from its part file, else from the earlier output."""
        part = self._part(image_id)
        if part.exists():
            columns, metadata = read_columns(part)
            if self._holds(metadata):
                return columns, metadata["metrics"], metadata["groups"][image_id]
        if self._earlier and image_id in self._earlier_rows and self._holds(self._earlier[1]):
            columns, metadata = self._earlier
            rows = self._earlier_rows[image_id]
            return {name: values[rows] for name, values in columns.items()}, metadata["metrics"], metadata["groups"].get(image_id)
        return {}, {}, None

    def _holds(self, metadata: dict[str, Any]) -> bool:
        """Whether scores were made by this pyiqa of candidates with these settings."""
        return metadata.get("pyiqa") == pyiqa_version() and metadata.get("candidates") == self.store.settings

    @property
    def _earlier(self) -> Table | None:
        """Columns and metadata of the output as it is now, which another job may have written; None if there is none."""
        return _table(self.output, _written(self.output))

    @property
    def _earlier_rows(self) -> dict[str, np.ndarray]:
        """Image id → row numbers in the earlier output."""
        return _rows(self.output, _written(self.output))


def _written(path: Path) -> tuple[int, ...] | None:
    """What tells a table from the one that another job has put in its place; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=2)
def _table(path: Path, written: tuple[int, ...] | None) -> Table | None:
    return read_columns(path) if written else None


@lru_cache(maxsize=2)
def _rows(path: Path, written: tuple[int, ...] | None) -> dict[str, np.ndarray]:
    table = _table(path, written)
    return dict(pd.DataFrame({"image_id": table[0]["image_id"]}).groupby("image_id").indices) if table else {}
