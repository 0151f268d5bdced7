"""Files that are whole or absent, and what made them.

Two ideas, each in one place:

- *Whole or absent*: `whole` gives a path beside the file, and renames it when it is complete; `replace_folder` does so for a folder.
- *Made by whom*: `same_settings` compares a run's settings with those that are there; `dp2osr.results` says of which files a program knows
  that it wrote them itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp2osr.errors import UserError

if TYPE_CHECKING:
    import torch
    from ruamel.yaml.nodes import Node

BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}  # as editors and Excel write them
LONGEST_NAME = 255  # bytes of a file's name, on the file systems in use


# -- reading --


def read_text(path: str | Path) -> str:
    """Text of a file of the user's: UTF-8, or what its byte-order mark says. Raises OSError or UnicodeDecodeError."""
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding)


def read_json(path: str | Path) -> Any:
    """Contents of a JSON file; UserError if it is missing or broken, or has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}: '{twice}' is given twice; keep one")
        return content

    try:
        return json.loads(read_text(path), object_pairs_hook=unique)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from None


def read_yaml(path: str | Path, what: str = "a readable YAML file", as_text: bool = False) -> Any:
    """Contents of a YAML 1.2 file: `no` is a word, and a key that is given twice is an error.

    Args:
        what: it should be, for errors.
        as_text: every scalar as it is written (`001` stays `001`), None for an empty one, `null` or `~`.

    Raises:
        UserError: it is missing or broken; the line is named.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = read_text(path)
        return _node_text(YAML(pure=True).compose(text), path) if as_text else YAML(typ="safe", pure=True).load(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not {what} ({error})") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        raise UserError(f"{path}: not {what} ({where}{reason})") from None


def _node_text(node: Node | None, path: str | Path) -> Any:
    """A composed YAML node with its scalars as text."""
    from ruamel.yaml import MappingNode, ScalarNode

    if node is None:
        return None
    if isinstance(node, ScalarNode):
        empty = node.style is None and node.value in ("", "~", "null", "Null", "NULL")
        return None if empty else node.value
    if not isinstance(node, MappingNode):
        return [_node_text(item, path) for item in node.value]
    content = {}
    for key, value in node.value:
        name = str(key.value)
        if name in content:
            raise UserError(f"{path}, line {key.start_mark.line + 1}: '{name}' is given twice; keep one")
        content[name] = _node_text(value, path)
    return content


# -- writing --


def part_path(path: str | Path) -> Path:
    """A hidden path beside `path` for this process to write to; its name is short however long that of `path` is."""
    path = Path(path)
    return path.with_name(f".{short_name(path.name)}.{socket.gethostname()[:32]}-{os.getpid()}.part")


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Within, a path to write the file to; it replaces `path` at the end, and is gone after an error.

    The file has the permissions of a new file, also where a library writes it for its owner alone.
    """
    path = Path(path)
    part = part_path(path)
    try:
        part.touch()
        mode = part.stat().st_mode & 0o777
        yield part
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def clear_parts(folder: str | Path) -> None:
    """Remove what processes of this machine that are no more left half-written in a folder."""
    for path in Path(folder).glob(".*.part"):
        host, _, process = path.name.removesuffix(".part").rpartition(".")[2].rpartition("-")
        if host == socket.gethostname()[:32] and process.isdigit() and not _runs(int(process)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file whole; several processes may write the same file, the last one stands."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write {name: tensor} as safetensors, whole, readable as the user's other files are."""
    from safetensors.torch import save_file

    with whole(path) as part:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)


def save_model(model: Any, folder: str | Path) -> None:
    """`model.save_pretrained(folder)` with files that are readable as the user's other files are."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):  # of a pipeline each part has its own folder
        path.chmod(_plain_mode(folder))


def _plain_mode(folder: Path) -> int:
    """The permissions that a new file gets in `folder`."""
    part = part_path(folder / "mode")
    part.touch()
    mode = part.stat().st_mode & 0o777
    part.unlink()
    return mode


def replace_folder(folder: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `folder`, then put it in its place; what a stop between two renames left is put back first."""
    folder = Path(folder)
    part, aside = part_path(folder), _aside(folder)
    put_back(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        write(part)
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            folder.rename(aside)
        part.rename(folder)
    except BaseException:
        put_back(folder)
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def put_back(folder: str | Path) -> None:
    """Put the earlier `folder` back in its place if a stop in the middle of `replace_folder` left it aside."""
    aside = _aside(folder)
    if aside.exists() and not Path(folder).exists():
        aside.rename(folder)


def _aside(folder: str | Path) -> Path:
    return Path(folder).with_name(f".{short_name(Path(folder).name)}.old")


def short_name(name: str) -> str:
    """A short name that stands for one of any length."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


# -- the same settings? --


def differences(
    found: Mapping[str, Any],
    settings: Mapping[str, Any],
    not_compared: Collection[str] = (),
    also: Mapping[str, Callable[[], Any]] | None = None,
) -> list[str]:
    """`key is X there and Y here` of the settings that differ, but for the keys in `not_compared`.

    Args:
        found, settings: as JSON holds them.
        also: {key: a function that gives another value that stands for the same}, as an earlier formula of a hash.
    """
    also = also or {}
    keys = [key for key in {**found, **settings} if key not in not_compared and found.get(key) != settings.get(key)]
    keys = [key for key in keys if key not in also or found.get(key) != also[key]()]
    return [f"{key} is {found.get(key)!r} there and {settings.get(key)!r} here" for key in keys]


def as_json(settings: Any) -> Any:
    """Settings as they are after they were written to JSON and read again."""
    return json.loads(json.dumps(settings, default=str))


def keep_settings(
    path: str | Path,
    settings: Mapping[str, Any],
    not_compared: Collection[str] = (),
    force: bool = False,
    way: str = "",
    also: Mapping[str, Callable[[], Any]] | None = None,
) -> None:
    """Write a run's `settings` to the JSON at `path`, or check that the run already there has the same.

    Args:
        not_compared: keys that are written and not compared: where a model lies does not matter, its hash does.
        force: other settings are shown and replace those that were there.
        way: what the user may do beside taking the same settings or another folder, as "--force goes on with these".
        also: as in `differences`.

    Raises:
        UserError: the run there was made with other settings; both values are shown. Or the file there is of another program.
    """
    settings, path = as_json(settings), Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    found = read_json(path)
    check_same_program(path, found, settings)
    differing = differences(found, settings, not_compared, also)
    if differing and force:
        print(f"warning: {path.parent}: goes on with other settings ({'; '.join(differing)})", file=sys.stderr)
        write_json(path, settings)
    elif differing:
        ways = ", ".join(filter(None, ["use them", "give another output folder", way]))
        raise UserError(f"{path.parent}: was made with other settings ({'; '.join(differing)}); {ways}")


def check_same_program(path: str | Path, found: Any, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` where the settings found are another program's: half of what a program writes is always there."""
    if not isinstance(found, dict) or 2 * len(set(found) & set(settings)) < min(len(found), len(settings)):
        raise UserError(f"{path}: is not of this program; nothing of that folder is touched, give another output folder")
