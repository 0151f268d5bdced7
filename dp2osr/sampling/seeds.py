"""Noise that follows from (run seed, image id, candidate) alone, whatever the batch, the order or the number of processes."""

import hashlib

import torch


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from a hash of `parts`; equal parts give equal seeds on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def trunk_generator(run_seed: int, image_id: str) -> torch.Generator:
    """The CPU generator of the sample that an image's candidates branch from."""
    return torch.Generator().manual_seed(stable_seed(run_seed, image_id, "trunk"))


def candidate_generator(run_seed: int, image_id: str, candidate: int) -> torch.Generator:
    """The CPU generator of one candidate: its initial noise and its step noise."""
    return torch.Generator().manual_seed(stable_seed(run_seed, image_id, candidate))
