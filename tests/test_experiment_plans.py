"""What an experiment says and what programs it takes: everything is checked before the first one runs."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT, assert_one_clear_line, run_program
from PIL import Image
from small_experiment import experiment, programs_as_forks

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.evaluation.published import load_published
from dp2osr.experiments import image_tables
from dp2osr.experiments.cost import read_costs
from dp2osr.experiments.plan import plan_experiment
from dp2osr.experiments.spec import CONFIG_DIR, Arm, load_experiment
from dp2osr.experiments.steps import PROGRAMS, Step, run_alone
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.store import CandidateStore

TABLES = sorted(CONFIG_DIR.glob("*/table[12].yaml"))
EXPERIMENTS = sorted(set(CONFIG_DIR.glob("*/*.yaml")) - {*TABLES})


def planned(path, folder, **changes):
    """The plan of the experiment at `path`, changed, under `folder`."""
    return plan_experiment(replace(load_experiment(path, "tiny"), **changes), folder, folder / "results")


def check(plan, folder):
    plan.check_flags()
    plan.check_inputs(folder)


# ---------------------------------------------------------------- what is read


def test_an_experiment_runs_all_arms_of_a_seed_before_the_next_seed(tmp_path):
    found = load_experiment(experiment(tmp_path), "tiny")
    assert [(arm.name, seed) for arm, seed in found.runs] == [("plain", 0), ("plain", 1), ("ranks", 1)]
    ranks = Arm({"top_n": 1}, {"normalise": "rank"}, {}, (1,), 2, line="ranks", at=0.25, name="ranks")
    assert found.arms["ranks"] == ranks


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_experiment_of_the_repository_gives_its_programs_flags_that_they_know(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = load_experiment(path.stem, path.parent.name)
    plan = plan_experiment(found, tmp_path, tmp_path / "results")
    assert len(plan.held_out) == 1 + len(found.runs)
    plan.check_flags()
    for step in {step.script: step for step in plan.steps()}.values():  # each program reads its YAML as the plan does
        settings, defaults = PROGRAMS[step.script]
        assert parse(settings, ["--config", step.begin()], **defaults) == step.settings()


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_image_table_of_the_repository_gives_its_programs_flags_that_they_know(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(image_tables, "_inputs", lambda table: [])
    table = image_tables.load_image_table(path.stem, path.parent.name)
    assert (ROOT / f"configs/evaluation/{table.protocol}.yaml").exists()
    steps = image_tables.plan_images(table, tmp_path)
    assert len(steps) == len(table.sets) * len(table.methods)
    image_tables.check(table, steps)
    for of_set in table.sets.values():
        if of_set.published:
            assert set(load_published(of_set.published).methods) >= set(table.methods)


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"arm": {}}, ["unknown", "arms"]),
        ({"seeds": [0, 0]}, ["seeds", "different"]),
        ({"seeds": 3}, ["seeds", "list"]),
        ({"arms": {}}, ["arms"]),
        ({"arms": {"a b": {}}}, ["arm 'a b'"]),
        ({"arms": {"base": {}}}, ["arm 'base'"]),
        ({"arms": {"a": {"trian": {}}}}, ["arm 'a'", "trian", "train"]),
        ({"stages": "nowhere"}, ["nowhere/sample.yaml", "missing"]),
        ({"arms": {"a": {"at": 1, "rounds": 0}}}, ["arm 'a'", "rounds"]),
        ({"arms": {"a": {"at": 1, "reference": "gone"}}}, ["arm 'a'", "reference", "moved, fixed"]),
        ({"axis": None}, ["arm 'plain'", "'at'"]),
        ({"arms": {"a": {}}}, ["arm 'a'", "'at'"]),
        ({"checkpoints": [1]}, ["checkpoints", "leave 'axis' out"]),
        ({"axis": None, "arms": {"a": {}}, "checkpoints": [0]}, ["checkpoints", "at least 1"]),
        ({"axis": None, "arms": {"a": {"rounds": 2}}, "checkpoints": [1]}, ["arm 'a'", "not of 2 rounds"]),
        ({"rivals": ["SeeSR"]}, ["rivals", "name: value"]),
        ({"rivals": {"plain": "bicubic"}}, ["rival 'plain'"]),
        ({"rivals": {"GT": "bicubic"}}, ["rival 'GT'"]),
        ({"stages": None}, ["stages", "path"]),
        ({"arms": {"a": {"at": float("inf")}}}, ["arm 'a'", "'at'"]),
        ({"crop_suffix": "_("}, ["crop_suffix", "not a regular expression"]),
        ({"pictures": "many"}, ["pictures", "a whole number"]),
        ({"arms": {"a": {"at": 1, "degradation": ["jpeg"]}}}, ["arm 'a'", "degradation", "text"]),
    ],
)
def test_a_mistake_in_an_experiment_is_named(tmp_path, changes, mentions):
    path = experiment(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        load_experiment(path, "tiny")
    for mention in [str(path), *mentions]:
        assert mention.replace("unknown", "no key") in str(error.value)


def test_what_an_experiment_needs_is_looked_for_before_it_starts(tmp_path):
    done = run_program("scripts/reproduce.py", "table3", "--preset", "paper", "--output_dir", tmp_path / "out", check=False)
    assert_one_clear_line(done, "preset/models/stable-diffusion-2-base", "data/RealSR/gt (gt_path of label)", "metrics_dir")
    assert "4 trainings, 4 of them missing" in done.stdout and not (tmp_path / "out").exists()


def test_an_experiment_that_is_not_there_lists_those_that_are():
    with pytest.raises(UserError, match="tiny/aggregation"):
        load_experiment("agregation", "tiny")


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"arms": {"a": {"at": 1, "train": {"topn": 3}}}}, ["arm 'a', train", "topn", "top_n"]),
        ({"arms": {"a": {"at": 1, "train": {"top_n": 3, "num_candidates": 4}}}}, ["arm 'a'", "N = 3 of M = 4"]),
        ({"arms": {"a": {"at": 1, "train": {"learning_rate": "fast"}}}}, ["arm 'a', train", "learning_rate"]),
        ({"arms": {"a": {"at": 1, "reward": {"normalize": "rank"}}}}, ["a-0", "normalize", "normalise"]),
        ({"arms": {"a": {"at": 1, "train": {"max_train_steps": "1e3"}}}}, ["arm 'a', train", "max_train_steps", "1000"]),
        ({"evaluated_by": "embeded"}, ["embeded", "embedded"]),
        ({"arms": {"a": {"at": 1, "train": {"num_candidates": 8}}}}, ["arm 'a'", "N = 2 of M = 8", "4 candidates"]),
        ({"arms": {"a": {"at": 1, "train": {"top_n": 3}}}}, ["arm 'a'", "N = 3 of M = 4", "4 candidates"]),
        ({"arms": {"a": {"at": 1, "train": {"backbone": "fluxx"}}}}, ["train_fluxx_dpo.py", "no such program"]),
        ({"arms": {"a": {"at": 1, "train": {"reward_config": 3}}}}, ["3"]),
        ({"axis": None, "arms": {"a": {"train": {"max_train_steps": "1e3"}}}, "checkpoints": [1]}, ["arm 'a', train", "1000"]),
        ({"axis": None, "arms": {"a": {"train": {"lora_rank": 2}}}, "checkpoints": [1]}, ["arm 'a'", "lora_rank 2"]),
    ],
)
def test_what_a_program_would_refuse_is_refused_before_the_first_one_runs(tmp_path, changes, mentions):
    with pytest.raises(UserError) as error:
        check(planned(experiment(tmp_path, **changes), tmp_path / "out"), tmp_path / "out")
    for mention in mentions:
        assert mention in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample": "slow"}, "'sample' must be a number"),
        ({"processes": 0}, "'processes': must be at least 1"),
        ({"images": 3}, "'images' must be lines"),
        ({"images": {"data/lr": "many"}}, "image 'data/lr' must be a whole number"),
        ({"sampel": 1}, "sampel"),
        ({"start": None}, "'start' must be a number"),
    ],
)
def test_a_mistake_in_what_a_stage_costs_is_named(tmp_path, changes, said):
    costs = {"machine": "x", "processes": 2, "start": 0, "sample": 1, "label": 2, "train": 3, "candidate": 1e9, "policy": 1e9}
    costs |= {"checkpoint": 1e9, "images": {}}
    (tmp_path / "cost.yaml").write_text(yaml.safe_dump(costs | changes), encoding="utf-8")
    with pytest.raises(UserError, match=said) as error:
        read_costs(tmp_path)
    assert str(tmp_path / "cost.yaml") in str(error.value)
    assert read_costs(tmp_path / "nowhere") is None


def test_rivals_are_looked_at_before_anything_starts(tmp_path):
    path, out = experiment(tmp_path, axis=None, checkpoints=[2, 1], arms={"ours": {}}), tmp_path / "out"
    with pytest.raises(UserError, match=r"nowhere \(rival 'x'\), elsewhere \(rival 'y'\)"):
        check(planned(path, out, rivals={"x": "nowhere", "y": "elsewhere"}), out)
    check(planned(path, out, rivals={"x": "preset/test/gt"}), out)  # images beyond those that are sampled have no part
    with pytest.raises(UserError, match="test/lr/.*32 x 32"):
        check(planned(path, out, rivals={"x": "preset/test/lr"}), out)
    with pytest.raises(UserError, match="only in preset/test/gt, not in x"):
        check(planned(path, out, rivals={"x": "preset/train/gt"}), out)
    (tmp_path / "stages/label_test.yaml").write_text(yaml.safe_dump({"reward_config": "nr_only"}), encoding="utf-8")
    with pytest.raises(UserError, match="label_test.yaml: 'gt_path' is missing"):
        check(planned(path, out, rivals={"x": "preset/test/gt"}), out)
    with pytest.raises(UserError, match="has no step 3"):
        planned(experiment(tmp_path, axis=None, checkpoints=[3], arms={"ours": {}}), out)


# ---------------------------------------------------------------- folders and what is shared


def test_folders_have_names_that_say_what_is_in_them(tmp_path):
    stages = f"{tmp_path.name}-stages"
    arms = {"plain": {"at": 1}, "more": {"at": 2, "sample": {"num_candidates": 8}}, "noisy": {"at": 3, "degradation": "resshift_noisy"}}
    plan = planned(experiment(tmp_path, arms=arms), tmp_path / "out")
    assert [chain[0].folder.name for chain in plan.shared] == [stages, f"{stages},num_candidates=8", f"{stages},degradation=resshift_noisy"]
    assert plan.held_out["base"] == tmp_path / f"out/held_out/{stages}/candidates"
    assert plan.held_out["more-1"] == tmp_path / "out/results/more-1/held_out/candidates"
    [training] = [step for step in plan.steps() if step.trains and step.folder.name == "more-1"]
    assert training.flags["candidates_dir"] == str(tmp_path / f"out/candidates/{stages},num_candidates=8/candidates")
    long = planned(experiment(tmp_path, test={"prompt_file": "x" * 300}), tmp_path / "out").held_out["base"].parent.name
    assert (
        len(long) < 100
        and long != planned(experiment(tmp_path, test={"prompt_file": "x" * 301}), tmp_path / "out").held_out["base"].parent.name
    )


def test_candidates_of_several_arms_and_experiments_are_sampled_once(tmp_path):
    path = experiment(tmp_path)
    plans = [plan_experiment(load_experiment(path, "tiny"), tmp_path / "out", tmp_path / name) for name in ("one", "two")]
    assert [[chain[0].folder for chain in plan.shared] for plan in plans] == [[plans[0].shared[0][0].folder]] * 2
    assert plans[0].held_out["base"] == plans[1].held_out["base"] and plans[0].held_out["plain-0"] != plans[1].held_out["plain-0"]


def test_a_program_is_started_until_it_has_ended_well_and_again_when_something_changed(tmp_path):
    (tmp_path / "lr").mkdir()
    step = Step("gen_candidates.py", "sample", tmp_path / "run", {"image_path": str(tmp_path / "lr"), "seed": 1}, tmp_path / "run/groups")
    assert not step.is_done()
    running = step.begin()
    step.output.mkdir()
    assert not step.is_done() and running.name == "sample.running.yaml"  # it may have been killed
    step.finish(running)
    assert step.is_done() and yaml.safe_load(step.yaml.read_text(encoding="utf-8")) == step.flags
    assert not replace(step, flags=step.flags | {"seed": 2}).is_done()
    assert not replace(step, reward={"fr": ["psnr"]}).is_done()
    assert not replace(step, output=tmp_path / "gone").is_done()
    later = step.yaml.stat().st_mtime + 10
    (tmp_path / "lr/a.png").write_bytes(b"")
    os.utime(tmp_path / "lr/a.png", (later, later))
    assert not step.is_done()


def test_a_further_round_samples_other_images_with_the_policy_and_starts_from_it(tmp_path):
    arms = {name: {"at": 1, "rounds": 3, "reference": name, "sample": {"max_images": 2}} for name in ("moved", "fixed")}
    plan = planned(experiment(tmp_path, arms=arms), tmp_path / "out")
    assert len(plan.shared) == 1 and plan.shared[0][0].flags["max_images"] == 2
    for reference in ("moved", "fixed"):
        [chain] = [chain for chain in plan.chains if chain[0].folder.name == f"{reference}-1"]
        names = ["train", *(f"{stage}-{number}" for number in (2, 3) for stage in ("sample", "label", "train")), "sample", "label"]
        assert [step.name for step in chain] == names
        flags = {step.name: step.flags for step in chain[:-2]}
        policies = [str(chain[0].folder / name) for name in ("policy", "policy-2", "policy-3")]
        assert flags["train"]["controlnet_model_name_or_path"] == "preset/models/c-tiny-sd2"
        assert [flags[f"{stage}-2"]["controlnet_model_name_or_path"] for stage in ("sample", "train")] == policies[:1] * 2
        assert [flags[f"{stage}-3"]["controlnet_model_name_or_path"] for stage in ("sample", "train")] == policies[1:2] * 2
        assert chain[-2].flags["controlnet_model_name_or_path"] == policies[2] == flags["train-3"]["output_dir"]
        assert flags["train-3"]["candidates_dir"] == flags["sample-3"]["output_dir"] == flags["label-3"]["candidates_dir"]
        assert flags["sample-2"]["images_offset"] == 1 and flags["sample-2"]["seed"] != flags["sample-3"]["seed"]
        anchors = [flags[name].get("reference_controlnet_model_name_or_path") for name in ("train", "train-2", "train-3")]
        assert anchors == ([None] + ["preset/models/c-tiny-sd2"] * 2 if reference == "fixed" else [None] * 3)
    sample = tmp_path / "stages/sample.yaml"
    sample.write_text(yaml.safe_dump(yaml.safe_load(sample.read_text(encoding="utf-8")) | {"max_images": None}), encoding="utf-8")
    with pytest.raises(UserError, match="arm 'moved'.*max_images"):
        planned(experiment_without_sample(tmp_path), tmp_path / "out")


def experiment_without_sample(folder):
    """The experiment that is there, whose arm does not say how many images it samples."""
    path = folder / "small.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) | {"arms": {"moved": {"at": 1, "rounds": 3}}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_another_degradation_makes_its_own_lr_images(tmp_path):
    path = experiment(tmp_path, arms={"clean": {"at": 1, "degradation": "bicubic"}})
    [clean] = planned(path, tmp_path / "out").shared
    assert [step.name for step in clean] == ["pairs", "sample", "label"]
    with programs_as_forks():
        run_alone(clean)
    assert all(step.is_done() for step in clean)
    folder = clean[-1].output.parent
    assert read_scores(folder / "scores.parquet").scores["gmsd"].shape == (3, 4)
    store = CandidateStore(folder)
    for image_id in store.ids():
        with Image.open(ROOT / f"preset/train/gt/{image_id}.png") as gt, Image.open(ROOT / f"preset/train/lr/{image_id}.png") as given_lr:
            pixels, own = (torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32)) for image in (gt, given_lr))
        reduced = F.interpolate(pixels.permute(2, 0, 1)[None], scale_factor=0.25, mode="bicubic")[0].permute(1, 2, 0).clamp(0, 255)
        lr = torch.from_numpy(np.asarray(store.read(image_id).lr).astype(np.float32))
        assert (lr - reduced).abs().max() <= 1 < (own - reduced).abs().mean()  # nothing but the reduction; ResShift's has noise and JPEG
    (tmp_path / "stages/label.yaml").write_text(yaml.safe_dump({"reward_config": "nr_only"}), encoding="utf-8")
    with pytest.raises(UserError, match="arm 'clean': 'degradation'.*'gt_path'"):
        planned(path, tmp_path / "out")
    with pytest.raises(UserError, match="arm 'x': 'degradation' is of one round"):
        load_experiment(experiment(tmp_path / "two", arms={"x": {"at": 1, "degradation": "bicubic", "rounds": 2}}), "tiny")
