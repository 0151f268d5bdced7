"""What a visitor takes home: the images, the settings that made them, and a command that makes them again."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp2osr.api.scorer import REWARD
from dp2osr.backbones.kinds import KINDS
from dp2osr.commands import command
from dp2osr.data.images import on_white

if TYPE_CHECKING:
    from PIL import Image

    from dp2osr.demo.studio import Outcome


def command_of(outcome: Outcome) -> str:
    """The test program's command line for the same samples; it runs in the folder that the page was started in."""
    order = outcome.order
    asked = {"upscale": f"{order.upscale:g}", "sample_times": order.samples, "prompt": order.prompt or None}
    flags = {name: value for name, value in outcome.settings.items() if value != ""}
    if "negative_prompt" in outcome.settings and not outcome.settings["negative_prompt"]:
        flags["negative_prompt"] = ""
    return command(KINDS[outcome.kind].test_program, image_path=order.name, output_dir="runs/from_the_page", **asked, **flags)


def record_of(outcome: Outcome) -> dict[str, Any]:
    """Settings, scores and command as JSON holds them."""
    order = {name: value for name, value in asdict(outcome.order).items() if name != "path"}
    scores = None if outcome.scores is None else outcome.scores.to_dict("records")
    return {
        "order": order,
        "image_id": outcome.order.image_id,
        "settings": outcome.settings,
        "scores": scores,
        "best": outcome.best if scores else None,
        "seconds": round(outcome.seconds, 2),
        "notes": outcome.notes,
        "command": command_of(outcome),
    }


def captions(outcome: Outcome) -> list[str]:
    """A line a sample: its number, its reward and the scores that it is made of; the best is marked."""
    lines = [f"sample {number}" for number in range(len(outcome.images))]
    if outcome.scores is None:
        return lines
    for number, row in enumerate(outcome.scores.to_dict("records")):
        parts = [
            f"{metric} {value:.3g} {'↓' if outcome.lower_better[metric] else '↑'}" for metric, value in row.items() if metric != REWARD
        ]
        best = "★ best, " if number == outcome.best and len(outcome.images) > 1 else ""
        lines[number] = f"{best}{lines[number]}: reward {row[REWARD]:.2f} ({', '.join(parts)})"
    return lines


def pack(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Write the images and the zip into an empty folder; {what: path, or paths} for the page."""
    name = outcome.order.image_id
    width = max(2, len(str(len(outcome.images) - 1)))
    endings = [f"_{number:0{width}d}" for number in range(len(outcome.images))] if len(outcome.images) > 1 else [""]
    made = [save(image, folder / f"{name}{ending}.png") for image, ending in zip(outcome.images, endings, strict=True)]
    base = [] if outcome.base is None else [save(outcome.base, folder / f"{name}_of_the_base.png")]
    archive = folder / f"{name}.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in made + base:
            file.write(path, path.name)
        file.writestr("settings.json", json.dumps(record_of(outcome), indent=1, ensure_ascii=False))
    shown = {"lr.png": outcome.lr, "best.png": on_white(outcome.images[outcome.best])}
    if outcome.base is not None:
        shown |= {"base.png": on_white(outcome.base), "policy.png": on_white(outcome.images[0])}
    (folder / "shown").mkdir()
    pairs = {path: str(save(image, folder / "shown" / path)) for path, image in shown.items()}
    return {"images": [str(path) for path in made], "zip": str(archive), **pairs}


def save(image: Image.Image, path: Path) -> Path:
    """Write a PNG, little compressed, which is quick."""
    image.save(path, format="PNG", compress_level=3)
    return path
