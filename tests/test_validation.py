"""Held-out validation during a training."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import ROOT, one_kind, read_log, run_program, save_noise
from programs import run_ranks
from trainings import copy_validation_images, words

from dp2osr.backbones.tiles import Tiling
from dp2osr.errors import NonFiniteSamples, UserError
from dp2osr.rewards.reward import hybrid_reward
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.sampling.store import CandidateStore
from dp2osr.training import validation
from dp2osr.training.guard import CollapseGuard
from dp2osr.training.trainer import PreferenceTrainer
from dp2osr.training.validation import read_validation_images


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
def test_a_validation_bounds_nr_scores_by_the_gt_s_own(kind, labelled, tmp_path):
    copy_validation_images(tmp_path)
    more = ["--validation_steps", "2", "--validation_image_path", tmp_path / "lr", "--validation_gt_path", tmp_path / "gt"]
    more += ["--validation_candidates", "3", "--num_inference_steps", "1", "--guidance_scale", "1"]
    trainer = PreferenceTrainer(kind.training_settings(list(map(str, [*words(kind, labelled, tmp_path / "out")[1:], *more]))))
    validator = trainer.make_validator()
    validator.config = replace(validator.config, nr_bound="gt")
    found, scores = validator(trainer.reference), validator.base
    pooled = {name: np.concatenate([values, values], axis=1) for name, values in scores.items()}
    of_gt = {name: [] for name in validator.config.bounded}
    for image_id, _, gt in validator.images:
        for name, value in validator.suite.score(gt[None], None, image_id, names=of_gt).items():
            of_gt[name].append(value[0])
    rewards = hybrid_reward(pooled, validator.suite.lower_better, validator.config, {name: np.array(of) for name, of in of_gt.items()})
    assert (
        of_gt
        and found["val_reward_mean"] == pytest.approx(rewards.mean())
        and found["val_reward_best"] == pytest.approx(rewards.max(1).mean())
    )


@one_kind
def test_the_interval_of_g_is_over_photographs(kind, labelled, tmp_path, monkeypatch):
    """Of two photographs a resample is one, the other or both: the interval's bounds are the gains of each alone."""
    valid = copy_validation_images(tmp_path)
    for number, path in enumerate(sorted(tmp_path.rglob("*.png"))):  # two photographs, whatever the crops are called
        path.rename(path.with_name(f"{'ab'[number % 2]}.png"))
    more = ["--num_inference_steps", "1", "--validation_candidates", "3"]
    trainer = PreferenceTrainer(kind.training_settings(words(kind, labelled, tmp_path / "out", *valid, *more)[1:]))
    rewards, validator, hybrid = [], trainer.validator, validation.hybrid_reward
    monkeypatch.setattr(validation, "hybrid_reward", lambda *args: rewards.append(hybrid(*args)) or rewards[-1])
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter.mul_(0.9)
    found = validator(trainer.policy)
    base, policy = np.split(rewards[-1], 2, axis=1)
    alone = [(policy[row].mean() - base[row].mean()) / base[row].std(ddof=1) for row in range(2)]
    assert [found["G_low"], found["G_high"]] == pytest.approx(sorted(alone)) and alone[0] != alone[1]
    assert found["G_low"] < found["G"] < found["G_high"]
    validator.images = [(f"one_0{number}", *rest) for number, (_, *rest) in enumerate(validator.images)]
    assert "G_low" not in validator(trainer.policy)  # crops of one photograph


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
    other = {"sd2": "ddim", "flux": "flow_unipc"}[kind.name]
    more = ["--num_inference_steps", "1", "--align_method", "nofix", "--scheduler", other]
    trainer = PreferenceTrainer(kind.training_settings(words(kind, labelled, tmp_path / "out", *valid, *more)[1:]))
    settings = trainer.validator.sampler.settings
    assert (settings.num_inference_steps, settings.scheduler, trainer.validator.sampler.args.align_method) == (1, other, "nofix")
    told = capsys.readouterr().err
    assert "--num_inference_steps 1 as given, the candidates have 2" in told and "--align_method nofix" in told


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
def test_the_ranks_share_a_validation_and_find_what_one_finds(kind, labelled, tmp_path):
    more = [*copy_validation_images(tmp_path), "--validation_steps", "1", "--max_train_steps", "1", "--num_inference_steps", "1"]
    done = run_ranks(2, *words(kind, labelled, tmp_path / "two", *more))
    assert not any(process.returncode for process in done), done[0].stderr[-2000:]
    run_program(*words(kind, labelled, tmp_path / "one", *more), env={"OMP_NUM_THREADS": "1"})
    one, two = (
        [
            {name: value for name, value in record.items() if "val_" in name or name == "G"}
            for record in read_log(tmp_path / run / "train_log.jsonl")
        ]
        for run in ("one", "two")
    )
    assert one[0] == two[0] and "val_base_mean" in one[0]  # the base, to the bit
    assert two[-1] == pytest.approx(one[-1], abs=1e-4)  # the policy, whose gradient was added up by two
