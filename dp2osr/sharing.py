"""Work that any number of processes share, and none waits for another.

- *The ranks of one launch* (`accelerate launch`, `torchrun`, `dp2osr.launch`) take the next item by an atomic counter in the launch's own
  store. No process group is opened: a rank may take hours longer than another, and nothing times out.
- *Independent jobs* on one folder (a Slurm array, a second node) know of each other by `Locks` alone: an item is held while
  it is worked on. The operating system frees the lock of a process that is gone.

Both only decide who does what: an item's result is a function of the item, whoever makes it.
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, Generic, TypeVar

from dp2osr.digests import MEMORY
from dp2osr.errors import UserError
from dp2osr.files import as_json
from dp2osr.locks import Locks

Item = TypeVar("Item")
STALL = timedelta(hours=1)  # that the ranks of a training wait for one, which saves a checkpoint or pictures: then a hang shows
START_UP = timedelta(hours=6)  # that ranks wait for the first one's checks; a rank that dies ends its launch at once


class Launch:
    """The processes that a launcher started together, by its environment (RANK, WORLD_SIZE, ...); without one, this process alone.

    Attributes:
        rank, size: this process's number, and how many there are.
        local_rank, local_size: the same on its machine, which is number `machine`.
    """

    _made = count()  # of launches of several processes, in this process: the ranks make them in one order

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        known = os.environ if environment is None else environment
        self.size = int(known.get("WORLD_SIZE") or 1)
        self.rank = int(known.get("RANK") or 0) if self.size > 1 else 0
        self.local_rank = int(known.get("LOCAL_RANK") or 0) if self.size > 1 else 0
        self.local_size = int(known.get("LOCAL_WORLD_SIZE") or 1) if self.size > 1 else 1
        self.machine = int(known.get("GROUP_RANK") or self.rank // self.local_size)
        self._counters: dict[str, int] = {}  # of this process alone
        self._number = next(Launch._made) if self.size > 1 else 0
        self._is_alone = self.size == 1  # also when the store is gone: the process that held it has ended, where no launcher holds it

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that speaks for all."""
        return self.rank == 0

    @cached_property
    def store(self) -> Any:
        """The launch's key-value store (`torch.distributed.TCPStore`), a name space of it: of several processes only."""
        from torch.distributed import PrefixStore, rendezvous

        found, _, _ = next(rendezvous("env://", timeout=START_UP))
        return PrefixStore(f"dp2osr/{self._number}", found)  # a second call in one launch counts from the start

    def add(self, name: str, amount: int) -> int:
        """Add to a counter of the launch; returns its new value. Without a launch, or when its store is gone, to the process's own."""
        if not self._is_alone:
            try:
                return self.store.add(name, amount)
            except RuntimeError:
                self._is_alone = True
        self._counters[name] = self._counters.get(name, 0) + amount
        return self._counters[name]

    def total(self, name: str, otherwise: int) -> int:
        """A counter's value over all ranks, or `otherwise`: when the store is gone, so is what the others have added."""
        here = self.add(name, 0)
        return otherwise if self.size > 1 and self._is_alone else here

    def take(self, name: str, count: int) -> Iterator[int]:
        """Yield the numbers below `count` that this rank gets, each of which goes to one rank: the next one whenever it asks."""
        last, shared = -1, not self._is_alone
        while (number := self.add(name, 1) - 1) < count:
            if shared and self._is_alone:  # what was left stands behind the last number; the locks say who has it, the results what is done
                yield from range(last + 1, count)
                return
            yield number
            last = number

    @contextlib.contextmanager
    def first(self, name: str) -> Iterator[None]:
        """Within, the first rank of each machine is alone; then its others come, who find what it has learnt remembered."""
        key = f"done/{name}/{self.machine}"
        if self.size > 1 and self.local_rank > 0:
            self._told(key)
        with self._telling(key, self.local_rank == 0) as told:
            yield
            MEMORY.flush()
            told.append(True)

    def of_first(self, name: str, learn: Callable[[], Any]) -> Any:
        """`learn()` as the first rank has found it, for all: something that JSON holds."""
        if self.rank > 0:
            return self._told(f"of_first/{name}", learn)
        with self._telling(f"of_first/{name}") as told:
            told.append(learn())
            return told[0]

    @contextlib.contextmanager
    def _telling(self, key: str, is_telling: bool = True) -> Iterator[list[Any]]:
        """Within, a list gets what other ranks wait for; they are told too that this one has failed."""
        told: list[Any] = []
        try:
            yield told
        finally:
            if not self._is_alone and is_telling:
                with contextlib.suppress(RuntimeError):  # the store is gone, and who would wait for it too
                    self.store.set(key, json.dumps(told))

    def _told(self, key: str, alone: Callable[[], Any] = lambda: None) -> Any:
        """What another rank has found; `alone()` where the rank that holds the store has ended with its work before this one began."""
        told = self._read(key)
        if told is None:
            return alone()
        if not told:  # that rank says why
            sys.exit(2)
        return told[0]

    def _read(self, key: str) -> Any:
        """A key of the store, once it is there; None where the store is gone: then this rank goes on by itself."""
        from torch.distributed import DistNetworkError

        if not self._is_alone:
            try:
                self.store.wait([key], START_UP)
                return json.loads(self.store.get(key))
            except DistNetworkError:
                self._is_alone = True
        return None

    def agree(self, name: str, told: dict[str, Any]) -> None:
        """Compare what this rank knows with what the first one does, before the first item of work.

        Raises:
            UserError: they differ; what differs is named.
        """
        if self.size == 1:
            return
        told = as_json({"code": code_digest(), **told})
        if self.is_first:
            self.store.set(f"told/{name}", json.dumps(told))
            return
        first = self._read(f"told/{name}")
        if first is None:
            return
        differing = [key for key in {**first, **told} if first.get(key) != told.get(key)]
        if differing:
            shown = "; ".join(f"{key} is {_short(told.get(key))} here and {_short(first.get(key))} on rank 0" for key in differing)
            raise UserError(
                f"rank {self.rank} of {self.size} does not have what rank 0 has: {shown}; give all nodes the same code, files and flags"
            )

    def is_last(self, name: str) -> bool:
        """Whether all other ranks have come to this place before; to be asked once by each."""
        return self.add(f"ended/{name}", 1) == self.size or self._is_alone


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def code_digest() -> str:
    """A digest of the package's source files."""
    found, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


