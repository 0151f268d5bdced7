"""The weights of pyiqa's metrics in a folder of the user's: found there, fetched to there, checked by their hashes."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

from dp2osr.digests import digest
from dp2osr.errors import UserError
from dp2osr.files import write_text
from dp2osr.hub.reasons import answers
from dp2osr.rewards import qalign

MANIFEST = "manifest.json"
FROM_HUB = ("HyperNet", "NIMA", "AHIQ", "IQT", "FGResQ", "Compare2Score", "QAlign", "QReAlign")  # read from the Hugging Face hub
CHECKPOINT_HOLDS_BACKBONE = ("MANIQA", "CFANet")  # pyiqa fetches ImageNet weights first, and then overwrites every one of them


@contextmanager
def metric_weights(kind: str, folder: str | Path | None = None) -> Iterator[None]:
    """Within, pyiqa, torchvision and CLIP look for weights in `folder`, and download to it; None leaves their own places.

    Layout: `pyiqa/` (pyiqa's own), `checkpoints/` (torchvision's), `clip/`, `qalign/` (Q-Align's repository). What another metric takes
    from the Hugging Face hub, as HyperIQA and NIMA take their backbones, stays in that library's cache (HF_HOME).

    Args:
        kind: pyiqa's name of the network that is to be built, such as "LPIPS".
    """
    import timm
    import torch
    from pyiqa.archs import afine_arch
    from pyiqa.utils import download_util

    with ExitStack() as stack:
        if kind in FROM_HUB:
            stack.enter_context(no_waiting_for_the_hub())
        if kind == "QAlign":
            stack.enter_context(qalign.loading(folder))
        if kind in CHECKPOINT_HOLDS_BACKBONE:
            create_model = timm.create_model
            untrained = lambda *args, pretrained=False, **kwargs: create_model(*args, **kwargs)  # noqa: E731
            stack.enter_context(mock.patch.object(timm, "create_model", untrained))
        if folder is not None:
            stack.callback(torch.hub.set_dir, torch.hub.get_dir())
            torch.hub.set_dir(str(folder))
            stack.enter_context(mock.patch.object(download_util, "DEFAULT_CACHE_DIR", str(Path(folder) / "pyiqa")))
            stack.enter_context(mock.patch.object(afine_arch, "load", partial(afine_arch.load, download_root=str(Path(folder) / "clip"))))
        yield


@contextmanager
def no_waiting_for_the_hub() -> Iterator[None]:
    """Within, a hub that cannot be reached is not asked: its library would try again for a minute before it looks into its cache."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _hub_answers(constants.ENDPOINT):
        yield
    else:
        with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
            yield


_hub_answers = cache(answers)  # asked once a process


def metrics_folder(given: str | Path | None = None) -> str | Path | None:
    """The folder of weights: the one given, else what DP2OSR_METRICS_DIR names, else None; `UserError` where it is not there."""
    folder = given or os.environ.get("DP2OSR_METRICS_DIR")
    if folder and not Path(folder).is_dir():
        asked = "" if given else "DP2OSR_METRICS_DIR: "
        raise UserError(f"{asked}{folder}: no such folder of metric weights; scripts/fetch_metrics.py makes it")
    return folder or None


def weight_files(folder: str | Path) -> list[Path]:
    """The files of a metrics folder, sorted, without the manifest and what is hidden, as the hub's own records are."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and path != Path(folder) / MANIFEST)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def write_manifest(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Hash every file and write the manifest; returns {relative path: {"bytes", "sha256"}}."""
    folder = Path(folder)
    entries = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)} for path in weight_files(folder)}
    write_text(folder / MANIFEST, json.dumps(entries, indent=1))
    return entries


def check_manifest(folder: str | Path, complete: bool = True) -> None:
    """Compare every file that the manifest names with it; where the folder need not be `complete`, those that are there.

    Raises:
        UserError: no such folder, a file that is missing, cut short or changed.
    """
    folder = Path(metrics_folder(folder) or folder)
    if not (folder / MANIFEST).is_file():
        return  # filled by hand
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST}: not a JSON file ({error}); run scripts/fetch_metrics.py again") from None
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            if not complete:
                continue
            raise UserError(f"{path}: is missing; run scripts/fetch_metrics.py again")
        if path.stat().st_size != entry["bytes"] or digest(path) != entry["sha256"]:
            raise UserError(
                f"{path}: is not the file that was fetched (its hash differs); delete it and run scripts/fetch_metrics.py again"
            )
