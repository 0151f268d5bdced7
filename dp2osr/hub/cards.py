"""Cards: a folder's README.md with what a hub wants to know of it in its front matter. One that a user has edited is left alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp2osr.errors import UserError
from dp2osr.files import read_text, write_text

if TYPE_CHECKING:
    from huggingface_hub import CardData

CARD = "README.md"
MARK = re.compile(r"\n<!-- written by dp2osr, ([0-9a-f]{16}); a card that you edit is left as it is -->\n$")
PLACE = re.compile(r"(/|~|\.\./|[A-Za-z]:[\\/])")  # beginnings of paths that say where on this machine a file lies


def fill(template: str | Path, **content: Any) -> str:
    """The text of a Jinja template; a name that it lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    path = Path(template)
    environment = Environment(
        loader=FileSystemLoader(path.parent), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"code": as_code, "python": json.dumps, "figure": figure}
    return environment.get_template(path.name).render(**content)


def card_of(template: str | Path, front: CardData, **content: Any) -> str:
    """A card: the front matter `front`, and the filled template with its mark."""
    from huggingface_hub import RepoCard

    text = str(RepoCard(f"---\n{front.to_yaml()}\n---\n\n{fill(template, **content)}"))
    return f"{text}\n<!-- written by dp2osr, {_digest(text)}; a card that you edit is left as it is -->\n"


def write_card(folder: str | Path, card: str) -> bool:
    """Write the card of a folder, unless its user has edited the one there; returns whether it was written."""
    path = Path(folder) / CARD
    if is_edited(path):
        print(f"{path}: is not as it was written, and is kept")
        return False
    write_text(path, card)
    return True


def is_edited(path: str | Path) -> bool:
    """Whether a file is there that is no card of this project, or was changed since it was written."""
    path = Path(path)
    if not os.path.lexists(path):
        return False
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); move it away") from None
    mark = MARK.search(text)
    return mark is None or mark[1] != _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


# -- what a card may say --


def without_places(content: Any) -> Any:
    """JSON-able content in which a path of this machine is its last part: others see neither its folders nor a user's name."""
    if isinstance(content, Mapping):
        return {key: without_places(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_places(value) for value in content]
    if isinstance(content, str) and PLACE.match(content):
        return re.split(r"[\\/]", content.rstrip("\\/"))[-1] or content
    return content


def as_code(value: Any) -> str:
    """A value as inline code of Markdown, in a table too."""
    text = " ".join(str(value).replace("`", "'").replace("|", "/").split())
    return f"`{text}`" if text else "–"


def figure(value: float | None) -> str:
    """A number with three digits behind the point, or `–` where it is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def as_json_text(content: Any) -> str:
    """JSON as this project's files have it."""
    return json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