class Shared(Generic[Item]):
    """Items that ranks and jobs share; each is given with a context that frees its lock. Whether it is still to be done is asked then.

    Args:
        name: of the work, one for all ranks.
        key: item → the name of its lock.
        is_done: item → whether nothing is left to do of it, asked before its lock is taken: of 30,000 finished items no lock is needed.
    """

    def __init__(
        self, launch: Launch, name: str, items: Sequence[Item], locks: Locks, key: Callable[[Item], str],
        is_done: Callable[[Item], bool] = lambda item: False,
    ) -> None:  # fmt: skip
        self.launch, self.name, self.items, self.locks, self.key, self.is_done = launch, name, items, locks, key, is_done
        self.later: list[Item] = []
        self._held: deque[contextlib.ExitStack] = deque(maxlen=2)  # the newest: a reader is one ahead

    def free(self) -> Iterator[tuple[Item, contextlib.ExitStack]]:
        """This rank's items that no other job holds."""
        for number in self.launch.take(self.name, len(self.items)):
            if self.is_done(self.items[number]):
                continue
            self._held.append(held := contextlib.ExitStack())
            if held.enter_context(self.locks.held(self.key(self.items[number]))):
                yield self.items[number], held
            else:
                self.later.append(self.items[number])

    def held_elsewhere(self) -> Iterator[tuple[Item, contextlib.ExitStack]]:
        """The others, each when its lock is free: that job has done it, or is gone. To be asked for when nothing is held any more."""
        for item in self.later:
            self._held.append(held := contextlib.ExitStack())
            held.enter_context(self.locks.held(self.key(item), wait=True))
            yield item, held

    def close(self) -> None:
        """Free what is held, after an error too."""
        for held in self._held:
            held.close()


def share(launch: Launch, name: str, items: Sequence[Item], locks: Locks, key: Callable[[Item], str]) -> Iterator[Item]:
    """Yield the items of `Shared`, one at a time, while its lock is held."""
    shared = Shared(launch, name, items, locks, key)
    for item, held in chain(shared.free(), shared.held_elsewhere()):
        with held:
            yield item


class WorkLog:
    """`<folder>/logs/TITLE-rank-R-of-N-HOST-PROCESS.jsonl`: what a rank did and how long it took, so that a slow or dead one is found."""

    def __init__(self, folder: str | Path, title: str, launch: Launch) -> None:
        name = f"{title}-rank-{launch.rank}-of-{launch.size}-{socket.gethostname()[:64]}-{os.getpid()}.jsonl"
        self.path = Path(folder) / "logs" / name
        self.begun, self.last, self.done = time.time(), time.time(), 0

    def write(self, item: str, **more: Any) -> None:
        """One line: the item, its seconds, how many there were so far and their rate an hour."""
        now, self.done = time.time(), self.done + 1
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "item": item, "seconds": round(now - self.last, 3), "done": self.done,
            "per_hour": round(3600 * self.done / max(now - self.begun, 1e-9), 2), **more,
        }  # fmt: skip
        self.last = now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
