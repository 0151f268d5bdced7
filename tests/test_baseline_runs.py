"""Baseline: baseline runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from baselines import BASELINE, made_trainer, photographs, train_controlnet  # noqa: F401 - fixtures
from conftest import ROOT, read_log
from programs import is_alive
from safetensors.torch import load_file, save_file

from dp2osr.errors import UserError
from dp2osr.training import pool


def weights(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def largest_difference(one, other):
    return max((value - other[key]).abs().max().item() for key, value in one.items())


def test_four_micro_batches_are_one_batch(tmp_path):
    for name, size, micro_batches in (("wide", 4, 1), ("long", 1, 4)):
        split = ["--train_batch_size", size, "--gradient_accumulation_steps", micro_batches]
        train_controlnet("--full_window_share", 0, "--max_train_steps", 2, *split, "--output_dir", tmp_path / name)
    assert largest_difference(weights(tmp_path / "wide/controlnet"), weights(tmp_path / "long/controlnet")) < 1e-6
    wide, long = (read_log(tmp_path / name / "train_log.jsonl")[-1]["loss"] for name in ("wide", "long"))
    assert wide == pytest.approx(long, rel=1e-5)


def test_noise_follows_from_seed_and_sample(backbone):
    from dp2osr.training.regression import draw_noise

    def drawn(numbers, seed=0):
        return draw_noise(backbone, numbers, (4, 8, 8), seed, {}, (1.0, 3.0))

    together, apart = drawn([5, 6]), drawn([6])
    assert all(torch.equal(a[1:], b) for a, b in zip(together, apart, strict=True))
    assert not torch.equal(drawn([6], seed=1)[0], apart[0]) and 1 <= apart[2] <= 3


@pytest.mark.slow
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(tmp_path):
    """SIGKILL in the middle, with two loading processes; the whole run loads by itself."""
    flags = ["--max_train_steps", 6, "--checkpointing_steps", 2, "--use_ema"]
    train_controlnet(*flags, "--output_dir", tmp_path / "whole")
    words = [*BASELINE, *flags, "--dataloader_num_workers", "2", "--output_dir", tmp_path / "cut"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process: two add up in another order
    process = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=one_thread, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "cut").glob("checkpoint-*.pt")):
        assert process.poll() is None
        time.sleep(0.02)
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    train_controlnet(*flags, "--dataloader_num_workers", 2, "--output_dir", tmp_path / "cut")
    for part in ("controlnet", "model/unet", "model/text_encoder"):
        name = "model.safetensors" if "text" in part else "diffusion_pytorch_model.safetensors"
        whole, cut = (load_file(tmp_path / run / part / name) for run in ("whole", "cut"))
        assert all(torch.equal(value, cut[key]) for key, value in whole.items())
    assert len(workers) >= 2 and not any(map(is_alive, workers))


def children_of(process):
    return [int(word) for task in Path(f"/proc/{process}/task").iterdir() for word in (task / "children").read_text().split()]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_ends_the_training_after_its_step_with_a_checkpoint(tmp_path, monkeypatch, capsys, name, ctrl_c):
    from dp2osr.divergence import Divergence

    number, see = getattr(signal, name), Divergence.see

    def send(self, step, finite):
        if step == 1:
            os.kill(os.getpid(), number)  # while step 2 begins
        see(self, step, finite)

    flags = ["--max_train_steps", 4, "--checkpointing_steps", 100, "--output_dir", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(Divergence, "see", send)
        with pytest.raises(SystemExit) as stop:
            train_controlnet(*flags)
    assert stop.value.code == 128 + number
    assert f"{name} came; step 2 of 4 is saved" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2.pt"]
    train_controlnet(*flags)
    assert "goes on from step 2" in capsys.readouterr().err and read_log(tmp_path / "out/train_log.jsonl")[-1]["step"] == 4


def test_the_mean_of_the_weights_is_what_is_saved(tmp_path):
    flags = ["--max_train_steps", 4, "--output_dir"]
    train_controlnet(*flags, tmp_path / "plain")
    train_controlnet("--use_ema", *flags, tmp_path / "mean")
    train_controlnet("--use_ema", "--ema_decay", 0, *flags, tmp_path / "none")
    plain, mean, none = (weights(tmp_path / name / "controlnet") for name in ("plain", "mean", "none"))
    assert largest_difference(plain, none) < 1e-8 < 1e-5 < largest_difference(plain, mean)
    assert torch.load(tmp_path / "mean/checkpoint-4.pt", weights_only=True)["ema"]["optimization_step"] == 4


def test_frozen_parts_are_in_bf16_and_the_controlnet_is_not(kind, tmp_path):
    trainer = made_trainer(tmp_path, kind, "--mixed_precision", "bf16", "--gradient_checkpointing")
    assert {parameter.dtype for parameter in trainer.backbone.denoiser.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.controlnet.parameters()} == {torch.float32}
    assert trainer.controlnet.is_gradient_checkpointing and trainer.backbone.denoiser.is_gradient_checkpointing


def test_prompts_are_embedded_once_and_their_encoders_freed(kind, tmp_path):
    stems = sorted(path.stem for path in (ROOT / "preset/train/gt").glob("*.png"))
    (tmp_path / "tags.json").write_text(json.dumps({stem: f"tag {place % 5}" for place, stem in enumerate(stems)}))
    trainer = made_trainer(tmp_path, kind, "--prompt_file", tmp_path / "tags.json")
    assert not hasattr(trainer.backbone, "text_encoder") and len(trainer.prompts.known) == 7
    kept = made_trainer(tmp_path, kind, "--prompt_file", tmp_path / "tags.json", "--text_cache_gb", "1e-6")
    assert hasattr(kept.backbone, "text_encoder")
    for one, other in zip(*(book.embed([4, 2, 4]).values() for book in (trainer.prompts, kept.prompts)), strict=True):
        assert torch.allclose(one, other, atol=1e-5) and len(kept.prompts.known) <= 2


def test_validation_pictures_are_drawn_of_the_weights_as_they_are(kind, tmp_path):
    image = sorted((ROOT / "preset/test/lr").glob("*.png"))[0]
    more = ["--validation_image", image, "--validation_prompt", "a tree", "--validation_steps", 1, "--num_inference_steps", 1]
    made_trainer(tmp_path, kind, *more, "--max_train_steps", 2, "--use_ema").train()
    assert sorted(path.name for path in (tmp_path / "out/samples").iterdir()) == ["000001.png", "000002.png"]


def test_8_bit_adam_without_its_package_is_one_line(tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest))
    with pytest.raises(UserError, match="--use_8bit_adam: the package bitsandbytes is not installed; pip install bitsandbytes"):
        train_controlnet("--use_8bit_adam", "--output_dir", tmp_path / "out")


def test_another_set_of_photographs_is_another_run(photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    flags = ["--train_dir", photographs, "--max_train_steps", 1, "--output_dir", out]
    train_controlnet(*flags)
    sorted(photographs.glob("*.png"))[0].unlink()
    with pytest.raises(UserError, match="photographs is '12 photographs"):
        train_controlnet(*flags)


def test_a_training_from_a_pool_resumes_to_the_same_weights(kind, tmp_path, monkeypatch):
    """Text encoders are trained too, and T5 has dropout: what it drops must follow from the sample's number as well."""
    more = ["--train_backbone", "--pool_size", 5, "--checkpointing_steps", 2, "--max_train_steps", 3, "--learning_rate", 1e-3]
    for name in ("whole", "cut"):
        made_trainer(tmp_path / name, kind, *more).train()
    (tmp_path / "cut/out/checkpoint-3.pt").unlink()
    monkeypatch.setattr(pool, "encode_pool", None)  # it lies in the folder
    made_trainer(tmp_path / "cut", kind, *more).train()
    names = sorted(path.relative_to(tmp_path / "whole/out") for path in (tmp_path / "whole/out").rglob("*.safetensors"))
    assert len(names) >= 4
    for name in names:
        whole, cut = (load_file(tmp_path / run / "out" / name) for run in ("whole", "cut"))
        assert all(torch.equal(value, cut[key]) for key, value in whole.items()), name


def test_a_broken_pool_is_one_line(tmp_path):
    path = tmp_path / "pool.safetensors"
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="pool.safetensors: not readable .*; delete it, and"):
        pool.read_pool(path, 5)
    save_file({name: torch.zeros(4) for name in ("latents", "control", "prompts")}, path)
    with pytest.raises(UserError, match="no pool of 5 crops"):
        pool.read_pool(path, 5)


def test_prompts_of_validation_pictures_are_one_for_all_or_one_each(kind, tmp_path):
    images = sorted((ROOT / "preset/test/lr").glob("*.png"))[:3]
    with pytest.raises(UserError, match="--validation_prompt: 2 prompts for 3 images"):
        made_trainer(tmp_path, kind, "--validation_image", *images, "--validation_prompt", "a", "b")
