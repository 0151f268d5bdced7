"""What the tests of loading share: fixtures and helpers."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from dp2osr.digests import sha256


def cache_model(cache, name, folder):
    """Lay `folder` out in a hub's cache as huggingface_hub does: blobs, a snapshot that links to them, a branch."""
    commit = hashlib.sha1(name.encode()).hexdigest()
    repository = cache / f"models--{name.replace('/', '--')}"
    for path in (path for path in Path(folder).rglob("*") if path.is_file()):
        blob, link = repository / "blobs" / sha256(path), repository / "snapshots" / commit / path.relative_to(folder)
        for parent in (blob.parent, link.parent, repository / "refs"):
            parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs/main").write_text(commit)
    return commit


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of a hub's cache, offline; a function puts models into it."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache
