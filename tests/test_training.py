"""The trainer: exact gradient, neutral start, identical resume after SIGKILL, one or two processes, refusals."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import CONTROLNET, MODEL, MODEL_FLAGS, ROOT, assert_one_clear_line, read_log, run_program
from safetensors.torch import load_file

from dp2osr.backbones import load_backbone
from dp2osr.config import parse_args
from dp2osr.preference.groups import PreferenceGroups
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.store import CandidateStore
from dp2osr.training.checkpoints import restore_checkpoint, save_checkpoint

STEPS = 6


def words(labelled, output, *more):
    return [
        "train_sd2_dpo.py", *MODEL_FLAGS, "--candidates_dir", str(labelled), "--reward_config", str(labelled / "reward.yaml"),
        "--output_dir", str(output),
        "--top_n", "2", "--groups_per_step", "2", "--max_train_steps", str(STEPS), "--checkpointing_steps", "2", "--learning_rate", "1e-4",
        "--report_to", "none", "--seed", "0", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(labelled, tmp_path_factory):
    output = tmp_path_factory.mktemp("policy") / "run"
    run_program(*words(labelled, output))
    return output


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_loss_starts_at_ln_2_with_every_margin_zero(trained):
    first = read_log(trained / "train_log.jsonl")[0]
    assert first["margin"] == first["winner_gap"] == first["loser_gap"] == 0.0
    assert first["implicit_accuracy"] == 0.5
    assert first["loss"] == pytest.approx(math.log(2), abs=0.15)  # the mean weight of two groups is near 1, not 1


def test_the_policy_moves_and_loads_in_diffusers(trained):
    from diffusers import ControlNetModel

    before, after = load_file(f"{CONTROLNET}/diffusion_pytorch_model.safetensors"), weights(trained)
    assert before.keys() == after.keys()
    assert any((before[key].float() - after[key]).abs().max() > 1e-5 for key in before)
    loaded = ControlNetModel.from_pretrained(trained)
    assert all(torch.equal(value, after[key]) for key, value in loaded.state_dict().items())


def test_a_single_file_is_the_same_policy_as_its_folder(trained, backbone):
    folder, file = backbone.load_controlnet(trained), backbone.load_controlnet(trained / "model.safetensors")
    assert all(torch.equal(value, file.state_dict()[key]) for key, value in folder.state_dict().items())


def test_the_same_command_gives_the_same_weights(trained, labelled, tmp_path):
    run_program(*words(labelled, tmp_path / "again"))
    again = weights(tmp_path / "again")
    assert all(torch.equal(value, again[key]) for key, value in weights(trained).items())


@pytest.mark.parametrize("kill_after", [1, 3, 4])
def test_a_killed_run_ends_with_the_same_weights(trained, labelled, tmp_path, kill_after):
    output = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, *words(labelled, output)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 180
    log = output / "train_log.jsonl"
    while time.time() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= kill_after):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "model.safetensors").exists()
    run_program(*words(labelled, output))
    resumed = weights(output)
    assert all(torch.equal(value, resumed[key]) for key, value in weights(trained).items())
    assert [record["step"] for record in read_log(log)] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in read_log(log)] == [record["loss"] for record in read_log(trained / "train_log.jsonl")]


def test_two_processes_give_the_same_weights(trained, labelled, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29613"]
    done = subprocess.run(
        [*launch, *words(labelled, tmp_path / "two")], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = weights(tmp_path / "two")
    assert max((value - two[key]).abs().max().item() for key, value in weights(trained).items()) <= 2e-5


def test_micro_batches_and_gradient_checkpointing_give_the_same_gradient(labelled):
    gradients = []
    for size, checkpointing in ((0, False), (1, False), (3, True)):
        trainer = double_trainer(labelled, size)
        if checkpointing:
            trainer.policy.train().enable_gradient_checkpointing()
            trainer.backbone.denoiser.enable_gradient_checkpointing()
        group = trainer.groups.read(0, trainer.backbone)
        trainer.visit(replace(group, latents=group.latents.double(), weights=group.weights.double()), 1.0)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trainer.parameters if parameter.grad is not None]))
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() <= 1e-8 * gradients[0].norm()


def double_trainer(labelled, micro_batch_size):
    """A float64 trainer around the labelled groups without its output folder; the policy is nudged, so that margins are not zero.

    In float32 the rounding of an error is multiplied by β before the sigmoid, which would hide a small mistake.
    """
    from dp2osr.training.trainer import PreferenceTrainer

    trainer = PreferenceTrainer.__new__(PreferenceTrainer)
    trainer.args = SimpleNamespace(
        seed=0, beta=5000, micro_batch_size=micro_batch_size, shared_noise=False, sft_weight=0.1, timestep_range=(0.0, 1.0)
    )
    trainer.accelerator, trainer.backbone = Accelerator(cpu=True), load_backbone(MODEL, dtype=torch.float64)
    store, config = CandidateStore(labelled), load_reward_config(str(labelled / "reward.yaml"))
    trainer.groups = PreferenceGroups(store, read_scores(labelled / "scores.parquet"), config, None, 2)
    trainer.reference = trainer.backbone.load_controlnet(CONTROLNET).requires_grad_(False)
    trainer.policy = deepcopy(trainer.reference).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter += 0.01 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    trainer.parameters, trainer.step, trainer.control_scale = list(trainer.policy.parameters()), 0, 1.0
    draw_noise = trainer.draw_noise
    trainer.draw_noise = lambda group: (lambda timestep, noise: (timestep, noise.double()))(*draw_noise(group))
    return trainer


def test_prompts_are_embedded_by_the_sampler_and_training_has_no_text_encoder(labelled, backbone, tmp_path):
    from dp2osr.training.trainer import PreferenceTrainer
    from train_sd2_dpo import build_parser

    trainer = PreferenceTrainer(parse_args(build_parser(), words(labelled, tmp_path / "out")[1:]))
    assert not hasattr(trainer.backbone, "text_encoder")
    for index, image_id in enumerate(trainer.groups.image_ids):
        expected = backbone.encode_prompts([CandidateStore(labelled).read(image_id).prompt])
        stored = trainer.groups.read(index, trainer.backbone).prompt
        assert stored.keys() == expected.keys() and all(torch.equal(stored[key], expected[key]) for key in expected)


def test_a_group_without_its_prompt_is_one_line(labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "candidates")
    for path in (tmp_path / "candidates").rglob("prompt.safetensors"):
        path.unlink()
    done = run_program(*words(tmp_path / "candidates", tmp_path / "out"), check=False)
    assert_one_clear_line(done, "prompt.safetensors", "sample into a new folder")


def test_timesteps_are_drawn_from_their_share_of_the_schedule(backbone):
    draw = backbone.draw_timesteps(4000, torch.Generator().manual_seed(0), (0.4, 1.0))
    assert 400 <= draw.min() < 405 and 995 <= draw.max() < 1000
    whole = backbone.draw_timesteps(4000, torch.Generator().manual_seed(0))
    assert whole.min() < 5 and whole.max() >= 995


def test_an_impossible_range_of_timesteps_is_refused(labelled, tmp_path):
    done = run_program(*words(labelled, tmp_path / "out", "--timestep_range", "0.7", "0.2"), check=False)
    assert_one_clear_line(done, "--timestep_range 0.7 0.2", "0 <= LOW < HIGH <= 1")


@pytest.mark.parametrize(
    ("flag", "value"), [("--beta", "-1"), ("--sft_weight", "-0.5"), ("--groups_per_step", "0"), ("--learning_rate", "nan")]
)
def test_numbers_without_a_meaning_are_one_line(labelled, tmp_path, flag, value):
    assert_one_clear_line(run_program(*words(labelled, tmp_path / "out", flag, value), check=False), flag, "must be at least", value)
    assert not (tmp_path / "out").exists()


def test_other_settings_and_another_model_are_refused(trained, labelled, tmp_path):
    done = run_program(*words(labelled, trained, "--beta", "100"), check=False)
    assert_one_clear_line(done, "beta is 5000.0 there and 100.0 here")
    words_of_other = words(labelled, tmp_path / "other")
    words_of_other[words_of_other.index(MODEL)] = other_model(tmp_path)
    assert_one_clear_line(run_program(*words_of_other, check=False), "latents of another model")


def other_model(tmp_path):
    import shutil

    from safetensors.torch import save_file

    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    path = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, path)
    return str(folder)


@pytest.mark.parametrize(("more", "mention"), [(["--top_n", "4"], "--top_n 4"), (["--num_candidates", "9"], "only 6 candidates")])
def test_impossible_m_and_n_are_one_line(labelled, tmp_path, more, mention):
    assert_one_clear_line(run_program(*words(labelled, tmp_path / "out", *more), check=False), mention)
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_passed_over(tmp_path, capsys):
    layer = torch.nn.Linear(100, 10)
    for step in (2, 4):
        torch.nn.init.constant_(layer.weight, step)
        save_checkpoint(tmp_path, step, {"policy": layer}, keep=2)
    newest = tmp_path / "checkpoint-4.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    assert restore_checkpoint(tmp_path, {"policy": layer}) == 2
    assert layer.weight.eq(2).all()
    assert "checkpoint-4.pt" in capsys.readouterr().err


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (2, 10, 4):
        save_checkpoint(tmp_path, step, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10.pt", "checkpoint-4.pt"]
