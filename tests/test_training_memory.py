"""What makes a training smaller: the reference in 16 bits, 8-bit Adam, a quantised backbone."""

import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from conftest import one_kind
from trainings import run_training, weights, words

from dp2osr.backbones import load_backbone, loading, quantization
from dp2osr.backbones.loading import ModelSource
from dp2osr.errors import UserError
from dp2osr.training.checks import check_libraries
from dp2osr.training.reference import in_16_bits
from dp2osr.training.trainer import PreferenceTrainer


def test_a_reference_in_16_bits_gives_the_same_bits_under_autocast(kind, tmp_path, labelled):
    flags = ["--mixed_precision", "bf16", "--max_train_steps", "1"]
    trainer = PreferenceTrainer(kind.training_settings(words(kind, labelled, tmp_path / "run", *flags)[1:]))
    group = trainer.groups.read(0, trainer.backbone)
    control, (timestep, noise) = trainer.backbone.prepare_control(group.control), trainer.objective.draw(0, group)
    full = trainer.backbone.load_controlnet(kind.controlnet, torch.float32)
    with torch.no_grad():
        light, expected = trainer.objective.errors([trainer.frozen, full], group, control, timestep, noise, slice(0, 4))
    assert torch.equal(light, expected)
    kept = {name for name, parameter in trainer.frozen.named_parameters() if parameter.dtype == torch.float32}
    assert kept and all("norm" in name for name in kept), kept
    size = sum(parameter.nbytes for parameter in trainer.frozen.parameters())
    assert size < 0.52 * sum(parameter.nbytes for parameter in full.parameters())
    assert {parameter.dtype for parameter in trainer.reference.parameters()} == {torch.bfloat16}  # what validation samples with
    shared = {parameter.data_ptr() for parameter in trainer.frozen.parameters()}
    assert sum(parameter.data_ptr() in shared for parameter in trainer.reference.parameters()) > len(shared) / 2
    assert all(torch.equal(value, full.state_dict()[key]) for key, value in trainer.origin.state_dict().items())


def test_only_what_autocast_casts_is_held_in_16_bits():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.GroupNorm(2, 4), torch.nn.Embedding(3, 4), torch.nn.Linear(4, 4))
    light, whole = in_16_bits(deepcopy(network).requires_grad_(False), torch.float16)
    assert [layer.weight.dtype for layer in light] == [torch.float16, torch.float32, torch.float32, torch.float16]
    assert [layer.weight.dtype for layer in whole] == [torch.float16] * 4


@one_kind
def test_8_bit_adam_is_the_baselines(kind, labelled, tmp_path, monkeypatch):
    made = []

    def adam(parameters, **options):
        made.append(options)
        return torch.optim.AdamW(parameters, **options)

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=adam), __spec__=SimpleNamespace()))
    run_training(kind, labelled, tmp_path / "run", "--use_8bit_adam", "--max_train_steps", "1")
    assert made == [{"lr": 1e-4, "weight_decay": 0.01}] and weights(tmp_path / "run")


@pytest.mark.parametrize(("flag", "value"), [("use_8bit_adam", True), ("quantize_backbone", "int8"), ("quantize_backbone", "nf4")])
def test_a_library_that_is_not_installed_is_one_line(monkeypatch, flag, value):
    args = SimpleNamespace(**{"use_8bit_adam": False, "quantize_backbone": None, flag: value})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"--{flag}.*: the package bitsandbytes is not installed; pip install bitsandbytes, or leave"):
        check_libraries(args)


@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_a_quantised_backbone_is_the_denoiser_alone(kind, monkeypatch, how):
    """By what reaches `from_pretrained`: nothing here has a GPU to quantise on."""
    asked, load = {}, ModelSource.load
    held = {"quantization_config": how, "device_map": {"": "cpu"}}
    monkeypatch.setattr(loading, "quantized", lambda how, device, dtype: {**held} if how else {})

    def noted(self, cls, name, **options):
        asked[name] = {key: options.pop(key) for key in held if key in options}
        return load(self, cls, name, **options)

    monkeypatch.setattr(ModelSource, "load", noted)
    backbone = load_backbone(kind.model, parts=("vae", "denoiser"), quantize=how)
    assert [name for name, options in asked.items() if options] == [{"sd2": "unet", "flux": "transformer"}[kind.name]]
    assert not any(parameter.requires_grad for parameter in backbone.denoiser.parameters())
    assert backbone.load_controlnet(kind.controlnet, torch.float32).dtype == torch.float32


def test_a_quantised_backbone_is_configured_by_diffusers_and_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr("diffusers.BitsAndBytesConfig", lambda **options: options)
    gpu = torch.device("cuda", 0)
    assert quantization.quantized(None, gpu, torch.bfloat16) == {}
    assert quantization.quantized("int8", gpu, torch.bfloat16) == {"quantization_config": {"load_in_8bit": True}, "device_map": {"": gpu}}
    nf4 = quantization.quantized("nf4", gpu, torch.bfloat16)["quantization_config"]
    assert nf4 == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    with pytest.raises(UserError, match="--quantize_backbone nf4: needs a GPU"):
        quantization.quantized("nf4", torch.device("cpu"), torch.float32)
