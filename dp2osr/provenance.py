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


def file_sha256(path):
    """hashlib object of a file's content, read in blocks (`hashlib.file_digest` came with Python 3.11)."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest


def vocabulary_hash(tokenizer):
    """sha256 over the words of a tokenizer and their numbers."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def weights_hash(path):
    """sha256 over the weight files of a model folder (or of the one file), in order of their relative paths; of its name for a hub id."""
    path = Path(path)
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    digest = hashlib.sha256(b"" if path.exists() else str(path).encode())
    for file in files:
        digest.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
        digest.update(file_sha256(file).digest())
    return digest.hexdigest()[:16]
