"""What made a result: versions of the libraries, hashes of the weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dp2osr.digests import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "pyiqa", "numpy", "pillow", "safetensors")


def versions() -> dict[str, str | None]:
    """{library: version} of what results depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the words of a tokenizer and their numbers."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def weights_hash(path: str | Path, variant: str | None = None, revision: str | None = None, part: str | None = None) -> str:
    """sha256 over the weights of a model, by their names in its folder, in order, and their contents; equal for a folder and a hub id.

    Args:
        path: folder or hub id of a pipeline or of one network, or one file.
        variant, revision: of the weights that are used, as diffusers has them.
        part: only this part of a pipeline, as "vae"; a model that has no such part is that part itself.

    Raises:
        UserError: neither here nor on the hub or in its cache.
    """
    from dp2osr.backbones.locate import locate, weight_files  # here: the backbones' modules are built on this one

    found = locate(path)
    if found and not found.is_dir():
        return _hash_files({"": found})
    return _hash_files(weight_files(path, variant, revision, part))


def legacy_weights_hash(path: str | Path) -> str:
    """`weights_hash` as it was recorded before: of a folder all safetensors files, used or not, of a hub id its name."""
    path = Path(path)
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    names = {str(file.relative_to(path)) if path.is_dir() else "": file for file in files}
    return _hash_files(names, start=b"" if path.exists() else str(path).encode())


def _hash_files(files: Mapping[str, Path], start: bytes = b"") -> str:
    found = hashlib.sha256(start)
    for name, file in files.items():
        found.update(name.encode())
        found.update(bytes.fromhex(digest(file)))
    return found.hexdigest()[:16]
