"""Candidate groups of which some candidates alone are kept: their numbers, and the rows of the latents that hold them.

    <candidates_dir>/pruned.json                            the reward, M and N by which it was pruned
    <candidates_dir>/groups/<image_id>/group.json           "kept": numbers of the candidates that are there
                                       latents.safetensors  their rows, in this order, and the numbers once more in its header

The header is what readers go by: rows and numbers are then of one file, also while a group is replaced.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dp2osr.errors import UserError, listed
from dp2osr.files import read_json, replace_folder, save_tensors, write_json

RECORD = "pruned.json"
NUMBERS = "candidates"  # key in the header of latents.safetensors
PICTURE = re.compile(r"\d{3,}\.png")


def pruned_by(folder: str | Path) -> str | None:
    """`reward r, M = 16, N = 2` of a candidate folder that was pruned; None for one that was not."""
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    record = read_json(path)
    return f"reward {record['reward']}, M = {record['num_candidates']}, N = {record['top_n']}"


def check_not_pruned(folder: str | Path, way: str) -> None:
    """Raise `UserError` for a folder that was pruned, where all candidates are needed; `way` says what to do."""
    by = pruned_by(folder)
    if by:
        raise UserError(f"{folder}: was pruned by scripts/prune.py ({by}), and this needs all of its candidates; {way}")


def rows_of(path: Path, header: Mapping[str, str] | None, numbers: Sequence[int] | None) -> Sequence[int] | None:
    """Rows of a tensor file that hold the candidates `numbers`; None, for all, stays None where none has gone.

    Args:
        path: of the file, for errors.
        header: its metadata.

    Raises:
        UserError: a candidate that was pruned away.
    """
    if not header or NUMBERS not in header:
        return numbers
    places = {int(number): row for row, number in enumerate(header[NUMBERS].split())}
    gone = sorted({int(number) for number in numbers} - set(places)) if numbers is not None else None
    if gone is None or gone:
        what = f"lacks candidates {listed([*map(str, gone)])}" if gone else f"has {len(places)} of its candidates alone"
        by = pruned_by(path.parents[2]) or "its pruned.json is gone"
        raise UserError(
            f"{path}: {what}, the others were pruned away ({by}); train with that reward, that M and no larger N, "
            "or sample into a new folder"
        )
    assert numbers is not None
    return [places[int(number)] for number in numbers]


def check_kept(folder: str | Path, wanted: Mapping[str, Iterable[int]]) -> None:
    """Raise `UserError` unless the candidates `wanted`, {image id: numbers}, are kept in a candidate folder."""
    by = pruned_by(folder)
    if by is None:
        return
    groups, short = Path(folder) / "groups", []
    for image_id, numbers in wanted.items():
        kept = kept_in(groups / image_id)
        gone = sorted({int(number) for number in numbers} - set(kept)) if kept is not None else []
        if gone:
            short.append(f"{image_id} lacks {', '.join(map(str, gone))}")
    if short:
        raise UserError(
            f"{folder}: was pruned by scripts/prune.py ({by}), and {len(short)} of {len(wanted)} groups lack candidates that are asked for "
            f"({listed(short, 3)}); take that reward, that M and no larger N, or sample into a new folder"
        )


def kept_in(group: Path) -> list[int] | None:
    """Numbers of the candidates that a group's folder still has; None for all."""
    return read_json(group / "group.json").get("kept")


def record_pruning(folder: str | Path, reward: str, content: Mapping[str, Any], num_candidates: int, top_n: int) -> None:
    """Write by what a candidate folder is pruned: the reward's name and content, M and N."""
    about = {"reward": reward, "num_candidates": num_candidates, "top_n": top_n, "reward_config": content}
    write_json(Path(folder) / RECORD, about)


def bytes_of(group: Path, numbers: Sequence[int] | None = None) -> int:
    """Bytes of a group's files; with `numbers`, when these candidates alone are kept."""
    total = 0
    for entry in os.scandir(group):
        size = entry.stat().st_size
        if numbers is not None and entry.name == "latents.safetensors":
            size = size * len(numbers) // _count(group)
        total += 0 if numbers is not None and _is_dropped(entry.name, numbers) else size
    return total


def _count(group: Path) -> int:
    """How many candidates a group's latents hold."""
    about = read_json(group / "group.json")
    return len(about.get("kept", about["seeds"]))


def _is_dropped(name: str, numbers: Sequence[int]) -> bool:
    return bool(PICTURE.fullmatch(name)) and int(name[:-4]) not in numbers


def keep_candidates(group: Path, numbers: Sequence[int]) -> None:
    """Keep the candidates `numbers`, ascending, of a group; whole or as it was. All else in its folder stays.

    Raises:
        UserError: a broken file, or a candidate that is gone already.
    """
    path = group / "latents.safetensors"

    def fill(part: Path) -> None:
        for entry in group.iterdir():
            if entry.name not in (path.name, "group.json") and not _is_dropped(entry.name, numbers):
                _link(entry, part / entry.name)
        with safe_open(path, "pt") as file:
            rows = rows_of(path, file.metadata(), numbers)
            latents = file.get_tensor("latents")[list(rows or [])]
        save_tensors({"latents": latents}, part / path.name, {NUMBERS: " ".join(map(str, numbers))})
        write_json(part / "group.json", read_json(group / "group.json") | {"kept": list(numbers)})

    replace_folder(group, fill)


def _link(source: Path, target: Path) -> None:
    """The same file at another place; a copy where the file system has no links."""
    if source.is_dir():
        shutil.copytree(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
