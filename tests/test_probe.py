"""The probe that proposes M and N: what it measures against a loop over candidates, what it holds out, what it proposes, and resuming."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import assert_one_clear_line, one_kind, run_program

from dp2osr.errors import UserError
from dp2osr.stats import bootstrap_weights, photographs_of
from dp2osr.training.trainer import PreferenceTrainer
from studies.probe import Probe, settings_to_probe, split_groups, suggest


def words(kind, folder, output):
    flags = ["--candidates_dir", folder, "--reward_config", folder / "reward.yaml", "--output_dir", output]
    return [*kind.model_flags, *flags, "--learning_rate", "1e-3", "--report_to", "none"]


@pytest.fixture
def probe(kind, labelled, tmp_path):
    flags = [*words(kind, labelled, tmp_path / "out"), "--top_n", "1"]
    trainer = PreferenceTrainer(kind.training_settings(flags))
    return Probe(trainer, steps=2, visited=4, held_out_share=0.6, groups=2, candidates=3, timesteps=2)


def test_the_gain_is_the_covariance_of_implicit_and_measured_reward(probe):
    trainer = probe.trainer
    assert np.array_equal(probe.gains(), np.zeros(2))  # the policy is the reference
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter.mul_(1.02)
    expected = []
    for index in range(2):
        group = probe.judged.read(index, trainer.backbone, np.arange(3))
        control, implicit = trainer.backbone.prepare_control(group.control), []
        for candidate in range(3):  # one at a time, in float64 where it counts
            errors = {"policy": [], "reference": []}
            for visit in range(2):
                timestep, noise = trainer.objective.draw(0, group, visit)
                latents, drawn = group.latents[candidate : candidate + 1], noise[candidate : candidate + 1]
                noisy = trainer.backbone.add_noise(latents, drawn, timestep)
                for name, network in (("policy", trainer.policy), ("reference", trainer.reference)):
                    with torch.no_grad():
                        [prediction] = trainer.backbone.predict([network], noisy, timestep, group.prompt, control)
                    target = trainer.backbone.target(latents, drawn, timestep)
                    errors[name].append(float((prediction.double() - target.double()).square().mean()))
            implicit.append(0.5 * trainer.args.beta * (np.mean(errors["reference"]) - np.mean(errors["policy"])))
        expected.append(np.cov(implicit, probe.judged.rewards[index, :3], bias=True)[0, 1])
    assert np.abs(expected).min() > 1e-4
    assert probe.gains() == pytest.approx(expected, rel=1e-3, abs=1e-5)


@one_kind
def test_every_setting_starts_from_the_reference_with_as_many_candidates_a_step(probe):
    first = probe.run(6, 2, resamples=50)
    weights = deepcopy(probe.trainer.policy.state_dict())
    other = probe.run(4, 1, resamples=50)
    again = probe.run(6, 2, resamples=50)
    assert first == again and all(torch.equal(weights[key], value) for key, value in probe.trainer.policy.state_dict().items())
    assert (first["groups_per_step"], other["groups_per_step"]) == (1, 2) and first["gain"] != other["gain"]
    assert first["distance"] > 0 and probe.trainer.groups.image_ids == [probe.groups_of(6, 1).image_ids[i] for i in probe.train_on]
    spread = np.std(probe.judged.rewards, axis=1, ddof=1)
    assert first["gain"] == pytest.approx(np.mean(first["by_group"]) / spread.mean())
    assert first["photographs"] == photographs_of(probe.judged.image_ids) == probe.photographs
    weights = bootstrap_weights(first["photographs"], 50, probe.trainer.args.seed)
    ratios = weights @ np.array(first["by_group"]) / (weights @ spread)
    assert [first["low"], first["high"]] == pytest.approx(np.percentile(ratios, [2.5, 97.5]).tolist())
    probe.photographs = ["one"] * 2  # crops of one photograph: no interval can be had
    assert np.isnan(probe.run(4, 1, resamples=50)["low"])


def test_no_photograph_is_both_visited_and_judged_by():
    image_ids = [f"photo{number}_0{crop}" for number in range(8) for crop in range(3)]
    visited, held_out = split_groups(image_ids, 0.25, seed=1)
    assert len(held_out) == 6 and sorted([*visited, *held_out]) == list(range(24))
    photographs = np.array(photographs_of(image_ids))
    assert not set(photographs[visited]) & set(photographs[held_out])
    assert not np.array_equal(held_out, split_groups(image_ids, 0.25, seed=2)[1])
    with pytest.raises(UserError, match="--held_out_share 0.1: of 8 photographs"):
        split_groups(image_ids, 0.1, seed=1)


def test_settings_are_powers_of_two_unless_they_are_named():
    assert settings_to_probe(None, None, 16) == [(16, 1), (16, 2), (16, 4), (16, 8), (8, 1), (8, 2), (8, 4), (4, 1), (4, 2)]
    assert settings_to_probe([6, 12], [3, 5], 16) == [(12, 3), (12, 5), (6, 3)]
    for sizes, tops, said in (([32], None, "--sizes 32: 16 candidates"), ([4], [3], "--tops 3: none")):
        with pytest.raises(UserError, match=said):
            settings_to_probe(sizes, tops, 16)
    with pytest.raises(UserError, match="3 candidates an image are scored"):
        settings_to_probe(None, None, 3)


def test_the_smallest_m_is_proposed_that_cannot_be_told_from_the_best():
    noise = np.random.default_rng(0).normal(0, 0.3, 40)  # photographs differ by more than settings do
    sign = np.where(np.arange(40) % 2, 1, -1)

    def record(size, top_n, mean, own=0.01):
        values = mean + noise + own * sign
        photographs = [f"photo{number}" for number in range(40)]
        return {"M": size, "N": top_n, "gain": values.mean(), "by_group": values.tolist(), "photographs": photographs}

    records = [record(64, 8, 1.0), record(64, 1, 0.5), record(16, 4, 0.999, 0.05), record(16, 2, 0.9), record(4, 1, 0.9)]
    best, cheapest = suggest(records)
    assert (best["M"], best["N"]) == (64, 8)
    assert (cheapest["M"], cheapest["N"]) == (16, 4)  # of that M the better one; M = 4 is clearly worse on the same photographs
    assert suggest(records[:2])[1]["N"] == 8


def test_crops_of_one_photograph_are_one_witness():
    lost = np.repeat([0.3, 0.3, 0.3, -0.2], 10)  # forty crops of four photographs, one of which says the contrary
    photographs = [f"photo{number}" for number in range(4) for _ in range(10)]
    best = {"M": 8, "N": 2, "gain": 1.0, "by_group": np.ones(40).tolist(), "photographs": photographs}
    other = {"M": 4, "N": 1, "gain": 1 - lost.mean(), "by_group": (1 - lost).tolist(), "photographs": photographs}
    assert suggest([best, other])[1]["M"] == 4
    crops = [f"photo{number}" for number in range(40)]
    assert suggest([best | {"photographs": crops}, other | {"photographs": crops}])[1]["M"] == 8  # were they photographs, it would be clear


@one_kind
def test_the_program_proposes_goes_on_and_says_what_is_wrong(kind, labelled, tmp_path):
    flags = [*words(kind, labelled, tmp_path / "out"), "--held_out_share", "0.6", "--held_out_groups", "2", "--held_out_timesteps", "1"]
    flags += ["--probe_steps", "1", "--probe_visits", "4"]
    first = run_program("scripts/suggest_nm.py", *flags, "--sizes", "4")
    rows = [line for line in first.stdout.splitlines() if line.startswith("| 4")]
    assert [row.split(" | ")[1] for row in rows] == ["1", "2"] and "Best: N = " in first.stdout
    records = json.loads((tmp_path / "out/probe.json").read_text(encoding="utf-8"))
    records[0]["gain"] = 123.0  # what is there is not run again
    (tmp_path / "out/probe.json").write_text(json.dumps(records), encoding="utf-8")
    again = run_program("scripts/suggest_nm.py", *flags, "--sizes", "6", "4", "--tops", "1", "2")
    assert "123.000" in again.stdout and [line.split(" | ")[0] for line in again.stdout.splitlines() if line[:3] in ("| 4", "| 6")] == [
        "| 6", "| 6", "| 4", "| 4",
    ]  # fmt: skip
    assert_one_clear_line(run_program("scripts/suggest_nm.py", *flags, "--beta", "10", check=False), "beta", "5000")
    more = ["--lora_rank", "2", "--pairs_per_group", "1"]
    assert_one_clear_line(run_program("scripts/suggest_nm.py", *flags, *more, check=False), "--lora_rank, --pairs_per_group")
    assert_one_clear_line(run_program("scripts/suggest_nm.py", *flags, "--sizes", "7", check=False), "--sizes 7", "6 candidates")
