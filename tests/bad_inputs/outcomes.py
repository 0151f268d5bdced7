"""What came of a program, and what may come of it."""

import fnmatch
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(tempfile.mkdtemp(prefix="dp2osr-cache-"))
os.environ.setdefault("DP2OSR_CACHE_DIR", str(CACHE))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
MODEL, CONTROLNET = str(ROOT / "preset/models/tiny-sd2"), str(ROOT / "preset/models/c-tiny-sd2")
TABLE = ROOT / "docs" / "bad_inputs.md"
LONGEST_LINE = 160
WORK_LOGS = "*logs/*.jsonl"  # what a rank did: a line more for each image, as long as the process lives
SECONDS = 15  # of the processor that one program may take before it counts as one that hangs
WAIT = 200  # seconds in all, for one that waits
MEMORY = 8 << 30  # bytes of address space that one program may take beside what this process has
KINDS = {
    1: "Files of the user's",
    2: "Defaults",
    3: "Silence",
    4: "Bad files in a folder",
    5: "YAML and flags",
    6: "Paths, sizes and models that cannot be used",
    7: "Models by hub id",
    8: "Cost",
    9: "Going on",
    10: "Metrics, scores and odd images",
}


@dataclass
class Outcome:
    """A program that has ended: exit code, or None and what it raised; its output; the user's files before and after."""

    code: int | None
    out: str
    err: str
    raised: str
    folder: Path
    before: dict
    after: dict
    fits: object = None  # the outcome that the case allows, or None where it is none of them

    @property
    def lines(self):
        """Lines of the output without progress bars and blank ones, stderr last."""
        return [line.strip() for text in (self.out, self.err) for line in plain_lines(text)]

    @property
    def last_error_line(self):
        return (plain_lines(self.err) or [""])[-1]

    def fault(self, may_change, may_appear):
        """(kind of fault, what it is) of what no program may do whatever its input, or None."""
        if self.raised or "Traceback (most recent call last)" in self.out + self.err:
            return "traceback", self.raised or self.last_error_line
        may_change = (*may_change, WORK_LOGS)
        lost = [name for name, content in self.before.items() if self.after.get(name) != content and not matches(name, may_change)]
        if lost:
            return "file lost", f"{', '.join(lost)} (exit code {self.code})"
        new = [name for name, content in self.after.items() if name not in self.before and content != "folder"]
        parts = [name for name in new if re.search(r"\.(part|tmp|old)(/|$)", name)]
        if parts:
            return "half-written", ", ".join(parts)
        extra = [name for name in new if may_appear is not None and not matches(name, (*may_appear, WORK_LOGS))]
        if extra:
            return "half-written", f"{', '.join(extra)} after an error"
        return None


def plain_lines(text):
    """Lines without progress bars (the last state of a line that was drawn over) and without blank ones."""
    lines = [line.split("\r")[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line.strip() and not re.search(r"\d+%\|.*\||\d+it \[|\[\d\d:\d\d", line)]


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Refused:
    """Exit code 2 and one line `error: ...` that holds all of `says` (regular expressions); nothing is written but what `writes` allows."""

    says: tuple
    writes: tuple = ()
    never: tuple = ()  # what the line must not say

    def fault(self, outcome):
        common = outcome.fault((), self.writes)
        if common and common[0] != "half-written":
            return common
        if outcome.code == 0:
            return "silent", f"exit code 0; said: {' / '.join(outcome.lines[-2:])[:200] or 'nothing'}"
        line = outcome.last_error_line
        if outcome.code != 2 or not line.startswith("error: "):
            return "unclear", f"exit code {outcome.code}: {line[:200]}"
        lacking = [word for word in self.says if not re.search(word, line, re.IGNORECASE)]
        if lacking:
            return "unclear", f"the line lacks {', '.join(lacking)}: {line[:300]}"
        told = [word for word in self.never if re.search(word, line, re.IGNORECASE)]
        return ("unclear", f"the line says {', '.join(told)}: {line[:300]}") if told else common


@dataclass(frozen=True)
class Done:
    """Exit code 0; the output holds all of `says`; `there` exists, `absent` does not; `check(folder)` finds nothing wrong.

    `replaces` are files that may differ afterwards, as the program's own records may; `renewed` files that must; `note` says in the table
    what was checked.
    """

    says: tuple = ()
    there: tuple = ()
    absent: tuple = ()
    replaces: tuple = ()
    renewed: tuple = ()
    check: object = None
    note: str = ""

    def fault(self, outcome):
        common = outcome.fault((*BOOKKEEPING, *self.replaces, *self.renewed), None)
        if common:
            return common
        if outcome.code != 0:
            return "unclear", f"exit code {outcome.code}: {outcome.last_error_line[:300]}"
        said = "\n".join(outcome.lines)
        lacking = [word for word in self.says if not re.search(word, said, re.IGNORECASE)]
        if lacking:
            return "silent", f"says nothing of {', '.join(lacking)}; said: {' / '.join(outcome.lines[-2:])[:200] or 'nothing'}"
        absent = [name for name in self.there if not os.path.lexists(outcome.folder / name)]
        there = [name for name in self.absent if os.path.lexists(outcome.folder / name)]
        if absent or there:
            return "silent", f"{', '.join(absent) or 'nothing'} is missing, {', '.join(there) or 'nothing'} is there that should not be"
        stale = [name for name in outcome.before if matches(name, self.renewed) and outcome.after.get(name) == outcome.before[name]]
        if stale:
            return "silent", f"{', '.join(stale)} is what it was before"
        wrong = self.check and self.check(outcome.folder)
        return ("silent", wrong) if wrong else None


BOOKKEEPING = ("*settings*.json", "*/.records/*", "*train_log.jsonl", "*scores.jsonl", "*.sqlite")


def refused(*says, writes=(), never=()):
    return Refused(says, writes, never)


def done(*says, **more):
    return Done(says, **more)
