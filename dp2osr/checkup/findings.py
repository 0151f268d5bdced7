"""What a check has found, line by line, written down as it comes: JSON for programs, Markdown for people."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dp2osr.checkup.machine import TimeLimit, free_unused, stamp
from dp2osr.errors import is_device_fault, is_out_of_memory
from dp2osr.files import read_json, write_json, write_text
from dp2osr.markdown import table

NOTE = "note"  # the column that says why a line has no figures
LOST = "device lost: "  # how the note of a line begins with which its process ended
TITLES = {
    "machine": "The machine",
    "sampling": "Sampling: ours and diffusers' own ControlNet pipeline, denoising alone",
    "pixels": "The same candidate alone and in a batch, decoded",
    "training": "A step of preference training",
    "scoring": "Scoring, seconds an image and rank agreement with fp32 (Kendall's τ)",
    "gradient_sum": "The sum of gradients over processes",
}


class DeviceLost(Exception):
    """A line ended in a fault of the device: this process can ask nothing more of it."""


class Findings:
    """Tables of a check; each line is printed and written as soon as it is known.

    Args:
        folder: gets `check_gpu.json` and `check_gpu.md`.
        machine: what `describe_machine` says.
        settings: of the check, for the record.
        device: where the work is done; after each line its memory is freed.
        limit: what has not begun when it is over, does not run.
    """

    def __init__(
        self, folder: str | Path, machine: dict[str, Any], settings: Mapping[str, Any], device: torch.device, limit: TimeLimit
    ) -> None:
        self.folder, self.machine, self.settings = Path(folder), machine, dict(settings)
        self.device, self.limit = device, limit
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def go_on(self) -> None:
        """Take in the lines that an earlier process has written."""
        self.tables = lines_in(self.folder)

    def add(self, part: str, line: Mapping[str, Any]) -> None:
        """Take in a line of the table `part`, {column: value}; one that an earlier process has added is there."""
        if line not in self.tables.setdefault(part, []):
            self.tables[part].append(dict(line))
            self.tell(part, line)
            self.write()

    def tell(self, part: str, line: Mapping[str, Any]) -> None:
        """Print a line."""
        print(f"{part}: " + ", ".join(f"{name} {as_text(value)}" for name, value in line.items() if value is not None), flush=True)

    def find(self, part: str, label: Mapping[str, Any]) -> dict[str, Any] | None:
        """The line of the table `part` with this label, or None."""
        return next((line for line in self.tables.get(part, []) if label.items() <= line.items()), None)

    def attempt(self, part: str, label: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> bool:
        """Add the line `label` with what `measure` finds; where it fails, with a note of why. Whether there are new figures.

        A line that is there stays: an earlier process has tried it. While it is measured it stands in the files as lost, which is true
        if the process ends there. No error but one gets out: the next line is tried whatever happened to this one.

        Raises:
            DeviceLost: the next line needs a fresh process.
        """
        if self.find(part, label):
            return False
        if self.limit.left <= 0:
            self.add(part, {**label, NOTE: "not run: the time is over, give more --minutes"})
            return False
        lines = self.tables.setdefault(part, [])
        lines.append({**label, NOTE: f"{LOST}the process ended"})
        self.write()
        try:
            found, note = measure(), None
        except Exception as error:  # out of memory, a kernel that is missing, a library's own: all are findings
            found, note = {}, described(error)
        lines[-1] = {**label, **found, **({NOTE: note} if note else {})}
        self.tell(part, lines[-1])
        self.write()
        if is_lost(lines[-1]):
            raise DeviceLost(note)
        free_unused(self.device)
        return note is None

    def failures(self) -> list[str]:
        """`part: note` of the lines that failed; a line that was not to run is none."""
        return [
            f"{part}: {line[NOTE]}"
            for part, lines in self.tables.items()
            for line in lines
            if str(line.get(NOTE, "")).startswith(("failed", "out of memory", LOST))
        ]

    def write(self) -> None:
        """Both files, whole."""
        write_json(self.folder / "check_gpu.json", {"machine": self.machine, "settings": self.settings, "tables": self.tables})
        text = f"# What this machine does\n\nMeasured with {stamp(self.machine)}. docs/check_gpu.md says what each line means.\n"
        for part, lines in self.tables.items():
            text += f"\n## {TITLES[part]}\n\n{as_markdown(lines)}\n"
        write_text(self.folder / "check_gpu.md", text)


def lines_in(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The tables of a `check_gpu.json`, {part: lines}; none where there is no such file."""
    path = Path(folder, "check_gpu.json")
    return dict(read_json(path)["tables"]) if path.exists() else {}


def is_lost(line: Mapping[str, Any]) -> bool:
    """Whether its process ended with this line."""
    return str(line.get(NOTE, "")).startswith(LOST)


def described(error: BaseException) -> str:
    """`out of memory: ...`, `device lost: ...` or `failed: ...`, one line."""
    reason = " ".join(str(error).split())[:200]
    if is_out_of_memory(error):
        return f"out of memory: {reason}"
    return (LOST if is_device_fault(error) else "failed: ") + f"{type(error).__name__}: {reason}"


def as_markdown(lines: list[dict[str, Any]]) -> str:
    """Lines as a Markdown table of all their columns, in the order in which they first stand; notes last."""
    names = list(dict.fromkeys(name for line in lines for name in line if name != NOTE))
    names += [NOTE] if any(NOTE in line for line in lines) else []
    return table(names, ([as_text(line.get(name)) for name in names] for line in lines))


def as_text(value: Any) -> str:
    """A value in a table: three digits of a number."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}" if isinstance(value, float) else str(value)
