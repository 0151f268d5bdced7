"""Weights of metrics in a folder of the user's: fetched, found again, checked, missed."""

import shutil
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from dp2osr.errors import UserError
from dp2osr.rewards.batches import Batches
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

    from dp2osr.rewards.fetch import fetch_weights
    from dp2osr.rewards.weight_files import check_manifest

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


def test_what_to_do_about_missing_weights_is_said_in_one_line(monkeypatch, tmp_path):
    import pyiqa.utils.download_util

    monkeypatch.setattr(pyiqa.utils.download_util, "download_url_to_file", mock.Mock(side_effect=OSError("no network")))
    monkeypatch.setattr(pyiqa.utils.download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    for name, way in {
        "brisque": r"write brisque: \{parameters: preset/metrics/brisque.safetensors\} in the YAML",
        "musiq": r"take --reward_config embedded .*which needs no download, or run python scripts/fetch_metrics.py --extra_metrics musiq",
    }.items():
        with pytest.raises(
            UserError, match=f"metric '{name}': its weights are not here and cannot be fetched .*no network.*{way}"
        ) as error:
            MetricSuite([MetricSpec(name)])
        assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    """Its library alone would try five times for each file, a minute in all."""
    from huggingface_hub import constants

    from dp2osr.hub import reasons
    from dp2osr.rewards import weight_files

    asked = []

    def unreachable(address, timeout):
        asked.append(address)
        raise OSError("no route")

    monkeypatch.setattr(reasons.socket, "create_connection", unreachable)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    for _ in range(2):
        with weight_files.no_waiting_for_the_hub():
            assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE and asked == [("hub.invalid", 443)]


# --- Q-Align ---------------------------------------------------------------------------------------------------------

LEVELS = ("excellent", "good", "fair", "poor", "bad")
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
ABSTRACTOR = {"num_learnable_queries": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def write_qalign(folder):
    """A small random model of pyiqa's classes, with a tokenizer of letters and Q-Align's five words, as its repository has them."""
    from pyiqa.archs.q_align import modeling_mplug_owl2 as modeling
    from transformers import CLIPImageProcessor, LlamaTokenizer

    letters = sorted(set("USER:HowwouldyourateASSISTANThequalityofthisimage?."))
    words = ["<unk>", "<s>", "</s>", "\u2581", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokenizer = LlamaTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.add_tokens(list(LEVELS))
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    visual = {"visual_model": VISION, "visual_abstractor": ABSTRACTOR | {"encoder_hidden_size": 32, "grid_size": 4}}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
    torch.manual_seed(0)
    with reading_from(folder):
        model = modeling.MPLUGOwl2LlamaForCausalLM(modeling.MPLUGOwl2Config(visual_config=visual, vocab_size=len(tokenizer), **sizes))
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    model.lm_head.weight.data.mul_(4)  # scores that differ
    model.half().save_pretrained(folder)


@contextmanager
def reading_from(folder):
    """pyiqa's own call, which has the repository's name built in, with that name standing for a folder."""
    from pyiqa.archs import qalign_arch
    from pyiqa.archs.q_align import modeling_mplug_owl2 as modeling

    def elsewhere(cls):
        return SimpleNamespace(from_pretrained=lambda name, **options: cls.from_pretrained(folder, **options))

    model, processor, tokenizer = modeling.MPLUGOwl2LlamaForCausalLM, modeling.CLIPImageProcessor, modeling.LlamaTokenizer
    with (
        mock.patch.object(qalign_arch, "MPLUGOwl2LlamaForCausalLM", elsewhere(model)),
        mock.patch.object(qalign_arch, "CLIPImageProcessor", elsewhere(processor)),
        mock.patch.object(modeling, "CLIPImageProcessor", elsewhere(processor)),
        mock.patch.object(modeling, "LlamaTokenizer", elsewhere(tokenizer)),
    ):
        yield


@pytest.fixture(scope="module")
def metrics_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    write_qalign(str(folder / "qalign"))
    return folder


@pytest.fixture(scope="module")
def three_images():
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.rand(3, 40, 52, generator=generator) ** power for power in (0.3, 1, 4)])


def test_qalign_scores_as_pyiqas_own_call_one_image_at_a_time(metrics_dir, three_images):
    import pyiqa

    suite = MetricSuite([MetricSpec("qalign")], batches=Batches(8), weights_dir=metrics_dir)
    with reading_from(str(metrics_dir / "qalign")):
        plain = pyiqa.create_metric("qalign", device="cpu")
    expected = [plain(image[None]).item() for image in three_images]
    together = suite.score(three_images)["qalign"]
    assert together.tolist() == expected and len(set(expected)) == 3 and all(1 <= score <= 5 for score in expected)
    assert [suite.score(image[None])["qalign"][0] for image in three_images] == expected
    assert suite.describe()["qalign"] == {"lower_better": False, "mode": "NR", "options": {}}


def test_qalign_keeps_its_own_precision_and_is_not_compiled(metrics_dir, three_images):
    plain = MetricSuite([MetricSpec("qalign")], weights_dir=metrics_dir)
    half = MetricSuite([MetricSpec("qalign")], precision="bf16", weights_dir=metrics_dir)
    assert half.score(three_images)["qalign"].tolist() == plain.score(three_images)["qalign"].tolist()
    assert half.describe() == plain.describe()  # so that nothing is scored again
    weights = half.networks()["qalign"].metric.net.model.model.layers[0].mlp.up_proj.weight
    assert weights.dtype == torch.float16


def test_the_mask_that_qalign_lacks_hides_what_is_masked():
    from dp2osr.rewards.qalign import _inverted_mask

    model = SimpleNamespace(dtype=torch.float32)
    added = _inverted_mask(model, torch.tensor([[1.0, 0.0]]))
    assert added.shape == (1, 1, 1, 2) and added[0, 0, 0].tolist() == [0, torch.finfo(torch.float32).min]
    assert _inverted_mask(model, torch.ones(2, 3, 4)).shape == (2, 1, 3, 4)


def test_qalign_is_not_scored_with_weights_that_are_missing(metrics_dir, tmp_path, monkeypatch):
    """transformers would fill them in at random, and only warn."""
    from safetensors.torch import load_file, save_file

    from dp2osr.rewards.qalign import is_whole

    folder = tmp_path / "qalign"
    shutil.copytree(metrics_dir / "qalign", folder)
    assert is_whole(folder)
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="'qalign': .*qalign: 1 of its weights are missing, lm_head.weight"):
        MetricSuite([MetricSpec("qalign")], weights_dir=tmp_path)
    (folder / "model.safetensors").unlink()
    assert not is_whole(folder)
    with pytest.raises(UserError, match="'qalign': its weights are not here.*qalign: "):
        MetricSuite([MetricSpec("qalign")], weights_dir=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.rmtree(folder)
    with pytest.raises(
        UserError, match="q-future/one-align is neither in .*qalign nor in the hub's cache.*--extra_metrics qalign"
    ) as error:
        MetricSuite([MetricSpec("qalign")], weights_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_qalign_is_fetched_to_the_folder_and_not_fetched_again(metrics_dir, tmp_path, monkeypatch):
    import huggingface_hub

    from dp2osr.rewards.fetch import fetch_weights
    from dp2osr.rewards.weight_files import check_manifest

    fetched = []

    def download(name, local_dir, allow_patterns):
        fetched.append(name)
        shutil.copytree(metrics_dir / "qalign", local_dir)
        (local_dir / ".cache").mkdir()
        (local_dir / ".cache/notes.json").write_text("{}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for _ in range(2):
        lines = fetch_weights([MetricSpec("qalign")], tmp_path / "metrics")
        assert any("qalign/model.safetensors" in line for line in lines) and not any(".cache" in line for line in lines)
    assert fetched == ["q-future/one-align"]
    check_manifest(tmp_path / "metrics")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", mock.Mock(side_effect=ValueError("cut\noff")))
    with pytest.raises(UserError, match="q-future/one-align cannot be fetched .cut off.; run the same command again"):
        fetch_weights([MetricSpec("qalign")], tmp_path / "others")
