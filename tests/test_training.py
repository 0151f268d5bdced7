"""The trainer: exact gradient, neutral start, identical resume after SIGKILL, one or two processes, refusals."""

import math
import random
import shutil
import time
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from conftest import read_log, run_program, settings_with
from programs import ForkedProgram, run_ranks
from safetensors.torch import load_file
from trainings import STEPS, weights, words

from dp2osr.backbones import load_backbone
from dp2osr.preference.groups import PreferenceGroups
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.store import CandidateStore
from dp2osr.training.objective import GroupObjective
from dp2osr.training.settings import TrainSettings


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
    process = ForkedProgram(words(kind, labelled, output))
    deadline = time.time() + 180
    log = output / "train_log.jsonl"
    while time.time() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= kill_after):
        time.sleep(0.01)
    process.kill()
    assert not (output / "model.safetensors").exists()
    run_program(*words(kind, labelled, output))
    resumed = weights(output)
    assert all(torch.equal(value, resumed[key]) for key, value in weights(trained).items())
    assert [record["step"] for record in read_log(log)] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in read_log(log)] == [record["loss"] for record in read_log(trained / "train_log.jsonl")]


@pytest.mark.slow
def test_two_processes_give_the_same_weights(kind, labelled, tmp_path):
    more = ["--groups_per_step", "3"]  # the first process has two groups a step, the second one
    done = run_ranks(2, *words(kind, labelled, tmp_path / "two", *more))
    assert not any(process.returncode for process in done), done[0].stderr[-2000:]
    run_program(*words(kind, labelled, tmp_path / "one", *more), env={"OMP_NUM_THREADS": "1"})
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max((value - two[key]).abs().max().item() for key, value in one.items()) <= 1e-6


def test_kills_at_random_moments_leave_no_trace(kind, labelled, tmp_path):
    """SIGKILL at random moments, again and again in one folder until it is whole: its weights are those of a run never stopped."""

    def train(output, seconds):
        """Start, and kill after so many seconds; whether it was still at work."""
        process = ForkedProgram(words(kind, labelled, output))
        code = process.wait(seconds)
        process.kill()
        assert not code
        return code is None

    def assert_whole():
        expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
        logs = [read_log(tmp_path / name / "train_log.jsonl") for name in ("whole", "killed")]
        assert [record["step"] for record in logs[1]] == list(range(1, STEPS + 1))
        assert [record["loss"] for record in logs[1]] == [record["loss"] for record in logs[0]]

    started = time.time()
    assert not train(tmp_path / "whole", 300)
    seed = random.randrange(2**32)
    print("moments drawn with seed", seed)
    moments, longest, kills = random.Random(seed), 0.6 * (time.time() - started), 0
    while kills < {"sd2": 10, "flux": 4}[kind.name]:
        if train(tmp_path / "killed", moments.uniform(0, longest)):
            kills += 1
        else:
            assert_whole()
            shutil.rmtree(tmp_path / "killed")
    assert not train(tmp_path / "killed", 300)
    assert_whole()


@pytest.mark.parametrize("changes", [{"sft_weight": 0.1}, {"loss": "dgpo"}, {"loss": "nft", "beta": 1.0}])
def test_micro_batches_and_gradient_checkpointing_give_the_same_gradient(kind, labelled, changes):
    gradients = []
    for size, checkpointing in ((0, False), (1, False), (3, True)):
        objective, groups = double_objective(kind, labelled, micro_batch_size=size, **changes)
        if checkpointing:
            objective.policy.train().enable_gradient_checkpointing()
            objective.backbone.denoiser.enable_gradient_checkpointing()
        objective.visit(0, double_group(groups, objective), 1.0)
        gradients.append(gradient_of(objective))
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() <= 1e-8 * gradients[0].norm()


def test_a_visit_does_without_cudnns_attention(kind, labelled, monkeypatch):
    objective, groups = double_objective(kind, labelled)
    attend, backward, seen = torch.nn.functional.scaled_dot_product_attention, objective.accelerator.backward, []

    def noted(call):
        def noted_call(*args, **kwargs):
            seen.append((call, torch.backends.cuda.cudnn_sdp_enabled()))
            return call(*args, **kwargs)

        return noted_call

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted(attend))
    monkeypatch.setattr(objective.accelerator, "backward", noted(backward))
    objective.visit(0, double_group(groups, objective), 1.0)
    assert set(seen) == {(attend, False), (backward, False)} and torch.backends.cuda.cudnn_sdp_enabled()


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
    doubled = {name: getattr(group, name).double() for name in ("latents", "weights", "advantages", "control")}
    return replace(group, **doubled)


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
