"""Where a model's files are: in a folder here, or in a repository on a model hub, offline in its cache.

A path that exists here is what it names, anything else that has the form of an id is looked for on the hub.
Names of files are relative to the model's folder, with `/` between their parts.
"""

import difflib
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from dp2osr.errors import UserError
from dp2osr.hub.reasons import reason_of

HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja")  # configurations, tokenizers, indices of shards
LAYOUTS = (  # how diffusers and transformers name weights, in the order in which they look for them
    ("diffusion_pytorch_model", ".safetensors"), ("model", ".safetensors"), ("diffusion_pytorch_model", ".bin"), ("pytorch_model", ".bin"),
)  # fmt: skip
NOT_USED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that no program here loads


def locate(path: str | Path) -> Path | None:
    """The `Path` of a file or folder here, or None for what can only be a hub id.

    Raises:
        UserError: it is not here and has not the form of an id.
    """
    path = os.fspath(path)
    if path and os.path.exists(path):
        return Path(path)
    if not HUB_ID.fullmatch(path) or path.endswith(WEIGHT_SUFFIXES):
        raise UserError(f"{path or 'an empty path'}: no such file or folder{_near(path)}")
    return None


def list_files(path: str | Path, revision: str | None = None) -> list[str]:
    """Names of the files of a model's folder, or of a hub model; of a folder two levels.

    Raises:
        UserError: neither here nor on the hub or in its cache.
    """
    folder = locate(path)
    if folder is None:
        from huggingface_hub import constants

        return list(_list_hub(str(path), revision, constants.HF_HUB_CACHE))
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return sorted(file.relative_to(folder).as_posix() for file in found if file.is_file())


def fetch(path: str | Path, names: Sequence[str], revision: str | None = None) -> Path:
    """The folder in which the files `names` of a model lie: its own, or its snapshot in the hub's cache, to which they are downloaded.

    Raises:
        UserError: a file cannot be had.
    """
    here = locate(path)
    if here is not None:
        return here
    from huggingface_hub import hf_hub_download

    try:
        for name in names:
            folder = Path(hf_hub_download(str(path), name, revision=revision)).parents[name.count("/")]
    except Exception as error:  # a gated model, a lost connection, a file that is not in the cache
        raise UserError(f"{path}: {name} cannot be had from the hub ({reason_of(error)})") from None
    return folder


def find_model_file(path: str | Path, name: str, revision: str | None = None) -> Path | None:
    """The local path of a small file of a model's folder or hub repository, or None if there is none or it cannot be had."""
    try:
        file = fetch(path, [name], revision) / name
    except UserError:
        return None
    return file if os.path.isfile(file) else None


def has_part(path: str | Path, name: str) -> bool:
    """Whether a local folder or a hub model holds a pipeline with the part `name`.

    Raises:
        UserError: neither here nor on the hub or in its cache.
    """
    return any(file.startswith(f"{name}/") for file in list_files(path))


def part_files(names: Sequence[str], part: str | None = None, variant: str | None = None, weights: bool = True) -> list[str]:
    """Those of a model's files that its part (a folder in it; None: the model is that part) is loaded from."""
    own = _directly_in(names, part)
    return [name for name in own if name.endswith(SMALL_SUFFIXES)] + (used_weights(own, variant) if weights else [])


def used_weights(names: Sequence[str], variant: str | None = None) -> list[str]:
    """Those of the files of one folder that `from_pretrained` reads weights from: of one layout, without other variants."""
    mark = f".{re.escape(variant)}" if variant else ""
    for stem, suffix in LAYOUTS:
        single = [name for name in names if re.fullmatch(rf"{stem}{mark}{suffix}", PurePosixPath(name).name)]
        numbers = rf"(-\d+-of-\d+{mark}|{mark}-\d+-of-\d+)"
        shards = [name for name in names if re.fullmatch(rf"{stem}{numbers}{suffix}", PurePosixPath(name).name)]
        chosen = (shards or single) if stem == "diffusion_pytorch_model" else (single or shards)  # where both lie there
        if chosen:
            return chosen
    return []


def weight_files(path: str | Path, variant: str | None = None, revision: str | None = None, part: str | None = None) -> dict[str, Path]:
    """{name: local path} of the weights that are used of a model, in order: a pipeline's parts, or one part's folder.

    Args:
        part: only this part of a pipeline, its names relative to it; where the model has no such part it is that part itself.

    Raises:
        UserError: not to be had.
    """
    names, prefix = list_files(path, revision), ""
    if part and any(name.startswith(f"{part}/") for name in names):
        prefix, used = f"{part}/", used_weights(_directly_in(names, part), variant)
    elif "model_index.json" in names:
        used = [name for part in _parts(path, revision) for name in used_weights(_directly_in(names, part), variant)]
    else:
        used = used_weights(_directly_in(names), variant)
    if not used:  # of another layout: all that there is
        used = [name for name in names if name.startswith(prefix) and name.endswith(".safetensors")]
    used.sort(key=lambda name: name.split("/"))
    folder = fetch(path, used, revision) if used else Path()
    return {name.removeprefix(prefix): folder / name for name in used}


def _parts(path: str | Path, revision: str | None) -> list[str]:
    """Names of a pipeline's parts that programs here load."""
    from dp2osr.files import read_json

    index = read_json(fetch(path, ["model_index.json"], revision) / "model_index.json")
    return [name for name, cls in index.items() if isinstance(cls, list) and cls[-1] and name not in NOT_USED]


def _directly_in(names: Sequence[str], part: str | None = None) -> list[str]:
    prefix = f"{part}/" if part else ""
    return [name for name in names if name.startswith(prefix) and "/" not in name.removeprefix(prefix)]


@cache
def _list_hub(path: str, revision: str | None, cache_folder: str) -> list[str]:
    """The files of a hub model as the hub lists them or, where it cannot be asked, those in its cache; asked once a process."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return sorted(file.rfilename for file in HfApi().model_info(path, revision=revision, timeout=10).siblings)
    except OfflineModeIsEnabled:
        reason = f"HF_HUB_OFFLINE is set, and it is not in the cache {cache_folder}"
    except Exception as error:  # no network, a bad name, no such model or revision
        reason = reason_of(error)
    try:
        folder = Path(snapshot_download(path, revision=revision, cache_dir=cache_folder, local_files_only=True, allow_patterns=[]))
    except Exception:  # not in the cache
        which = f"{path} (revision {revision})" if revision else path
        raise UserError(
            f"{which}: neither a file or folder here nor a model on the hub that can be reached: {reason}{_near(path)}"
        ) from None
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())  # a broken link is no file


def _near(path: str) -> str:
    """`; did you mean ...?` where something of nearly that name is here, else nothing."""
    named = Path(path).expanduser() if path.startswith("~/") else Path(path)
    if os.path.exists(named):
        return f"; did you mean {named}?" if named.name else ""
    missing = next(part for part in [*reversed(named.parents), named] if not os.path.exists(part))
    try:
        close = difflib.get_close_matches(missing.name, os.listdir(missing.parent), 1, 0.7)
    except OSError:
        return ""
    found = missing.parent / close[0] / named.relative_to(missing) if close else named
    return f"; did you mean {found}?" if os.path.exists(found) else ""
