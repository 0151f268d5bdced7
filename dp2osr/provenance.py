"""What made a result: versions of the libraries, hashes of the weights."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "pyiqa", "numpy", "pillow", "safetensors")


def versions():
    """{library: version} of what results depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def weights_hash(path):
    """sha256 over the weight files of a model folder (or of the one file), in order of their relative paths."""
    path = Path(path)
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest() if hasattr(hashlib, "file_digest") else stream.read())
    return digest.hexdigest()[:16]
