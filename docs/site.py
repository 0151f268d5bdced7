"""mkdocs' hooks: pages that lie outside of docs/ are pages of the site too, and links between all of them hold there."""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # {in the repository: in the site}
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "integrations/comfyui/README.md": "comfyui.md",
    "preset/models/README.md": "models.md",
    "preset/metrics/README.md": "metrics.md",
}
PICTURE = "contact_sheet.png"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, PICTURE, abs_src_path=str(ROOT / "preset/models" / PICTURE)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    place = page.file.src_uri
    source = next((path for path, shown in PAGES.items() if shown == place), f"docs/{place}")

    def moved(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups()
        if re.match(r"\w+:", target):
            return link[0]
        target = os.path.normpath(posixpath.join(posixpath.dirname(source), target))
        inside = target.removeprefix("docs/") if target.startswith("docs/") else ""
        shown = PAGES.get(target) or (PICTURE if target.endswith(PICTURE) else inside)
        if not shown:
            return text if not mark else ""  # a file of the repository that is no page
        return f"{mark}[{text}]({posixpath.relpath(shown, posixpath.dirname(place) or '.')}{anchor or ''})"

    return LINK.sub(moved, markdown)
