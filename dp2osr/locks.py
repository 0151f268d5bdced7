"""Locks of a folder, by which independent jobs know of each other: `flock`s, which the operating system frees when a process is gone.

- `Locks.held`: an item is one process's while it is worked on.
- `Locks.reading`: any number of processes read the folder, and it stays as it is.
- `Locks.alone`: one process changes what others would read.
"""

import contextlib
import errno
import hashlib
import json
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dp2osr.errors import UserError
from dp2osr.files import LONGEST_NAME, as_json, short_name

LOCKS = ".locks"  # the folder of locks in a folder of results
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # a file system that has none
ASK_AGAIN = 1.0  # seconds between two tries of a lock that another job has
PATIENCE = 60.0  # seconds in which a lock must be had in a folder that others remove
DOOR = "settings.json"  # who begins to work in a folder, or to read it, holds this lock for a moment; who is alone there, to its end
ALONE = "alone"  # the lock that says that
CLAIM = "claim-"  # beginning of locks that say by which settings a process works: claim-WHAT-SETTINGS-PROCESS, digests


class Locks:
    """Locks of the items of a folder, which independent jobs on any machine that sees it respect.

    They are `flock`s of files in `<folder>/.locks`; docs/scale.md lists the file systems on which these hold. Where there are none, that
    is said once, and it is the user who starts one job at a time.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / LOCKS
        self.are_there = True
        self._inside = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Within, the item `name` is this process's, or (False, if it does not `wait`) another's."""
        from filelock import FileLock, Timeout

        file = name if len(os.fsencode(name)) + len(".lock") <= LONGEST_NAME else short_name(name)
        path = self.folder / f"{file}.lock"
        lock = FileLock(path, fallback_to_soft=False)
        try:
            self._acquire(lock, wait)
        except Timeout:
            yield False
            return
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._warn(error)
            yield True
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)  # while it is held: who waits for the file that is gone asks for a new one
            lock.release()

    def _acquire(self, lock: Any, wait: bool) -> None:
        """Take `lock`, in a folder that the last of other jobs may remove at any moment, also while it is waited for."""
        last = time.monotonic() + PATIENCE
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=-1 if wait else 0, poll_interval=ASK_AGAIN)
                return
            except (FileNotFoundError, FileExistsError):  # it went between two system calls, mkdir's own two among them
                if time.monotonic() > last or self.folder.is_file():
                    raise
                time.sleep(random.SystemRandom().uniform(0, 0.01))

    def _files(self, pattern: str = "*.lock") -> list[Path]:
        try:
            return list(self.folder.glob(pattern))
        except FileNotFoundError:  # the folder went while it was read
            return []

    def busy(self) -> list[str]:
        """Names of the locks in this folder that are held now, sorted."""
        names = []
        for path in self._files():
            try:
                with self.held(path.stem) as free:
                    names += [] if free else [path.stem]
            except PermissionError:  # another user's
                names.append(path.stem)
        return sorted(names)

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Within, this process works in the folder and no other does; who begins to read or write there meanwhile waits for its end.

        Args:
            what: needs that, for the error.

        Raises:
            UserError: another process holds a lock here.
        """
        with contextlib.ExitStack() as held:
            held.callback(self._sweep)
            free = held.enter_context(self.held(DOOR))
            busy = [name for name in self.busy() if name != DOOR and not name.startswith(CLAIM)] if free else []
            if busy or not free:
                shown = f" ({', '.join(busy[:3])})" if busy else ""
                raise UserError(
                    f"{self.folder.parent}: another job works in this folder{shown}; {what} waits for its end: run it again then"
                )
            held.enter_context(self.held(ALONE, wait=True))
            yield

    @contextlib.contextmanager
    def reading(self, what: str, quiet: bool = False) -> Iterator[None]:
        """Within, this process is seen to read the folder, as any number of others may: none is `alone` there.

        It waits for the end of a process that is, and says so. Where no lock can be made, that is said, and the folder is read without one.

        Args:
            what: reads, for the error of `alone`.
            quiet: another process of the launch says it.
        """
        with contextlib.ExitStack() as held:
            try:
                if not quiet and self._is_taken():
                    print(f"{self.folder.parent}: waits for a job that is alone in this folder (scripts/prune.py)", file=sys.stderr)
                with self.held(DOOR, wait=True):
                    own = self.held(f"{what} on {_this_process(', process ')}", wait=True)
                    held.callback(self._sweep)
                    held.enter_context(own)
            except OSError as error:
                if not quiet:
                    problem = f"no lock can be made here ({error.strerror}): do not run scripts/prune.py on this folder meanwhile"
                    print(f"warning: {self.folder.parent}: {problem}", file=sys.stderr)
            yield

    def _is_taken(self) -> bool:
        """Whether another process is `alone` here."""
        if not (self.folder / f"{ALONE}.lock").exists():
            return False
        with self.held(ALONE) as free:
            return not free

    def enter(self) -> bool:
        """Hold a lock that says that this process works in the folder, until it leaves; returns whether it is the only one."""
        self._inside.close()
        alone = True
        for path in self._files("job-*.lock"):
            with self.held(path.stem) as mine:
                alone &= mine
        self._inside.enter_context(self.held(f"job-{_this_process('-')}", wait=True))
        return alone

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Hold locks that say by which `settings` this process works here, until it leaves. To be asked with the lock `DOOR` held.

        Args:
            settings: {what is worked on: all that must be one for all who work on it}.

        Raises:
            UserError: another process works on one of them by other settings.
        """
        claims = {what: CLAIM + _digest(what) for what in settings}
        for what, name in claims.items():
            for path in self._files(f"{name}-*.lock"):
                if path.stem.split("-")[2] != _digest(settings[what]):
                    with self.held(path.stem) as free:
                        if not free:
                            raise UserError(
                                f"{self.folder.parent}: another job makes {what} with other settings; wait for its end, or use the same"
                            )
        for what, name in claims.items():
            self._inside.enter_context(self.held(f"{name}-{_digest(settings[what])}-{_this_process('-')}", wait=True))

    def _warn(self, error: OSError) -> None:
        if self.are_there:
            what = f"this file system has no locks ({error.strerror}): start one job at a time on this folder"
            print(f"warning: {self.folder.parent}: {what}", file=sys.stderr)
        self.are_there = False

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Within, this process may `enter`; it leaves however it ends."""
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """This process has done its work in the folder; the folder of locks goes with the last one."""
        self._inside.close()
        self._sweep()

    def _sweep(self) -> None:
        """Remove the locks of processes that were killed, which are free, and the folder if none is left."""
        for path in self._files():
            with contextlib.suppress(OSError), self.held(path.stem):  # another user's may not be had
                pass
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(as_json(content), sort_keys=True).encode()).hexdigest()[:16]


def _this_process(between: str) -> str:
    """The machine and the process, and what tells it from that of another container, where both may be named alike."""
    return f"{socket.gethostname()[:64]}{between}{os.getpid()}-{secrets.token_hex(4)}"
