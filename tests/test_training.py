"""The trainer: exact gradient, neutral start, identical resume after SIGKILL, one or two processes, refusals."""

import importlib.util
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, assert_one_clear_line, one_kind, read_log, run_program, save_noise, settings_with
from safetensors.torch import load_file

from dp2osr.backbones import load_backbone
from dp2osr.backbones.sd2 import SD2Backbone
from dp2osr.backbones.tiles import Tiling
from dp2osr.cli import given
from dp2osr.errors import NonFiniteSamples, UserError
from dp2osr.files import read_json, write_json
from dp2osr.preference import loss
from dp2osr.preference.groups import PreferenceGroup, PreferenceGroups
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.sampling.store import CandidateStore
from dp2osr.training import options
from dp2osr.training.checkpoints import restore_checkpoint, save_checkpoint
from dp2osr.training.guard import CollapseGuard
from dp2osr.training.objective import GroupObjective
from dp2osr.training.reference_cache import ReferenceCache
from dp2osr.training.settings import Loss, TrainSettings
from dp2osr.training.trainer import PreferenceTrainer
from dp2osr.training.validation import read_validation_images

STEPS = 6


def words(kind, labelled, output, *more):
    return [
        kind.training_program, *kind.model_flags, "--candidates_dir", str(labelled), "--reward_config", str(labelled / "reward.yaml"),
        "--output_dir", str(output),
        "--top_n", "2", "--groups_per_step", "2", "--max_train_steps", str(STEPS), "--checkpointing_steps", "2", "--learning_rate", "1e-4",
        "--report_to", "none", "--seed", "0", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(kind, labelled, tmp_path_factory):
    output = tmp_path_factory.mktemp("policy") / "run"
    run_program(*words(kind, labelled, output))
    return output


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_loss_starts_at_ln_2_with_every_margin_zero(trained):
    first = read_log(trained / "train_log.jsonl")[0]
    assert first["margin"] == first["winner_gap"] == first["loser_gap"] == 0.0
    assert first["implicit_accuracy"] == 0.5
    assert first["loss"] == pytest.approx(math.log(2), abs=0.15)  # the mean weight of two groups is near 1, not 1


def test_the_policy_moves_and_loads_in_diffusers(kind, trained):
    from diffusers import ControlNetModel, FluxControlNetModel

    before, after = load_file(f"{kind.controlnet}/diffusion_pytorch_model.safetensors"), weights(trained)
    assert before.keys() == after.keys()
    assert any((before[key].float() - after[key]).abs().max() > 1e-5 for key in before)
    loaded = {"sd2": ControlNetModel, "flux": FluxControlNetModel}[kind.name].from_pretrained(trained)
    assert all(torch.equal(value, after[key]) for key, value in loaded.state_dict().items())


def test_a_single_file_is_the_same_policy_as_its_folder(trained, backbone):
    folder, file = backbone.load_controlnet(trained), backbone.load_controlnet(trained / "model.safetensors")
    assert all(torch.equal(value, file.state_dict()[key]) for key, value in folder.state_dict().items())


def test_the_same_command_gives_the_same_weights(kind, trained, labelled, tmp_path):
    run_program(*words(kind, labelled, tmp_path / "again"))
    again = weights(tmp_path / "again")
    assert all(torch.equal(value, again[key]) for key, value in weights(trained).items())


@pytest.mark.parametrize("kill_after", [1, 3, 4])
def test_a_killed_run_ends_with_the_same_weights(kind, trained, labelled, tmp_path, kill_after):
    output = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, *words(kind, labelled, output)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 180
    log = output / "train_log.jsonl"
    while time.time() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= kill_after):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "model.safetensors").exists()
    run_program(*words(kind, labelled, output))
    resumed = weights(output)
    assert all(torch.equal(value, resumed[key]) for key, value in weights(trained).items())
    assert [record["step"] for record in read_log(log)] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in read_log(log)] == [record["loss"] for record in read_log(trained / "train_log.jsonl")]


