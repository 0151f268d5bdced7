"""What the tests of label share: fixtures and helpers."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dp2osr.rewards.batches import Batches
from dp2osr.rewards.config import MetricSpec
from dp2osr.rewards.label import pair_gt
from dp2osr.rewards.labeller import Labeller
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.sampling.store import CandidateGroup, CandidateStore

COUNT, SIDE = 3, 48


def write_group(store, image_id, seed):
    """A group whose latents are its images."""
    shutil.rmtree(store.groups / image_id, ignore_errors=True)
    latents = torch.rand(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    store.write(CandidateGroup(image_id, latents, "", Image.new("RGB", (12, 12)), list(range(COUNT)), 4))


class Decoder:
    """Stands in for the autoencoder; counts the groups and can fail after some."""

    def __init__(self, fail_after=None):
        self.decoded, self.fail_after = [], fail_after

    def __call__(self, group):
        if len(self.decoded) == self.fail_after:
            raise KeyboardInterrupt
        self.decoded.append(group.image_id)
        return group.latents.float().mul(255).round().div(255)


@pytest.fixture(scope="module")
def suites():
    names = {"full": ["gmsd", "nlpd", "piqe"], "more": ["gmsd", "nlpd", "piqe", "psnr"], "nr": ["piqe"]}
    return {key: MetricSuite([MetricSpec(name) for name in metrics], batches=Batches(2)) for key, metrics in names.items()}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(CandidateStore, "has_prompt", lambda store, image_id: True)
    store = CandidateStore(tmp_path / "candidates", {"seed": 0, "num_candidates": COUNT, "align_method": "adain"})
    for seed, image_id in enumerate(["b", "a", "c", "d"]):
        write_group(store, image_id, seed)
    return store


@pytest.fixture
def gt_path(tmp_path, store):
    folder = tmp_path / "gt"
    folder.mkdir()
    for index, image_id in enumerate(store.ids()):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{image_id}.png")
    return folder


def labeller(store, suite, gt_path, output, decoder=None, strict=False):
    gt_paths = pair_gt(gt_path, store.ids(), suite.modes)
    return Labeller(store, suite, gt_paths, output, decoder or Decoder(), strict)


def label(*args, **kwargs):
    """One process labels everything; returns (its decoder, whether the table was written)."""
    worker = labeller(*args, **kwargs)
    worker.score_missing(worker.store.ids(), show_progress=False)
    return worker.decode, worker.merge()
