"""A folder of this project to a hub, later or again: a trained ControlNet, a candidate folder, labels; each with its card."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dp2osr.errors import UserError
from dp2osr.files import read_json, read_text
from dp2osr.hub.cards import CARD, as_json_text, is_edited, without_places, write_card
from dp2osr.hub.upload import Destination, check_destination, open_repository, push
from dp2osr.provenance import weights_hash
from dp2osr.rewards.data_card import LABELS, OF_GT, data_card
from dp2osr.rewards.label_import import open_labels
from dp2osr.rewards.table import METADATA_KEY, SCORES, read_columns, sidecar_path, sidecar_text
from dp2osr.sampling.pruned import RECORD as PRUNED
from dp2osr.sampling.store import CandidateStore, reading
from dp2osr.training.model_card import TrainedControlNet, model_card
from dp2osr.training.publication import model_files

if TYPE_CHECKING:
    from dp2osr.hub.settings import PushSettings

Files = dict[str, Path | str | bytes]
OF_A_GROUP = ("latents.safetensors", "prompt.safetensors", "group.json", "lr.png")


@dataclass(frozen=True)
class Parcel:
    """What of a folder goes to a repository.

    Attributes:
        folder: whose card is written here.
        repo_type: "model" or "dataset".
        card: name that it is loaded by → the card's text; files: repository → what is uploaded.
    """

    folder: Path
    repo_type: str
    card: Callable[[str], str]
    files: Callable[[str], Files]


def push_folder(args: PushSettings) -> None:
    """Write the folder's card and push it all; with --dry_run say only what would be.

    Raises:
        UserError: a folder of another kind; as `check_destination`, `open_repository` and `push`.
    """
    folder = Path(args.folder)
    parcel = parcel_of(folder, args.report)
    destination = Destination(args.hub_model_id or folder.resolve().name, parcel.repo_type)
    if not args.dry_run:
        destination = check_destination(args.hub_model_id, folder, args.hub_token, args.hub_private_repo, parcel.repo_type)
    if args.report and is_edited(parcel.folder / CARD):
        raise UserError(f"--report: {parcel.folder / CARD} is not as it was written, and is kept; remove it, or write G into it yourself")
    write_card(parcel.folder, parcel.card(str(parcel.folder)))
    with reading([folder], "upload"):
        files = parcel.files(destination.repo_id)
        if args.dry_run:
            names = sorted(files)
            shown = "".join(f"\n    {name}" for name in names[:30]) + (f"\n    and {len(names) - 30} more" if len(names) > 30 else "")
            print(f"{folder}: nothing is uploaded; {len(names)} files would go to a {parcel.repo_type} repository:{shown}")
            return
        open_repository(destination)
        print(f"pushed: {push(destination, files, folder, 'Pushed with dp2osr')}")


def parcel_of(folder: Path, report: str | None = None) -> Parcel:
    """The `Parcel` of a folder; `UserError` where it is none that can be pushed."""
    if (folder / LABELS).is_file():
        made = of_labels(folder)
    elif (folder / "groups").is_dir():
        made = of_candidates(folder)
    else:
        return of_controlnet(folder, report)
    if report:
        raise UserError(f"--report: would do nothing with {folder}, which is no trained ControlNet; leave it out")
    return made


def of_controlnet(folder: Path, report: str | None) -> Parcel:
    """A training's output folder, its `best/`, or a baseline's `controlnet/`."""
    inner = folder / "controlnet"
    place = inner if not (folder / "config.json").exists() and (inner / "config.json").exists() else folder
    if not (place / "config.json").is_file():
        what = "a training's output folder, a candidate folder, or a folder of scripts/export_labels.py"
        raise UserError(f"{folder}: {'holds none of what can be pushed' if folder.is_dir() else 'no such folder'}; give {what}")
    trained = TrainedControlNet(place)
    evaluation = gains_of(report, trained) if report else ()
    return Parcel(
        place,
        "model",
        lambda name: model_card(trained, name, evaluation),
        lambda repo_id: dict(model_files(trained, repo_id, evaluation)),
    )


def gains_of(report: str, trained: TrainedControlNet) -> tuple[str, ...]:
    """A line for each comparison of a report of scripts/evaluate.py whose samples are of these weights.

    Raises:
        UserError: no such report, or none of its methods was sampled with these weights.
    """
    path = Path(report) / "summary.json"
    about = read_json(path)
    methods = about.get("settings", {}).get("methods", {}) if isinstance(about, dict) else {}
    own = weights_hash(trained.folder)
    named = [name for name in about.get("comparisons", {}) if methods.get(name, {}).get("controlnet_hash") == own] if methods else []
    if not named:
        raise UserError(f"{path}: compares no samples of the weights in {trained.folder}; give the report of candidates sampled with them")
    over = f"{about['num_photographs']} photographs × {about['num_candidates']} seeds"
    return tuple(f"G = {_interval(about['comparisons'][name]['G'])} against `{about['base']}`, over {over}." for name in named)


def _interval(estimate: dict[str, Any]) -> str:
    low, high = estimate.get("low"), estimate.get("high")
    bounds = f", 95 % interval {low:.2f} to {high:.2f}" if low is not None and high is not None else ""
    return f"{estimate['value']:.2f}{bounds}"


def of_labels(folder: Path) -> Parcel:
    """A folder of scripts/export_labels.py, whose card lies there."""
    open_labels(folder)
    card = folder / CARD
    if not card.is_file():
        raise UserError(f"{folder}: has no {CARD}; run scripts/export_labels.py again")
    text = read_text(card)

    def files(repo_id: str) -> Files:
        found: Files = {name: folder / name for name in (LABELS, sidecar_path(LABELS).name, OF_GT) if (folder / name).is_file()}
        return {**found, CARD: text}

    return Parcel(folder, "dataset", lambda name: text, files)


def of_candidates(folder: Path) -> Parcel:
    """A candidate folder with its scores, if there are any; the settings of both without places of this machine."""
    store = CandidateStore(folder)
    ids, path = store.ids(), folder / SCORES
    columns, metadata = read_columns(path) if path.is_file() else ({}, {})

    def card(name: str) -> str:
        return data_card(name, ids, store.settings, metadata, columns)

    def files(repo_id: str) -> Files:
        found: Files = {
            f"groups/{image_id}/{name}": place
            for image_id in ids
            for name in OF_A_GROUP
            if (place := store.groups / image_id / name).is_file()
        }
        if (folder / PRUNED).is_file():
            found[PRUNED] = folder / PRUNED
        found["settings.json"] = as_json_text(without_places(store.settings))
        if metadata:
            found[SCORES], found[sidecar_path(SCORES).name] = scores_for_others(path, metadata)
        text = read_text(folder / CARD) if is_edited(folder / CARD) else card(repo_id)
        return {**found, CARD: text}

    return Parcel(folder, "dataset", card, files)


def scores_for_others(path: Path, metadata: dict[str, Any]) -> tuple[bytes, str]:
    """(a score table, its sidecar) with the settings that the uploaded candidates have, and no place of this machine."""
    about = without_places(metadata)
    table = pq.read_table(path).replace_schema_metadata({METADATA_KEY: json.dumps(about, sort_keys=True)})
    written = io.BytesIO()
    pq.write_table(table, pa.PythonFile(written))
    return written.getvalue(), sidecar_text(about)