def test_two_processes_give_the_same_weights_after_twenty_steps(kind, labelled, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    more = ["--max_train_steps", "20", "--groups_per_step", "3"]  # the first process has two groups a step, the second one
    done = subprocess.run(
        [*launch, *words(kind, labelled, tmp_path / "two", *more)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run_program(*words(kind, labelled, tmp_path / "one", *more), env={"OMP_NUM_THREADS": "1"})
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max((value - two[key]).abs().max().item() for key, value in one.items()) <= 1e-6


PRELOADED = [
    "train_sd2_dpo",
    "train_flux_dpo",
    "dp2osr.training.trainer",
    "dp2osr.backbones.flux",
    "diffusers.models.controlnets.controlnet",
    "diffusers.models.controlnets.controlnet_flux",
    "diffusers.models.transformers.transformer_flux",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.optimization",
    "transformers.models.clip.modeling_clip",
]


def train_in_a_process(kind, labelled, output):
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - its bar would mix with the others'
    torch.set_num_threads(1)
    run_training(kind, labelled, output)


def test_ten_kills_at_random_moments_leave_no_trace(kind, labelled, tmp_path, monkeypatch):
    """SIGKILL at random moments, again and again in one folder until it is whole: its weights are those of a run never stopped."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)

    def train(output, seconds):
        """Start, and kill after so many seconds; whether it was still at work."""
        process = processes.Process(target=train_in_a_process, args=(kind, labelled, output))
        process.start()
        process.join(seconds)
        killed = process.exitcode is None
        process.kill()
        process.join()
        assert killed or process.exitcode == 0
        return killed

    def assert_whole():
        expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
        logs = [read_log(tmp_path / name / "train_log.jsonl") for name in ("whole", "killed")]
        assert [record["step"] for record in logs[1]] == list(range(1, STEPS + 1))
        assert [record["loss"] for record in logs[1]] == [record["loss"] for record in logs[0]]

    warm = processes.Process(target=int)  # the fork server loads its libraries
    warm.start()
    warm.join()
    started = time.time()
    assert not train(tmp_path / "whole", 300)
    seed = random.randrange(2**32)
    print("moments drawn with seed", seed)
    moments, longest, kills = random.Random(seed), 0.6 * (time.time() - started), 0
    while kills < 10:
        if train(tmp_path / "killed", moments.uniform(0, longest)):
            kills += 1
        else:
            assert_whole()
            shutil.rmtree(tmp_path / "killed")
    assert not train(tmp_path / "killed", 300)
    assert_whole()


def test_micro_batches_and_gradient_checkpointing_give_the_same_gradient(kind, labelled):
    gradients = []
    for size, checkpointing in ((0, False), (1, False), (3, True)):
        objective, groups = double_objective(kind, labelled, micro_batch_size=size, sft_weight=0.1)
        if checkpointing:
            objective.policy.train().enable_gradient_checkpointing()
            objective.backbone.denoiser.enable_gradient_checkpointing()
        objective.visit(0, double_group(groups, objective), 1.0)
        gradients.append(gradient_of(objective))
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() <= 1e-8 * gradients[0].norm()


def test_several_timesteps_and_drawn_pairs_equal_the_sum_over_pairs(kind, labelled):
    """Each pair of each visit by itself, with its own passes, in float64; the drawn pairs differ from visit to visit."""
    objective, groups = double_objective(kind, labelled, pairs_per_group=3)
    group = double_group(groups, objective)
    drawn = [objective.pair_weights(5, group, visit) for visit in range(2)]
    assert [int((weights > 0).sum()) for weights in drawn] == [3, 3] and not torch.equal(*drawn)
    for visit in range(2):
        objective.visit(5, group, 1 / 6, visit)
    ours = gradient_of(objective)
    for parameter in objective.policy.parameters():
        parameter.grad = None
    control, count, timesteps = objective.backbone.prepare_control(group.control), len(group.candidates) // 2, []
    for visit in range(2):
        timestep, noise = objective.draw(5, group, visit)
        timesteps.append(timestep)
        for i, j in drawn[visit].nonzero().tolist():
            gaps = []
            for candidate in (i, count + j):
                part = slice(candidate, candidate + 1)
                policy, reference = objective.errors([objective.policy, objective.reference], group, control, timestep, noise, part)
                gaps.append(policy - reference)
            loss = -torch.nn.functional.logsigmoid(-0.5 * objective.args.beta * (gaps[0] - gaps[1]))
            (drawn[visit][i, j] * loss.sum() / 6).backward()
    assert timesteps[0] != timesteps[1]
    assert (gradient_of(objective) - ours).norm() <= 1e-7 * ours.norm() > 0  # errors are fp32


def gradient_of(objective):
    return torch.cat([parameter.grad.flatten() for parameter in objective.policy.parameters() if parameter.grad is not None])


def double_group(groups, objective):
    group = groups.read(0, objective.backbone)
    return replace(group, latents=group.latents.double(), weights=group.weights.double(), control=group.control.double())


def double_objective(kind, labelled, **changes):
    """A float64 objective and the labelled groups; the policy is nudged, so that margins are not zero.

    In float32 the rounding of an error is multiplied by β before the sigmoid, which would hide a small mistake.
    """
    backbone = load_backbone(kind.model, dtype=torch.float64)
    store, config = CandidateStore(labelled), load_reward_config(str(labelled / "reward.yaml"))
    groups = PreferenceGroups(store, read_scores(labelled / "scores.parquet"), config, None, 2)
    reference = backbone.load_controlnet(kind.controlnet).requires_grad_(False)
    policy = nudged(deepcopy(reference).requires_grad_(True))
    return GroupObjective(settings_with(TrainSettings, **changes), Accelerator(cpu=True), backbone, policy, reference), groups


def nudged(controlnet):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in controlnet.parameters():
            parameter += 0.01 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return controlnet


def test_the_flags_name_the_losses_that_there_are():
    assert tuple(loss.LOSSES) == get_args(Loss)


@pytest.mark.parametrize(
    "more",
    [
        ["--loss", "ipo"],
        ["--loss", "plackett_luce"],
        ["--timesteps_per_group", "2"],
        ["--pairs_per_group", "2"],
        ["--label_smoothing", "0.1"],
        ["--sft_weight", "0.1"],
    ],
)
def test_every_variant_trains(kind, labelled, tmp_path, more):
    run_training(kind, labelled, tmp_path / "out", "--max_train_steps", "2", *more)
    records = read_log(tmp_path / "out/train_log.jsonl")
    assert len(records) == 2 and all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)
    assert records[1]["margin"] != 0


@one_kind
@pytest.mark.parametrize(
    ("more", "mention"),
    [
        (["--label_smoothing", "0.6"], "--label_smoothing 0.6"),
        (["--label_smoothing", "0.1", "--loss", "ipo"], "of --loss sigmoid only"),
        (["--pairs_per_group", "5"], "a group has 4 pairs"),
        (["--pairs_per_group", "2", "--loss", "plackett_luce"], "takes them whole"),
        (["--validation_image_path", "lr"], "give both, or neither"),
        (["--lora_rank", "5000"], "no layer of this ControlNet is larger"),
        (["--variant", "fp16"], "was sampled with variant None, not fp16"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(kind, labelled, tmp_path, more, mention):
    with pytest.raises(UserError, match=mention):
        run_training(kind, labelled, tmp_path / "out", *more)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def run_training(kind, labelled, output, *more):
    """The program in this process."""
    args = kind.training_settings(words(kind, labelled, output, *map(str, more))[1:])
    trainer = PreferenceTrainer(args)
    trainer.train()
    return trainer


def test_the_reference_cache_gives_the_same_weights_without_running_the_reference(kind, trained, labelled, tmp_path, monkeypatch):
    def flags(output):
        return kind, labelled, tmp_path / output, "--reference_cache", tmp_path / "cache"

    first = run_training(*flags("filling"))
    assert first.objective.cache.hits == 0
    asked = []
    errors = GroupObjective.errors
    monkeypatch.setattr(GroupObjective, "errors", lambda self, nets, *rest: asked.append(len(nets)) or errors(self, nets, *rest))
    second = run_training(*flags("filled"))
    assert second.objective.cache.hits == second.objective.cache.visits == STEPS * 2
    assert set(asked) == {1}
    third = run_training(*flags("another"), "--beta", "100", "--top_n", "1", "--weighting", "none")
    assert third.objective.cache.hits == STEPS * 2  # fewer candidates of the same visits
    fourth = run_training(*flags("seed"), "--seed", "1")
    assert fourth.objective.cache.hits == 0
    expected = weights(trained)
    for output in ("filling", "filled"):
        found = weights(tmp_path / output)
        assert all(torch.equal(value, found[key]) for key, value in expected.items()), output


def test_the_cache_answers_only_for_what_was_computed(tmp_path):
    def group(candidates=(3, 1, 4, 0), seed=0, control=0.5, prompt=1.0):
        latents = torch.randn(5, 4, 2, 2, generator=torch.Generator().manual_seed(seed))[list(candidates)]
        return PreferenceGroup("a", list(candidates), latents, torch.full((1, 3, 8, 8), control), {"x": torch.tensor([prompt])}, None)

    cache, errors, timestep = ReferenceCache(tmp_path, {"seed": 0}), torch.rand(4) / 3, torch.tensor([500])
    visit = timestep, 7, 0
    assert cache.read(group(), *visit) is None
    cache.write(group(), *visit, errors)
    assert torch.equal(cache.read(group(), *visit), errors)
    assert torch.equal(cache.read(group(candidates=(4, 3)), *visit), errors[[2, 0]])
    for other in (group(seed=1), group(control=0.6), group(prompt=2.0), group(candidates=(3, 2))):
        assert cache.read(other, *visit) is None
    for other in ((torch.tensor([501]), 7, 0), (timestep, 8, 0), (timestep, 7, 1)):
        assert cache.read(group(), *other) is None
    assert ReferenceCache(tmp_path, {"seed": 1}).read(group(), *visit) is None
    again = ReferenceCache(tmp_path, {"seed": 0})
    again.write(group(candidates=(2,)), *visit, torch.tensor([0.125]))
    assert torch.equal(again.read(group(candidates=(2, 4)), *visit), torch.tensor([0.125, errors[2]]))
    [path] = (again.folder / "a").glob("7-0-*.json")
    path.write_text(path.read_text()[:20])
    assert again.read(group(), *visit) is None


def test_lora_starts_at_the_reference_trains_and_is_merged_into_a_plain_controlnet(kind, labelled, tmp_path, backbone):
    trainer = run_training(kind, labelled, tmp_path / "lora", "--lora_rank", "4", "--learning_rate", "1e-3")
    records = read_log(tmp_path / "lora/train_log.jsonl")
    assert records[0]["margin"] == 0 and records[-1]["margin"] != 0
    before, after = load_file(f"{kind.controlnet}/diffusion_pytorch_model.safetensors"), weights(tmp_path / "lora")
    assert before.keys() == after.keys()
    trained = sum(parameter.numel() for parameter in trainer.parameters)
    assert trained < 0.2 * sum(value.numel() for value in before.values())
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 32, 32, generator=generator)
    control = backbone.prepare_control(torch.rand(1, 3, 128, 128, generator=generator))
    prompt, timesteps = backbone.encode_prompts([""]), backbone.draw_timesteps(1, generator, (0.5, 0.6)).expand(2)

    def predict(controlnet):
        return backbone.predict([controlnet], noisy, timesteps, prompt, control)[0]

    with torch.no_grad():
        policy, off = predict(trainer.policy.eval()), predict(trainer.reference)
        plain, reference = predict(backbone.load_controlnet(tmp_path / "lora")), predict(backbone.load_controlnet(kind.controlnet))
    assert (policy - plain).abs().max() <= 1e-5 and torch.equal(off, reference)
    assert (policy - off).abs().max() > 1e-4


def test_a_killed_lora_run_goes_on_to_the_same_weights(kind, labelled, tmp_path):
    more = ["--lora_rank", "2"]
    run_training(kind, labelled, tmp_path / "whole", *more)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut/checkpoint-6.pt").unlink()
    run_training(kind, labelled, tmp_path / "cut", *more)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())


def test_the_guard_calls_a_collapse_after_falls_in_a_row_and_knows_the_best():
    guard = CollapseGuard(2)
    seen = [(guard.see({"step": step, "G": gain}), guard.collapsed) for step, gain in enumerate([0.0, 0.4, 0.3, 0.5, 0.4, 0.2, 0.1, 0.0])]
    assert seen == [
        (True, False),
        (True, False),
        (False, False),
        (True, False),
        (False, False),
        (False, True),
        (False, False),
        (False, True),
    ]
    assert not guard.see({"step": 8}) and not guard.collapsed  # a validation that says nothing is not another collapse
    assert not guard.see({"step": 9, "loss": 1.0}) and guard.best == 0.5
    assert not guard.see({"step": 10, "G": math.nan}) and guard.best == 0.5 and guard.last == 0.0
    records = [{"step": step, "G": gain} for step, gain in enumerate([0.4, 0.3, 0.2])]
    assert CollapseGuard(2, records).collapsed and not CollapseGuard(0, records).collapsed


class FallingRewards:
    """A validator whose gains are given."""

    def __init__(self, gains):
        self.gains = iter(gains)

    def __call__(self, policy):
        return {"G": next(self.gains)}

    def sheet(self):
        from PIL import Image

        return Image.new("RGB", (4, 4))


@one_kind
@pytest.mark.parametrize("action", ["stop", "halve_lr", "warn"])
def test_a_collapsing_run_is_stopped_or_slowed_and_its_best_is_kept(kind, labelled, tmp_path, monkeypatch, capsys, action):
    gains = [0.0, 0.3, 0.2, 0.1, 0.2, 0.3, 0.25]  # at steps 0 to 6
    monkeypatch.setattr(PreferenceTrainer, "make_validator", lambda self: FallingRewards(gains))
    more = ["--validation_steps", "1", "--validation_image_path", "lr", "--validation_gt_path", "gt"]
    more += ["--collapse_patience", "2", "--on_collapse", action]
    run_training(kind, labelled, tmp_path / "out", *more)
    steps = [record["step"] for record in read_log(tmp_path / "out/train_log.jsonl") if "loss" in record]
    rates = [record["learning_rate"] for record in read_log(tmp_path / "out/train_log.jsonl") if "loss" in record]
    assert "fallen 2 validations in a row (G = 0.10, best 0.30, kept in best/)" in capsys.readouterr().err
    assert steps == list(range(1, 4 if action == "stop" else 7))
    assert rates[:3] == [rates[0]] * 3 and set(rates[3:]) <= {rates[0] / 2 if action == "halve_lr" else rates[0]}
    run_training(kind, labelled, tmp_path / "one", "--max_train_steps", "1")
    best, one = weights(tmp_path / "out/best"), weights(tmp_path / "one")  # the best was after the first step
    assert all(torch.equal(value, one[key]) for key, value in best.items())
    assert (tmp_path / "out/samples/step-000003.png").is_file()
    if action == "stop":
        run_training(kind, labelled, tmp_path / "out", *more)
        assert [record["step"] for record in read_log(tmp_path / "out/train_log.jsonl") if "loss" in record] == steps


def test_prompts_are_embedded_by_the_sampler_and_training_has_no_text_encoder(kind, labelled, backbone, tmp_path):
    trainer = PreferenceTrainer(kind.training_settings(words(kind, labelled, tmp_path / "out")[1:]))
    assert not hasattr(trainer.backbone, "text_encoder")
    for index, image_id in enumerate(trainer.groups.image_ids):
        expected = backbone.encode_prompts([CandidateStore(labelled).read(image_id).prompt])
        stored = trainer.groups.read(index, trainer.backbone).prompt
        assert stored.keys() == expected.keys() and all(torch.equal(stored[key], expected[key]) for key in expected)


@one_kind
def test_a_group_without_its_prompt_is_one_line(kind, labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "candidates")
    for path in (tmp_path / "candidates").rglob("prompt.safetensors"):
        path.unlink()
    done = run_program(*words(kind, tmp_path / "candidates", tmp_path / "out"), check=False)
    assert_one_clear_line(done, "prompt.safetensors", "sample into a new folder")


@one_kind
def test_timesteps_are_drawn_from_their_share_of_the_schedule(backbone):
    draw = backbone.draw_timesteps(4000, torch.Generator().manual_seed(0), (0.4, 1.0))
    assert 400 <= draw.min() < 405 and 995 <= draw.max() < 1000
    whole = backbone.draw_timesteps(4000, torch.Generator().manual_seed(0))
    assert whole.min() < 5 and whole.max() >= 995


@one_kind
def test_an_impossible_range_of_timesteps_is_refused(kind, labelled, tmp_path):
    done = run_program(*words(kind, labelled, tmp_path / "out", "--timestep_range", "0.7", "0.2"), check=False)
    assert_one_clear_line(done, "--timestep_range 0.7 0.2", "0 <= LOW < HIGH <= 1")


@one_kind
@pytest.mark.parametrize(
    ("flag", "value"), [("--beta", "-1"), ("--sft_weight", "-0.5"), ("--groups_per_step", "0"), ("--learning_rate", "nan")]
)
def test_numbers_without_a_meaning_are_one_line(kind, labelled, tmp_path, flag, value):
    assert_one_clear_line(run_program(*words(kind, labelled, tmp_path / "out", flag, value), check=False), flag, "must be at least", value)
    assert not (tmp_path / "out").exists()


def test_other_settings_and_another_model_are_refused(kind, trained, labelled, tmp_path):
    done = run_program(*words(kind, labelled, trained, "--beta", "100"), check=False)
    assert_one_clear_line(done, "beta is 5000.0 there and 100.0 here")
    words_of_other = words(kind, labelled, tmp_path / "other")
    words_of_other[words_of_other.index(kind.model)] = other_model(kind, tmp_path)
    assert_one_clear_line(run_program(*words_of_other, check=False), "latents of another model")


def test_in_16_bits_what_is_frozen_is_too_and_validation_runs(kind, labelled, tmp_path):
    for side in ("lr", "gt"):
        (tmp_path / side).mkdir()
        path = sorted((ROOT / f"preset/test/{side}").glob("*.png"))[0]
        (tmp_path / side / path.name).write_bytes(path.read_bytes())
    more = ["--validation_steps", "2", "--validation_image_path", tmp_path / "lr", "--validation_gt_path", tmp_path / "gt"]
    more += ["--validation_candidates", "2", "--num_inference_steps", "1", "--guidance_scale", "1", "--max_train_steps", "2"]
    trainer = run_training(kind, labelled, tmp_path / "out", *more, "--mixed_precision", "bf16")
    assert trainer.backbone.dtype == next(trainer.backbone.denoiser.parameters()).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in trainer.policy.parameters()} == {torch.float32}
    records = read_log(tmp_path / "out/train_log.jsonl")
    assert [record["step"] for record in records if "G" in record] == [0, 2]
    first, second = (record for record in records if "loss" in record)
    assert first["margin"] == 0 and second["margin"] != 0 and first["grad_norm"] > 0


@one_kind
def test_an_image_that_a_metric_cannot_score_is_left_out_of_a_validation_and_told(kind, labelled, tmp_path, monkeypatch, capsys):
    for side in ("lr", "gt"):
        (tmp_path / side).mkdir()
        for path in sorted((ROOT / f"preset/test/{side}").glob("*.png"))[:2]:
            (tmp_path / side / path.name).write_bytes(path.read_bytes())
    more = ["--validation_steps", "2", "--validation_image_path", tmp_path / "lr", "--validation_gt_path", tmp_path / "gt"]
    more += ["--validation_candidates", "3", "--num_inference_steps", "1", "--guidance_scale", "1"]
    trainer = PreferenceTrainer(kind.training_settings(list(map(str, [*words(kind, labelled, tmp_path / "out")[1:], *more]))))
    validator = trainer.make_validator()
    validator.start()
    first, second = (image_id for image_id, *_ in validator.images)
    score, broken = validator.suite.score, {first: "piqe"}

    def broken_score(images, gt, image_id, strict):
        scores = score(images, gt, image_id=image_id)
        return {name: values * float("nan") if broken.get(image_id) == name else values for name, values in scores.items()}

    monkeypatch.setattr(validator.suite, "score", broken_score)
    found = validator(trainer.reference)
    assert f"warning: validation: {first}: a NaN" in capsys.readouterr().err
    assert found["G"] == 0 and found["val_reward_mean"] == pytest.approx(found["val_base_mean"])  # of the other image
    broken[second] = "gmsd"
    assert validator(trainer.reference) == {}
    guard = CollapseGuard(1, [{"step": 0, "G": 0.5}])
    assert not guard.see({"step": 2}) and not guard.collapsed


@one_kind
def test_force_goes_on_with_other_settings_and_shows_them(kind, trained, labelled, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    more = ["--beta", "100", "--max_train_steps", "8", "--learning_rate", "1e-5"]
    with pytest.raises(
        UserError, match="beta is 5000.0 there and 100.0 here; learning_rate is 0.0001 there and 1e-05 here.*--force goes on"
    ):
        run_training(kind, labelled, tmp_path / "run", *more)
    run_training(kind, labelled, tmp_path / "run", *more, "--force")
    assert "goes on with other settings (beta is 5000.0 there and 100.0 here" in capsys.readouterr().err
    records = read_log(tmp_path / "run/train_log.jsonl")
    assert [record["step"] for record in records] == list(range(1, 9))
    assert [record["learning_rate"] for record in records] == [1e-4] * 6 + [1e-5] * 2
    run_training(kind, labelled, tmp_path / "run", *more)  # they are the run's settings now
    before = (tmp_path / "run/settings.json").read_text()
    with pytest.raises(UserError, match="its checkpoint is of another kind of run"):
        run_training(kind, labelled, tmp_path / "run", *more, "--lora_rank", "2", "--force")
    assert (tmp_path / "run/settings.json").read_text() == before


@one_kind
def test_a_reference_may_be_another_than_the_start(kind, trained, labelled, tmp_path):
    more = ["--controlnet_model_name_or_path", trained, "--reference_controlnet_model_name_or_path", kind.controlnet]
    trainer = run_training(kind, labelled, tmp_path / "run", *more, "--max_train_steps", "1")
    base = load_file(f"{kind.controlnet}/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, base[key].float()) for key, value in trainer.reference.state_dict().items())
    [record] = read_log(tmp_path / "run/train_log.jsonl")
    assert record["margin"] != 0
    start, end = weights(trained), weights(tmp_path / "run")
    moved = sum((end[key] - start[key]).square().sum() for key in start) ** 0.5
    assert 0 < moved < 0.5 * sum((end[key] - base[key].float()).square().sum() for key in start) ** 0.5
    with pytest.raises(UserError, match="--lora_rank"):
        run_training(kind, labelled, tmp_path / "lora", *more, "--lora_rank", "2")


@one_kind
def test_groups_with_equal_rewards_are_counted_and_trained_on(kind, labelled, tmp_path, capsys):
    table = pq.read_table(labelled / "scores.parquet")
    first = table["image_id"].to_pylist()[0]
    for name in ("gmsd", "piqe"):
        rows, field = zip(table["image_id"].to_pylist(), table[name].to_pylist(), strict=True), table.schema.field(name)
        same = [0.5 if image_id == first else score for image_id, score in rows]
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(same, field.type))
    pq.write_table(table, tmp_path / "scores.parquet")
    run_training(kind, labelled, tmp_path / "out", "--scores", tmp_path / "scores.parquet", "--max_train_steps", "2")
    assert "1 of 3 groups have equal rewards" in capsys.readouterr().err
    assert all(record["grad_norm"] > 0 for record in read_log(tmp_path / "out/train_log.jsonl"))


def copy_validation_images(folder, count=2):
    """`count` held-out LR images in `folder`/lr, their GT in `folder`/gt; the flags that name them."""
    for side in ("lr", "gt"):
        (folder / side).mkdir()
        for path in sorted((ROOT / f"preset/test/{side}").glob("*.png"))[:count]:
            (folder / side / path.name).write_bytes(path.read_bytes())
    return ["--validation_image_path", str(folder / "lr"), "--validation_gt_path", str(folder / "gt"), "--validation_candidates", "2"]


@one_kind
def test_more_steps_asked_for_later_give_the_weights_of_a_run_asked_for_them_from_the_start(kind, labelled, tmp_path, capsys):
    more = ["--lr_warmup_steps", "3"]
    run_training(kind, labelled, tmp_path / "whole", "--max_train_steps", "4", *more)
    run_training(kind, labelled, tmp_path / "grown", "--max_train_steps", "2", *more)
    run_training(kind, labelled, tmp_path / "grown", "--max_train_steps", "4", *more)
    assert "2 steps become 4" in capsys.readouterr().err
    whole, grown = weights(tmp_path / "whole"), weights(tmp_path / "grown")
    assert all(torch.equal(value, grown[key]) for key, value in whole.items())
    logs = [[(record["step"], record["loss"]) for record in read_log(tmp_path / name / "train_log.jsonl")] for name in ("whole", "grown")]
    assert logs[0] == logs[1]
    assert read_json(tmp_path / "grown/settings.json")["max_train_steps"] == 4
    for force in ([], ["--force"]):  # a policy of four steps would pass for one of two
        with pytest.raises(UserError, match="has 4 steps already, --max_train_steps 2 is fewer"):
            run_training(kind, labelled, tmp_path / "grown", "--max_train_steps", "2", *more, *force)


@one_kind
def test_more_steps_of_a_schedule_that_depends_on_their_number_are_refused_with_the_reason(kind, labelled, tmp_path):
    more = ["--lr_scheduler", "cosine"]
    run_training(kind, labelled, tmp_path / "run", "--max_train_steps", "1", *more)
    with pytest.raises(UserError, match="max_train_steps is 1 there and 2 here.*--force goes on with these .*a cosine schedule depend"):
        run_training(kind, labelled, tmp_path / "run", "--max_train_steps", "2", *more)


@one_kind
def test_a_command_that_fails_leaves_nothing_that_refuses_the_corrected_one(kind, labelled, tmp_path):
    valid = copy_validation_images(tmp_path)
    (tmp_path / "lr/no_gt.png").write_bytes(next((tmp_path / "lr").iterdir()).read_bytes())
    missing = tmp_path / "missing"
    for wrong in (
        valid,
        ["--scores", missing],
        ["--controlnet_model_name_or_path", missing],
        ["--top_n", "4"],
        ["--reward_config", "x"],
        ["--reference_cache", "/dev/null"],
    ):
        with pytest.raises(UserError):
            run_training(kind, labelled, tmp_path / "out", *map(str, wrong))
        assert not (tmp_path / "out").exists(), wrong


def test_all_validation_images_that_cannot_be_used_are_named_at_once(tmp_path):
    copy_validation_images(tmp_path, 4)
    broken, small, without, good = sorted(path.name for path in (tmp_path / "lr").iterdir())
    (tmp_path / "lr" / broken).write_bytes(b"no image")
    save_noise(tmp_path / "gt" / small, (100, 128))
    (tmp_path / "gt" / without).unlink()
    with pytest.raises(UserError) as error:
        read_validation_images(tmp_path / "lr", tmp_path / "gt", 4)
    for expected in ("3 of 4 validation images", broken, f"{small} is 100 x 128, not 128 x 128", f"{without} has no GT"):
        assert expected in str(error.value)
    assert good not in str(error.value)


def test_validation_samples_as_the_candidates_were_sampled(kind, labelled, tmp_path, capsys):
    valid = copy_validation_images(tmp_path, 1)
    stored = CandidateStore(labelled).settings
    trainer = PreferenceTrainer(kind.training_settings(words(kind, labelled, tmp_path / "out", *valid)[1:]))
    assert "warning: validation" not in capsys.readouterr().err
    sampler = trainer.validator.sampler
    found = {**asdict(sampler.settings), "align_method": sampler.args.align_method, "upscale": sampler.args.upscale}
    assert found == {name: stored[name] for name in found} and found["num_inference_steps"] == 2
    assert trainer.backbone.vae_tiling == Tiling(**stored["vae_tiling"])
    more = ["--num_inference_steps", "1", "--align_method", "nofix"]
    trainer = PreferenceTrainer(kind.training_settings(words(kind, labelled, tmp_path / "out", *valid, *more)[1:]))
    assert (trainer.validator.sampler.settings.num_inference_steps, trainer.validator.sampler.args.align_method) == (1, "nofix")
    told = capsys.readouterr().err
    assert "--num_inference_steps 1 as given, the candidates have 2" in told and "--align_method nofix" in told


def test_empty_prompts_beside_candidates_with_tags_are_said():
    sampled = SimpleNamespace(**options.candidates_settings({}, SD2Backbone), prompt_file=None)
    [line] = options.sampling_differences(sampled, {"prompt_source": "ram"}, SD2Backbone)
    assert "--validation_prompt_file" in line
    assert not options.sampling_differences(sampled, {"prompt_source": "none"}, SD2Backbone)


@one_kind
def test_an_image_whose_samples_are_not_finite_is_left_out_of_a_validation(kind, labelled, tmp_path, monkeypatch, capsys):
    valid = copy_validation_images(tmp_path)
    trainer = PreferenceTrainer(kind.training_settings(words(kind, labelled, tmp_path / "out", *valid)[1:]))
    validator, sample = trainer.validator, GroupSampler.sample
    bad = {validator.images[0][0]}

    def sample_or_fail(sampler, image_id, lr, count):
        if image_id in bad:
            raise NonFiniteSamples(f"{image_id}: NaN")
        return sample(sampler, image_id, lr, count)

    monkeypatch.setattr(GroupSampler, "sample", sample_or_fail)
    assert validator(trainer.policy)["G"] == 0
    assert f"{validator.images[0][0]}: a NaN or infinite score or sample; left out" in capsys.readouterr().err
    assert validator.sheet().width > 100
    bad.add(validator.images[1][0])
    assert validator(trainer.policy) == {}
    assert "none is left, this validation says nothing" in capsys.readouterr().err


@one_kind
def test_a_policy_says_how_its_candidates_were_sampled_and_is_readable_for_the_group(kind, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(PreferenceTrainer, "make_validator", lambda self: FallingRewards([0.0, 0.1]))
    more = ["--validation_steps", "1", "--validation_image_path", "lr", "--validation_gt_path", "gt", "--max_train_steps", "1"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.5f.host-1.part").write_bytes(b"half of a checkpoint that a kill left")
    before = os.umask(0o027)
    try:
        run_training(kind, labelled, tmp_path / "out", *more)
    finally:
        os.umask(before)
    expected = {name: CandidateStore(labelled).settings[name] for name in ("num_inference_steps", "guidance_scale", "scheduler")}
    for folder in (tmp_path / "out", tmp_path / "out/best"):
        assert read_json(folder / "sampling_settings.json").items() >= expected.items()
        for name in ("model.safetensors", "diffusion_pytorch_model.safetensors", "config.json"):
            assert (folder / name).stat().st_mode & 0o777 == 0o640, name
    assert (tmp_path / "out/checkpoint-1.pt").stat().st_mode & 0o777 == 0o640
    assert not list((tmp_path / "out").glob(".*"))


@one_kind
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_output_folder_that_is_an_input_or_somebody_elses_is_refused(kind, labelled, tmp_path, force):
    controlnet, model = tmp_path / "controlnet", tmp_path / "model"
    shutil.copytree(kind.controlnet, controlnet)
    shutil.copytree(kind.model, model)
    before = {path: path.read_bytes() for folder in (controlnet, model, labelled) for path in folder.rglob("*") if path.is_file()}
    inputs = ["--controlnet_model_name_or_path", controlnet, "--pretrained_model_name_or_path", model]
    with pytest.raises(UserError, match="is the input --controlnet_model_name_or_path .*; give another --output_dir"):
        run_training(kind, labelled, controlnet, *inputs, *force)
    with pytest.raises(UserError, match="is the input --pretrained_model_name_or_path"):
        run_training(kind, labelled, model, *inputs, *force)
    with pytest.raises(UserError, match="is the input --candidates_dir"):
        run_training(kind, labelled, labelled, *inputs, *force)
    with pytest.raises(UserError, match="holds config.json, diffusion_pytorch_model.safetensors, which no run there has written"):
        run_training(kind, labelled, controlnet, *force)
    with pytest.raises(UserError, match="would overwrite the input --controlnet_model_name_or_path"):
        shutil.copytree(kind.controlnet, tmp_path / "run/best")
        run_training(kind, labelled, tmp_path / "run", "--controlnet_model_name_or_path", tmp_path / "run/best", *force)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: cannot be made a folder"):
        run_training(kind, labelled, tmp_path / "file", *force)
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other/settings.json", {"mine": 1, "of": 2, "another": 3})
    with pytest.raises(UserError, match="is not of this program"):
        run_training(kind, labelled, tmp_path / "other", *force)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["settings.json"]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_tracker_that_is_not_installed_is_one_line_at_the_start(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--report_to wandb: .*pip install wandb, or give --report_to none"):
        options.check_tracker("wandb")
    options.check_tracker("none")


@one_kind
@pytest.mark.parametrize(
    ("more", "mention"),
    [
        (["--validation_prompt_file", "x.json"], "--validation_prompt_file: would do nothing without --validation_image_path"),
        (["--validation_candidates", "4", "--on_collapse", "warn"], "--validation_candidates, --on_collapse: would do nothing"),
        (["--logit_mean", "1"], "--logit_mean: would do nothing with an SD2 model"),
        (["--lr_scheduler", "constant", "--lr_warmup_steps", "5"], "--lr_warmup_steps: would do nothing with --lr_scheduler constant"),
        (["--validation_image_path", "a", "--validation_gt_path", "b", "--validation_steps", "0"], "with --validation_steps 0"),
    ],
)
def test_flags_that_would_do_nothing_are_one_line(kind, tmp_path, more, mention):
    argv = words(kind, tmp_path, tmp_path / "out", *more)[1:]
    with pytest.raises(UserError, match=re.escape(mention)):
        options.check_given(kind.training_settings(argv), given(TrainSettings, argv))


def test_the_trajectory_is_the_saved_one(kind, trained):
    """Loss and gradient norm of six steps: a change of code that is to change nothing changes nothing here.

    Where a change is meant, `SAVE_TRAJECTORY=1 pytest tests/test_training.py -k trajectory` saves the new ones.
    """
    path = ROOT / "tests/trajectory.json"
    found = [[record["loss"], record["grad_norm"]] for record in read_log(trained / "train_log.jsonl")]
    saved = read_json(path) if path.exists() else {}
    if "SAVE_TRAJECTORY" in os.environ:
        saved[kind.name] = found
        write_json(path, saved)
    assert len(found) == len(saved[kind.name]) == STEPS
    for step, ((loss_now, norm), (loss_then, norm_then)) in enumerate(zip(found, saved[kind.name], strict=True)):
        # another processor rounds otherwise, β multiplies it, and Adam makes steps of it
        assert loss_now == pytest.approx(loss_then, rel=0.01 if step else 1e-4)
        assert norm == pytest.approx(norm_then, rel=0.1 if step else 0.01)


def other_model(kind, tmp_path):
    import shutil

    from safetensors.torch import save_file

    folder = tmp_path / "model"
    shutil.copytree(kind.model, folder)
    path = next((folder / ("unet" if kind.name == "sd2" else "transformer")).glob("*.safetensors"))
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, path)
    return str(folder)


@one_kind
@pytest.mark.parametrize(("more", "mention"), [(["--top_n", "4"], "--top_n 4"), (["--num_candidates", "9"], "only 6 candidates")])
def test_impossible_m_and_n_are_one_line(kind, labelled, tmp_path, more, mention):
    assert_one_clear_line(run_program(*words(kind, labelled, tmp_path / "out", *more), check=False), mention)
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
