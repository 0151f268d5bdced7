"""The knob between base and policy: 0 is the base to the byte, 1 the policy, between them the weights are a mean."""

import json
import shutil

import pytest
import torch
from conftest import assert_one_clear_line, one_kind, run_program, settings_with
from safetensors.torch import load_file, save_file
from trainings import run_training

from dp2osr.errors import UserError
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.sampling.strength import FLAG, load_controlnet

STEPS = ["--num_inference_steps", "1", "--guidance_scale", "1", "--control_scale", "1", "--align_method", "adain", "--upscale", "4"]


@pytest.fixture(scope="module")
def policy(kind, tmp_path_factory):
    """The folder of a run: other weights than its start, and the record of it, as the trainer writes both."""
    from dp2osr.provenance import weights_hash

    folder = tmp_path_factory.mktemp("policy") / "run"
    shutil.copytree(kind.controlnet, folder)
    [path] = folder.glob("*.safetensors")
    generator = torch.Generator().manual_seed(0)
    save_file({name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in load_file(path).items()}, path)
    record = {"controlnet_model_name_or_path": kind.controlnet, "start_hash": weights_hash(kind.controlnet), "top_n": 2}
    (folder / "settings.json").write_text(json.dumps(record))
    return folder


def settings_of(kind, policy, strength, **more):
    return settings_with(
        GenerateSettings,
        pretrained_model_name_or_path=kind.model,
        controlnet_model_name_or_path=str(policy),
        policy_strength=strength,
        **more,
    )


def weights_at(kind, backbone, policy, strength):
    return load_controlnet(settings_of(kind, policy, strength), backbone, {}).state_dict()


def test_weights_go_from_the_base_to_the_policy_and_beyond(kind, backbone, policy):
    base, own = (backbone.load_controlnet(path).state_dict() for path in (kind.controlnet, policy))
    at = {strength: weights_at(kind, backbone, policy, strength) for strength in (0, 0.5, 1, 2)}
    assert any(not torch.equal(base[name], own[name]) for name in base)
    for name in base:
        assert torch.equal(at[0][name], base[name]) and torch.equal(at[1][name], own[name])
        assert torch.allclose(at[0.5][name].double(), (base[name].double() + own[name].double()) / 2, rtol=1e-6, atol=1e-8)
        assert torch.allclose(at[2][name].double(), 2 * own[name].double() - base[name].double(), rtol=1e-5, atol=1e-7)


def test_strength_0_gives_the_images_of_the_base_and_1_those_of_the_policy(kind, policy, lr_folder, tmp_path):
    image = sorted(lr_folder.glob("*.png"))[0]

    def restored(controlnet, *more):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        words = ["--pretrained_model_name_or_path", kind.model, "--controlnet_model_name_or_path", controlnet, *STEPS, *more]
        run_program(kind.test_program, *words, "--image_path", image, "--output_dir", out)
        return (out / image.name).read_bytes()

    base, own = restored(kind.controlnet), restored(policy)
    assert restored(policy, "--policy_strength", 0) == base
    assert restored(policy, "--policy_strength", 1) == own != base
    assert restored(policy, "--policy_strength", 0.5) not in (base, own)


@one_kind
def test_results_of_another_strength_are_other_results_and_those_without_one_are_the_policys(kind, policy, lr_folder, tmp_path):
    image = sorted(lr_folder.glob("*.png"))[0]
    words = ["--pretrained_model_name_or_path", kind.model, "--controlnet_model_name_or_path", policy, *STEPS]
    words = [kind.test_program, *words, "--image_path", image, "--output_dir", tmp_path / "out"]
    run_program(*words)
    paths = [tmp_path / "out/settings.json", next((tmp_path / "out/.records").glob("*.json"))]
    for path in paths:  # as they were written before there was a strength
        content = json.loads(path.read_text())
        assert content.get("settings", content).pop("policy_strength") == 1
        path.write_text(json.dumps(content))
    assert "0 images written, 1 already there" in run_program(*words).stdout
    assert_one_clear_line(run_program(*words, "--policy_strength", "0.5", check=False), "policy_strength is", "0.5 here")
    assert "1 image written" in run_program(*words, "--policy_strength", "0.5", "--overwrite").stdout
    record = json.loads(paths[1].read_text())["settings"]
    assert (record["policy_strength"], record["base_controlnet"]) == (0.5, kind.controlnet) and record["base_controlnet_hash"]
    assert "1 already there" in run_program(*words, "--policy_strength", "0.5", FLAG, kind.controlnet).stdout
    assert_one_clear_line(run_program(*words, check=False), "policy_strength is 0.5 there and 1.0 here")


@one_kind
def test_a_base_that_cannot_be_found_is_one_line(kind, backbone, policy, tmp_path):
    with pytest.raises(UserError, match=f"no settings.json of a preference training.*{FLAG}"):
        weights_at(kind, backbone, kind.controlnet, 0.5)
    moved = tmp_path / "best"  # beside which the run's settings lie
    shutil.copytree(policy, moved, ignore=shutil.ignore_patterns("settings.json"))
    shutil.copy(policy / "settings.json", tmp_path)
    assert weights_at(kind, backbone, moved, 0)
    for change, told in (
        ({"controlnet_model_name_or_path": "/gone"}, "which is not there"),
        ({"start_hash": "0"}, "whose weights are others"),
    ):
        record = json.loads((policy / "settings.json").read_text())
        (tmp_path / "settings.json").write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=f"{told}.*{FLAG}"):
            weights_at(kind, backbone, moved, 0.5)


def test_a_base_of_other_shapes_is_one_line(kind, backbone, policy, tmp_path):
    more = {"conditioning_channels": (4,) * backbone.vae_scale.bit_length()} if kind.name == "sd2" else {"num_double_layers": 1}
    backbone.new_controlnet(**more).save_pretrained(tmp_path / "other")
    settings = settings_of(kind, policy, 0.5, base_controlnet_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(UserError, match="of its tensors are not as those of"):
        GroupSampler(settings, "cpu", backbone)


@one_kind
def test_a_base_that_nobody_reads_is_said(kind, policy):
    from dp2osr.sampling.strength import unused_base

    assert "not read" in unused_base(settings_of(kind, policy, 1.0, base_controlnet_model_name_or_path=kind.controlnet))
    assert unused_base(settings_of(kind, policy, 0.5, base_controlnet_model_name_or_path=kind.controlnet)) is None


@one_kind
def test_a_trained_policy_knows_its_start(kind, trained):
    from dp2osr.sampling.strength import base_of

    assert base_of(settings_of(kind, trained, 0.5)) == kind.controlnet
    assert base_of(settings_of(kind, sorted(trained.glob("checkpoint-*.pt"))[-1], 0.5)) == kind.controlnet
    assert base_of(settings_of(kind, trained, 1.0)) is None


@one_kind
def test_a_policy_of_adapters_is_blended_as_any_other(kind, backbone, labelled, tmp_path):
    output = tmp_path / "lora"
    run_training(kind, labelled, output, "--lora_rank", 2, "--max_train_steps", 1)
    base, own, half = (weights_at(kind, backbone, output, strength) for strength in (0, 1, 0.5))
    start = backbone.load_controlnet(kind.controlnet).state_dict()
    assert all(torch.equal(base[name], start[name]) for name in start) and any(not torch.equal(own[name], start[name]) for name in start)
    assert all(torch.allclose(half[name], (own[name] + start[name]) / 2, atol=1e-7) for name in start)
