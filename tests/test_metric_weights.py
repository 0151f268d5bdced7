"""Weights of metrics in a folder of the user's: fetched, found again, checked, missed."""

import pytest
import torch

from dp2osr.errors import UserError
from dp2osr.rewards.config import MetricSpec
from dp2osr.rewards.metrics import MetricSuite


def fake_download(url, path, hash_prefix=None, progress=True):
    """In place of the network: an alexnet's weights, and LPIPS's five linear layers."""
    import torchvision

    if "alexnet" in str(url):
        state = torchvision.models.alexnet().state_dict()
    else:
        channels = (64, 192, 384, 256, 256)
        state = {f"lin{index}.model.1.weight": torch.rand(1, count, 1, 1) for index, count in enumerate(channels)}
    torch.save(state, path)


def test_fetched_weights_are_found_checked_and_missed(tmp_path, monkeypatch):
    import pyiqa.utils.download_util
    import torch.hub

    from dp2osr.rewards.weights import check_manifest, fetch_weights

    monkeypatch.setattr(torch.hub, "download_url_to_file", fake_download)
    monkeypatch.setattr(pyiqa.utils.download_util, "download_url_to_file", fake_download)
    folder, before = tmp_path / "weights", torch.hub.get_dir()
    lines = fetch_weights([MetricSpec("lpips")], folder)
    assert sum("fetched for lpips" in line for line in lines) == 2 and all("WARNING: its name promises" in line for line in lines[:2])
    assert torch.hub.get_dir() == before
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    monkeypatch.setattr(pyiqa.utils.download_util, "download_url_to_file", None)
    assert sum("was there" in line for line in fetch_weights([MetricSpec("lpips")], folder)) == 2
    check_manifest(folder)
    [lpips] = folder.rglob("LPIPS*.pth")
    lpips.write_bytes(lpips.read_bytes()[:-1])
    with pytest.raises(UserError, match="LPIPS.*is not the file that was fetched"):
        check_manifest(folder)
    with pytest.raises(UserError, match="LPIPS.*is not the file that was fetched"):
        fetch_weights([MetricSpec("lpips")], folder)
    lpips.unlink()
    with pytest.raises(UserError, match="LPIPS.*is missing; run scripts/fetch_metrics.py again"):
        check_manifest(folder)
    monkeypatch.setattr(pyiqa.utils.download_util, "download_url_to_file", fake_download)
    assert sum("fetched for lpips" in line for line in fetch_weights([MetricSpec("lpips")], folder)) == 1
    check_manifest(folder)
    with pytest.raises(UserError, match="absent: no such folder"):
        check_manifest(tmp_path / "absent")


def test_a_broken_weights_file_is_named_by_its_metric(tmp_path, monkeypatch):
    import pyiqa.utils.download_util
    import torch.hub

    def broken(url, path, hash_prefix=None, progress=True):
        with open(path, "wb") as file:
            file.write(b"PK\x03\x04 not a checkpoint")

    monkeypatch.setattr(torch.hub, "download_url_to_file", broken)
    monkeypatch.setattr(pyiqa.utils.download_util, "download_url_to_file", broken)
    with pytest.raises(UserError, match="metric 'lpips': a weights file of it cannot be read"):
        MetricSuite([MetricSpec("lpips")], weights_dir=tmp_path)


def test_qalign_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="'qalign' cannot run under transformers.*'qrealign'.*--exclude_metrics qalign"):
        MetricSuite([MetricSpec("qalign")])
