"""Digests of files, and a memory of what was learnt of a file, by its path, size, times and inode."""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """The user's cache folder of this project: DP2OSR_CACHE_DIR, else `dp2osr` in XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("DP2OSR_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dp2osr"


class Memory:
    """What was learnt of files (digests, sizes of images), by path, size and times, in one SQLite file of the user's cache folder.

    A file that changes is learnt anew. Without a cache folder that can be written, things are remembered as long as the process runs.
    """

    SETTLED_AFTER = 2.0  # seconds since the last change: within the same tick of a clock a file may change once more unseen
    FLUSH_AT = 1000

    def __init__(self, file: str | Path | None = None) -> None:
        self.file = file
        self.known: dict[tuple[str, str], tuple[list[int], Any]] = {}
        self.fresh: dict[tuple[str, str], tuple[list[int], Any]] = {}

    def recall(self, path: str | Path, kind: str, learn: Callable[[str], Any]) -> Any:
        """`learn(path)`, a JSON-able value, or what it was when the file was the same."""
        return self.recall_all([path], kind, learn)[0]

    def recall_all(self, paths: Iterable[str | Path], kind: str, learn: Callable[[str], Any], workers: int = 1) -> list[Any]:
        """`recall` of several paths; what is not known is learnt by so many threads."""
        whole = [os.path.abspath(path) for path in paths]
        states = [_state(path) for path in whole]
        found = [self.known.get((path, kind)) or self._read(path, kind) for path in whole]
        unknown = [path for path, state, known in zip(whole, states, found, strict=True) if not known or known[0] != state]
        if not unknown:
            return [known and known[1] for known in found]
        with ThreadPoolExecutor(workers) as pool:
            learnt = dict(zip(unknown, pool.map(learn, unknown) if workers > 1 else map(learn, unknown), strict=True))
        for path, state in zip(whole, states, strict=True):
            if path in learnt:
                self._keep(path, kind, state, learnt[path])
        return [learnt.get(path, known and known[1]) for path, known in zip(whole, found, strict=True)]

    def _keep(self, path: str, kind: str, state: list[int], value: Any) -> None:
        self.known[path, kind] = state, value
        if time.time() - max(state[1], state[2]) / 1e9 > self.SETTLED_AFTER:
            self.fresh[path, kind] = state, value
            if len(self.fresh) >= self.FLUSH_AT:
                self.flush()

    @functools.cached_property
    def _database(self) -> sqlite3.Connection | None:
        """A connection, or None where there can be none: no home, a full disk, a file system without locks."""
        with contextlib.suppress(sqlite3.Error, OSError, RuntimeError):
            file = Path(self.file or cache_folder() / "files.sqlite")
            file.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(file, timeout=5, check_same_thread=False)
            database.execute("CREATE TABLE IF NOT EXISTS files (path TEXT, kind TEXT, state TEXT, value TEXT, PRIMARY KEY (path, kind))")
            return database
        return None

    def _read(self, path: str, kind: str) -> tuple[list[int], Any] | None:
        with contextlib.suppress(sqlite3.Error, ValueError):
            select = "SELECT state, value FROM files WHERE path = ? AND kind = ?"
            row = self._database.execute(select, (path, kind)).fetchone() if self._database else None
            if row:
                self.known[path, kind] = json.loads(row[0]), json.loads(row[1])
        return self.known.get((path, kind))

    def flush(self) -> None:
        """Keep what is new for other processes."""
        rows = [(path, kind, json.dumps(state), json.dumps(value)) for (path, kind), (state, value) in self.fresh.items()]
        self.fresh = {}
        if rows and self._database:
            with contextlib.suppress(sqlite3.Error), self._database as database:
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)


def _state(path: str | Path) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


MEMORY = Memory()
atexit.register(lambda: MEMORY.flush())


def digest(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal, remembered."""
    return MEMORY.recall(path, "sha256", sha256)


def learn_digests(paths: Iterable[str | Path]) -> None:
    """Hash those of many files whose `digest` is not remembered, several at a time."""
    MEMORY.recall_all(paths, "sha256", sha256, workers=min(8, os.cpu_count() or 1))


def sha256(path: str | Path) -> str:
    """SHA-256 of a file as it is now, hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()
