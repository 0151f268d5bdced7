"""Cards of trained models: what they say, that their lines run, and that a user's edits stay."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, one_kind
from hub_server import front_of, policy, push  # noqa: F401 - a fixture
from PIL import Image

from dp2osr.backbones import load_backbone
from dp2osr.errors import UserError
from dp2osr.hub.cards import CARD, is_edited, without_places, write_card
from dp2osr.training.model_card import TrainedControlNet, model_card


def test_a_training_leaves_a_card_whose_lines_run_with_plain_diffusers(kind, trained, tmp_path, monkeypatch):
    """The image is the one that this project's own loop makes from the same noise; FLUX's control is drawn from the posterior there."""
    card = (trained / CARD).read_text(encoding="utf-8")
    assert front_of(card)["library_name"] == "diffusers" and "controlnet" in front_of(card)["tags"] and "base_model" not in front_of(card)
    code = re.search(r"```python\n(.*?)```", model_card(TrainedControlNet(trained), "me/policy", is_pushed=True), re.DOTALL)[1]
    assert "dtype = torch.float32" in code
    shutil.copy(sorted((ROOT / "preset/test/lr").glob("*.png"))[0], tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    for name, path in (("me/policy", trained), (kind.model, kind.model)):
        code = code.replace(json.dumps(without_places(name)), json.dumps(str(path)))
    if kind.name == "flux":
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    exec(code, {})
    ours = by_our_loop(kind, trained, Image.open("small.png").convert("RGB"))
    assert np.abs(np.asarray(Image.open("large.png"), dtype=int) - ours).max() <= 2


def by_our_loop(kind, folder, small):
    from dp2osr.data.images import tensor_to_pil
    from dp2osr.sampling.defaults import LoopSettings
    from dp2osr.sampling.resize import control_image

    backbone = load_backbone(kind.model)
    control, *_ = control_image(small, 4, backbone.native_size, backbone.size_multiple)
    settings = LoopSettings(2, 1.0, backbone.default_scheduler)
    shape = (backbone.latent_channels, *(side // backbone.vae_scale for side in control.shape[2:]))
    made = backbone.sample(
        backbone.load_controlnet(folder), backbone.prepare_control(control), backbone.encode_prompts([""]), None,
        [torch.Generator().manual_seed(0)], shape, settings,
    )  # fmt: skip
    return np.asarray(tensor_to_pil(backbone.decode_latents(made)[0]), dtype=int)


@one_kind
def test_a_card_says_what_the_records_say_and_nothing_else(kind, policy):
    card = (policy / CARD).read_text(encoding="utf-8")
    settings = json.loads((policy / "settings.json").read_text())
    last = json.loads((policy / "train_log.jsonl").read_text().splitlines()[-1])
    for words_ in (
        settings["start_hash"],
        settings["candidates"]["model_hash"],
        f"{last['loss']:.3f}",
        "gmsd",
        "piqe",
        "6 samples of each of 3",
    ):
        assert words_ in card, words_
    assert "held-out" not in card and "## Evaluation" not in card and "## Pictures" not in card  # there was none of these
    assert "license" not in front_of(card)


@one_kind
def test_a_card_that_a_user_has_edited_is_kept(kind, policy, capsys):
    path = policy / CARD
    assert not is_edited(path)
    card = path.read_text(encoding="utf-8")
    path.write_text(card.replace("---\n", "---\nlicense: mit\n", 1), encoding="utf-8")
    assert is_edited(path) and not write_card(policy, card) and "license: mit" in path.read_text()
    assert "is kept" in capsys.readouterr().out
    path.write_text("mine", encoding="utf-8")
    assert not write_card(policy, card) and path.read_text() == "mine"


def test_what_others_see_names_no_place_of_this_machine():
    seen = {"a": "/home/ann/models/sd2/", "b": ["~/x/y", "me/id", "preset/models/tiny-sd2", 3], "c": {"d": "../up/there"}, "e": r"C:\u\m"}
    assert without_places(seen) == {"a": "sd2", "b": ["y", "me/id", "preset/models/tiny-sd2", 3], "c": {"d": "there"}, "e": "m"}


@one_kind
def test_the_g_of_an_evaluation_enters_the_card_if_it_is_of_these_weights(kind, policy, tmp_path, capsys):
    from dp2osr.provenance import weights_hash

    (tmp_path / "report").mkdir()

    def report(of):
        gain = {"G": {"value": 1.234, "low": 1, "high": 2}}
        methods = {"base": {"controlnet_hash": "x"}, "tuned": {"controlnet_hash": of}}
        about = {
            "base": "base",
            "num_photographs": 7,
            "num_candidates": 8,
            "comparisons": {"tuned": gain},
            "settings": {"methods": methods},
        }
        (tmp_path / "report/summary.json").write_text(json.dumps(about))
        push(policy, "--report", tmp_path / "report", "--dry_run")

    with pytest.raises(UserError, match="compares no samples of the weights in"):
        report("others")
    report(weights_hash(policy))
    line = "G = 1.23, 95 % interval 1.00 to 2.00 against `base`, over 7 photographs × 8 seeds."
    assert line in (policy / CARD).read_text(encoding="utf-8")
    assert "nothing is uploaded; 7 files would go to a model repository" in capsys.readouterr().out
    (policy / CARD).write_text("mine")
    with pytest.raises(UserError, match="--report: .*is kept; remove it, or write G into it"):
        report(weights_hash(policy))
