"""Training: training runs."""

import importlib.util
import os
import re
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, assert_one_clear_line, one_kind, read_log, run_program, sample, write_made_up_scores
from safetensors.torch import load_file
from trainings import STEPS, FallingRewards, copy_validation_images, run_training, weights, words

from dp2osr.backbones.sd2 import SD2Backbone
from dp2osr.cli import given
from dp2osr.errors import UserError
from dp2osr.files import read_json, write_json
from dp2osr.sampling.store import CandidateStore
from dp2osr.training import checks, validation_sampling
from dp2osr.training.checkpoints import restore_checkpoint, save_checkpoint
from dp2osr.training.settings import TrainSettings
from dp2osr.training.trainer import PreferenceTrainer


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


def test_empty_prompts_beside_candidates_with_tags_are_said():
    sampled = SimpleNamespace(**validation_sampling.candidates_settings({}, SD2Backbone), prompt_file=None)
    [line] = validation_sampling.sampling_differences(sampled, {"prompt_source": "ram"}, SD2Backbone)
    assert "--validation_prompt_file" in line
    assert not validation_sampling.sampling_differences(sampled, {"prompt_source": "none"}, SD2Backbone)


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
        checks.check_tracker("wandb")
    checks.check_tracker("none")


@one_kind
@pytest.mark.parametrize(
    ("more", "mention"),
    [
        (["--validation_prompt_file", "x.json"], "--validation_prompt_file: would do nothing without --validation_image_path"),
        (["--validation_candidates", "4", "--on_collapse", "warn"], "--validation_candidates, --on_collapse: would do nothing"),
        (["--logit_mean", "1"], "--logit_mean: would do nothing with a base model of sd2"),
        (["--loss", "dgpo", "--weighting", "intra"], "--weighting: would do nothing with --loss dgpo"),
        (["--lr_scheduler", "constant", "--lr_warmup_steps", "5"], "--lr_warmup_steps: would do nothing with --lr_scheduler constant"),
        (["--validation_image_path", "a", "--validation_gt_path", "b", "--validation_steps", "0"], "with --validation_steps 0"),
    ],
)
def test_flags_that_would_do_nothing_are_one_line(kind, tmp_path, more, mention):
    argv = words(kind, tmp_path, tmp_path / "out", *more)[1:]
    with pytest.raises(UserError, match=re.escape(mention)):
        checks.check_given(kind.training_settings(argv), given(TrainSettings, argv))


@pytest.mark.slow
def test_the_trajectory_is_the_saved_one(shipped_kind, lr_folder, tmp_path):
    """Loss and gradient norm of six steps: a change of code that is to change nothing changes nothing here.

    Where a change is meant, `SAVE_TRAJECTORY=1 pytest tests/test_training_runs.py -k trajectory` saves the new ones.
    """
    path, kind = ROOT / "tests/trajectory.json", shipped_kind
    sample(kind, lr_folder, tmp_path / "candidates")
    write_made_up_scores(tmp_path / "candidates")
    run_training(kind, tmp_path / "candidates", tmp_path / "run")
    found = [[record["loss"], record["grad_norm"]] for record in read_log(tmp_path / "run/train_log.jsonl")]
    saved = read_json(path) if path.exists() else {}
    if "SAVE_TRAJECTORY" in os.environ:
        saved[kind.name] = found
        write_json(path, saved)
    assert len(found) == len(saved[kind.name]) == STEPS
    for step, ((loss_now, norm), (loss_then, norm_then)) in enumerate(zip(found, saved[kind.name], strict=True)):
        # another processor rounds otherwise, β multiplies it, and Adam makes steps of it: by the sixth, a tenth of the loss
        assert loss_now == pytest.approx(loss_then, rel=0.01 * 2**step if step else 1e-4), step
        assert norm == pytest.approx(norm_then, rel=0.1 * 1.6**step), step


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
