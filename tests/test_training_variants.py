"""Training: training variants."""

import math
import shutil

import pytest
import torch
from conftest import assert_one_clear_line, one_kind, read_log, run_program, settings_with
from safetensors.torch import load_file
from trainings import STEPS, FallingRewards, run_training, weights, words

from dp2osr.errors import UserError
from dp2osr.preference import loss
from dp2osr.preference.groups import PreferenceGroup
from dp2osr.sampling.store import CandidateStore
from dp2osr.training.guard import CollapseGuard
from dp2osr.training.objective import GroupObjective
from dp2osr.training.reference_cache import ReferenceCache
from dp2osr.training.settings import TrainSettings
from dp2osr.training.trainer import PreferenceTrainer


def test_every_loss_of_the_registry_is_a_setting():
    for name in loss.LOSSES:
        assert settings_with(TrainSettings, loss=name).loss == name
    with pytest.raises(UserError, match="--loss: is 'sigmoyd', must be one of sigmoid, ipo"):
        settings_with(TrainSettings, loss="sigmoyd")


@pytest.mark.parametrize(
    "more",
    [
        ["--loss", "ipo"],
        ["--loss", "plackett_luce"],
        ["--loss", "group_advantage"],
        ["--loss", "dgpo"],
        ["--loss", "nft", "--beta", "1"],
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
        (["--pairs_per_group", "2", "--loss", "dgpo"], "dgpo takes them whole"),
        (["--label_smoothing", "0.1", "--loss", "dgpo"], "of --loss sigmoid only"),
        (["--reference_cache", "cache", "--loss", "nft"], "--loss nft needs its predictions"),
        (["--sft_weight", "0.1", "--loss", "group_advantage"], "has none; leave it out"),
        (["--validation_image_path", "lr"], "give both, or neither"),
        (["--lora_rank", "5000"], "no layer of this ControlNet is larger"),
        (["--variant", "fp16"], "was sampled with variant None, not fp16"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(kind, labelled, tmp_path, more, mention):
    with pytest.raises(UserError, match=mention):
        run_training(kind, labelled, tmp_path / "out", *more)
    assert not list((tmp_path / "out").glob("*.safetensors"))


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


def test_a_validation_is_one_line_with_its_interval_and_the_best_before(capsys):
    guard = CollapseGuard(0, [{"step": 4, "G": 0.41, "G_low": 0.1, "G_high": 0.7}])  # of a run that goes on
    for record in ({"step": 6, "G": 0.4, "G_low": -0.123, "G_high": 1.0}, {"step": 8}, {"step": 10, "G": math.nan}):
        guard.see(record)
        guard.say(record)
    line = "validation, step 6: G = 0.40 [-0.12, 1.00]; the best was G = 0.41 [0.10, 0.70] at step 4\n"
    assert capsys.readouterr().err == line


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
    told = capsys.readouterr().err
    assert "warning: " in told and "G has fallen 2 validations in a row, best/ has the best policy" in told
    lines = [line[line.index("validation, step") :] for line in told.replace("\r", "\n").splitlines() if "validation, step" in line]
    assert lines[:3] == [
        "validation, step 0: G = 0.00; the best so far",
        "validation, step 1: G = 0.30; the best so far",
        "validation, step 2: G = 0.20; the best was G = 0.30 at step 1",
    ]
    assert len(lines) == (4 if action == "stop" else 7)
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
