"""What CONTRIBUTING.md promises of a metric, a loss and a backbone of one's own, each added as it says."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import KINDS, settings_with, write_made_up_scores
from trainings import run_training, words

from dp2osr.backbones import kinds
from dp2osr.backbones.snippets import snippet
from dp2osr.cli import parse
from dp2osr.preference import loss
from dp2osr.sampling.generate import generate_candidates
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.training.settings import TrainSettings
from dp2osr.training.trainer import train_preferences

METRIC = """
from pyiqa.default_model_configs import DEFAULT_CONFIGS
from pyiqa.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class ToyContrast(nn.Module):
    def forward(self, images):
        return images.std(dim=(1, 2, 3))

DEFAULT_CONFIGS["toy_contrast"] = {"metric_opts": {"type": "ToyContrast"}, "metric_mode": "NR", "lower_better": False}
"""

BACKBONE = """
from dp2osr.backbones.sd2 import SD2Backbone

class ToyBackbone(SD2Backbone):
    kind = "toy"
"""


@pytest.fixture
def toy_kind(tmp_path, monkeypatch):
    """A third backbone: its file, and its line in `kinds.py`."""
    (tmp_path / "toy_backbone.py").write_text(BACKBONE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(kinds.KINDS, "toy", kinds.Kind("ToyPipeline", "toy_backbone:ToyBackbone"))
    yield
    sys.modules.pop("toy_backbone", None)


def test_a_backbone_is_a_file_and_a_line_to_sample_and_to_train(toy_kind, lr_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(KINDS["sd2"].model, model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": "ToyPipeline"}))
    settings = settings_with(
        GenerateSettings, pretrained_model_name_or_path=str(model), controlnet_model_name_or_path=KINDS["sd2"].controlnet, backbone="toy",
        image_path=str(lr_folder), output_dir=str(tmp_path / "out"), num_inference_steps=1, num_candidates=6, upscale=1,
    )  # fmt: skip
    assert generate_candidates(settings).settings["backbone"] == "toy"
    write_made_up_scores(tmp_path / "out")
    toy = SimpleNamespace(training_program="", model_flags=["--pretrained_model_name_or_path", str(model), *KINDS["sd2"].model_flags[2:]])
    flags = words(toy, tmp_path / "out", tmp_path / "policy", "--max_train_steps", "1")[1:]
    train_preferences(parse(TrainSettings, flags, backbone="toy"))
    assert "# policy" in (tmp_path / "policy/README.md").read_text(encoding="utf-8")
    assert snippet("toy", "policy", "model", {}, 4) == ""  # of which the card leaves out what needs a template


def toy_of_pairs(winners, losers, weights, beta):
    return (weights * beta * (winners[:, None] - losers[None])).sum()


def toy_of_a_group(winners, losers, advantages, beta):
    return beta * (advantages * torch.cat([winners, losers])).sum()


@pytest.mark.parametrize("toy", [toy_of_pairs, toy_of_a_group])
@pytest.mark.parametrize("kind", ["sd2"], indirect=True)
def test_a_loss_is_a_function_in_the_registry(kind, labelled, tmp_path, monkeypatch, toy):
    monkeypatch.setitem(loss.LOSSES, "toy_gap", toy)
    run_training(kind, labelled, tmp_path / "out", "--loss", "toy_gap", "--max_train_steps", "1")
    assert (tmp_path / "out/model.safetensors").exists()


def test_a_metric_is_a_file_that_a_reward_names(tmp_path):
    from dp2osr.rewards.config import load_reward_config
    from dp2osr.rewards.metrics import MetricSuite

    (tmp_path / "toy_metric.py").write_text(METRIC)
    (tmp_path / "toy.yaml").write_text("imports: [toy_metric.py]\nfr: []\nnr: [toy_contrast]\n")
    suite = MetricSuite(load_reward_config(str(tmp_path / "toy.yaml")).metrics)
    images = torch.rand(2, 3, 32, 32)
    assert suite.score(images, None)["toy_contrast"] == pytest.approx(images.std(dim=(1, 2, 3)).numpy())
