"""Experiments of many trainings: what is read, what is shared, what is run again, and the numbers against plain loops."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT, assert_one_clear_line, run_program
from PIL import Image
from safetensors.torch import load_file

from dp2osr import stats
from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.reproduce import runs
from dp2osr.reproduce import tasks as tasks_module
from dp2osr.reproduce.capacity import Point, best_places, capacity_markdown, load_capacity, slope, trained_parameters
from dp2osr.reproduce.cost import read_costs
from dp2osr.reproduce.grid import CONFIG_DIR, Arm, load_grid
from dp2osr.reproduce.runs import Pool, last_line, run_alone
from dp2osr.reproduce.tasks import PROGRAMS, Task, fingerprint, plan_grid
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.store import CandidateStore
from dp2osr.stats import Estimate

TABLES = sorted(CONFIG_DIR.glob("*/table[12].yaml"))
CAPACITY = CONFIG_DIR / "tiny" / "capacity.yaml"
EXPERIMENTS = sorted(set(CONFIG_DIR.glob("*/*.yaml")) - {*TABLES, CAPACITY})


def experiment(folder, **changes):
    """An experiment of two short trainings on three photographs; returns the path of its YAML."""
    stages = folder / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    model = {
        "pretrained_model_name_or_path": "preset/models/tiny-sd2",
        "controlnet_model_name_or_path": "preset/models/c-tiny-sd2",
    }
    sampling = {"num_inference_steps": 1, "guidance_scale": 1.0, "batch_size": 4, "num_candidates": 4}
    reward = folder / "psnr.yaml"
    reward.write_text("fr: [psnr, gmsd]\n", encoding="utf-8")
    content = {
        "sample": model | sampling | {"image_path": "preset/train/lr", "max_images": 3},
        "label": {"gt_path": "preset/train/gt", "reward_config": str(reward)},
        "train": model
        | {"reward_config": str(reward), "top_n": 2, "groups_per_step": 2, "max_train_steps": 2}
        | {"learning_rate": 1e-3, "report_to": "none"},
        "test": model | sampling | {"image_path": "preset/test/lr", "max_images": 3, "seed": 1},
        "label_test": {"gt_path": "preset/test/gt", "reward_config": str(reward), "extra_metrics": ["ssim"]},
    }
    for name, settings in content.items():
        (stages / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    grid = {
        "title": "A small one",
        "stages": str(stages),
        "evaluated_by": str(reward),
        "seeds": [0, 1],
        "axis": "N/M",
        "arms": {
            "plain": {"at": 0.5},
            "ranks": {"reward": {"normalise": "rank"}, "train": {"top_n": 1}, "seeds": [1], "line": "ranks", "at": 0.25, "rounds": 2},
        },
    } | changes
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
    return path


# ---------------------------------------------------------------- what is read


def test_an_experiment_runs_all_arms_of_a_seed_before_the_next_seed(tmp_path):
    grid = load_grid(experiment(tmp_path), "tiny")
    assert [(arm.name, seed) for arm, seed in grid.runs] == [("plain", 0), ("plain", 1), ("ranks", 1)]
    assert grid.arms[1] == Arm("ranks", {"top_n": 1}, {"normalise": "rank"}, (1,), "ranks", 0.25, rounds=2)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_experiment_of_the_repository_gives_its_programs_flags_that_they_know(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = load_grid(path.stem, path.parent.name)
    tasks = plan_grid(grid, tmp_path)
    assert len(tasks.held_out) == 1 + len(grid.runs)
    load_reward_config(grid.evaluated_by)
    for task in [*tasks.shared, *(task for chain in tasks.held_out.values() for task in chain)]:
        task.prepare()
        task.check(path.stem)
        for program in task.programs:
            settings, defaults = PROGRAMS[program.script]
            args = parse(settings, ["--config", task.folder / f"{program.name}.yaml"], **defaults)
            if "reward_config" in vars(args):
                load_reward_config(args.reward_config)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_image_table_of_the_repository_gives_its_programs_flags_that_they_know(path, tmp_path, monkeypatch):
    from dp2osr.evaluation.benchmark import load_published
    from dp2osr.reproduce import image_tables

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(image_tables, "_inputs", lambda table: [])
    table = image_tables.load_image_table(path.stem, path.parent.name)
    assert (ROOT / f"configs/evaluation/{table.protocol}.yaml").exists()
    tasks = image_tables.plan_images(table, tmp_path)
    assert len(tasks) == len(table.sets) * len(table.methods)
    for task in tasks.values():
        if isinstance(task, Task):
            task.check(path.stem)
    for of_set in table.sets.values():
        if "published" in of_set:
            assert set(load_published(of_set["published"])["methods"]) >= set(table.methods)


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
        ({"axis": None, "arms": {"a": {}}, "checkpoints": [0]}, ["checkpoints", "above 0"]),
        ({"axis": None, "arms": {"a": {"rounds": 2}}, "checkpoints": [1]}, ["arm 'a'", "not of 2 rounds"]),
        ({"rivals": ["SeeSR"]}, ["rivals", "name: value"]),
        ({"rivals": {"plain": "bicubic"}}, ["rival 'plain'"]),
        ({"rivals": {"GT": "bicubic"}}, ["rival 'GT'"]),
        ({"stages": None}, ["stages", "folder"]),
        ({"arms": {"a": {"at": float("inf")}}}, ["arm 'a'", "'at'"]),
        ({"crop_suffix": "_("}, ["crop_suffix", "not a regular expression"]),
        ({"pictures": "many"}, ["pictures", "number"]),
        ({"arms": {"a": {"at": 1, "degradation": ["jpeg"]}}}, ["arm 'a'", "degradation"]),
    ],
)
def test_a_mistake_in_an_experiment_is_named(tmp_path, changes, mentions):
    path = experiment(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        load_grid(path, "tiny")
    for mention in [str(path), *mentions]:
        assert mention.replace("unknown", "no key") in str(error.value)


def test_what_an_experiment_needs_is_looked_for_before_it_starts(tmp_path):
    done = run_program("scripts/reproduce/table3.py", "--preset", "paper", "--output_dir", tmp_path / "out", check=False)
    assert_one_clear_line(done, "preset/models/stable-diffusion-2-base", "data/RealSR/gt (gt_path of label)", "metrics_dir")
    assert "4 trainings, 4 of them missing" in done.stdout and not (tmp_path / "out").exists()


def test_an_experiment_that_is_not_there_lists_those_that_are():
    with pytest.raises(UserError, match="tiny/aggregation"):
        load_grid("agregation", "tiny")


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
        plan_grid(load_grid(experiment(tmp_path, **changes), "tiny"), tmp_path / "out").check()
    for mention in mentions:
        assert mention in str(error.value)


# ---------------------------------------------------------------- what is shared


def test_a_folder_s_name_stands_for_contents_and_not_for_what_changes_nothing(tmp_path, monkeypatch):
    path = experiment(tmp_path)
    stages = tmp_path / "stages"

    def folders():
        fingerprint.cache_clear()
        tasks = plan_grid(load_grid(path, "tiny"), tmp_path)
        return tasks.shared[0].folder, *(task.folder for task in tasks.held_out["plain-0"])

    def change(stage, **settings):
        content = yaml.safe_load((stages / f"{stage}.yaml").read_text(encoding="utf-8")) | settings
        (stages / f"{stage}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    before = folders()
    change("sample", batch_size=2)
    change("train", micro_batch_size=1)
    change("label_test", extra_metrics=["ssim", "vif"])
    assert folders() == before
    change("test", num_candidates=3)
    assert folders()[:2] == before[:2] and folders()[2] != before[2]
    change("test", num_candidates=4)
    (tmp_path / "psnr.yaml").write_text("fr: [psnr]\n", encoding="utf-8")  # another reward of the same name
    assert folders()[0] == before[0] and folders()[1] != before[1]
    (tmp_path / "prompts.json").write_text("{}", encoding="utf-8")
    change("sample", prompt_file=str(tmp_path / "prompts.json"))
    with_prompts = folders()
    (tmp_path / "prompts.json").write_text('{"a": "b"}', encoding="utf-8")
    assert folders()[0] != with_prompts[0] != before[0]


def test_a_metric_more_is_scored_and_nothing_else_done_again(tmp_path):
    tasks = plan_grid(load_grid(experiment(tmp_path), "tiny"), tmp_path)
    for chain in tasks.held_out.values():
        for task in chain:
            task.prepare()
            for program in task.programs:
                assert task.missing()[0] is program
                task.finish(program)
            assert task.is_done()
    label = tmp_path / "stages" / "label_test.yaml"
    label.write_text(label.read_text(encoding="utf-8").replace("ssim", "vif"), encoding="utf-8")
    tasks = plan_grid(load_grid(tmp_path / "small.yaml", "tiny"), tmp_path)
    left = {name: [program.name for task in chain for program in task.missing()] for name, chain in tasks.held_out.items()}
    assert left == {"base": ["label"], "plain-0": ["label"], "plain-1": ["label"], "ranks-1": ["label"]}


def test_two_settings_that_are_one_are_run_once(tmp_path, monkeypatch):
    grid = load_grid(experiment(tmp_path), "tiny")
    tasks = plan_grid(replace(grid, arms=[grid.arms[0], replace(grid.arms[0], name="again")]), tmp_path)
    ran = []
    monkeypatch.setattr(Pool, "run_chain", lambda self, chain: ran.append(chain))
    Pool(1).run(tasks.chains(), "x")
    assert len(ran) == 3  # the base and two seeds


def test_the_last_error_is_that_of_the_last_attempt(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("error: the disk is full\n", encoding="utf-8")
    begun = log.stat().st_size
    log.write_text("error: the disk is full\ntrain: 3%\rtrain: 5%\n\n", encoding="utf-8")
    assert last_line(log) == "the disk is full" and last_line(log, begun) == "train: 5%"


def test_large_weights_of_one_size_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks_module, "SMALL", 1000)
    content = bytearray(np.random.default_rng(0).bytes(10**6))
    found = []
    for change in (None, 0, 10**6 - 1):
        path = tmp_path / str(change) / "model.safetensors"
        path.parent.mkdir()
        path.write_bytes(content if change is None else content[:change] + bytes([content[change] ^ 1]) + content[change + 1 :])
        found.append(fingerprint(str(path)))
    assert len(set(found)) == 3
    again = tmp_path / "again/model.safetensors"
    again.parent.mkdir()
    again.write_bytes(content)
    assert fingerprint(str(again)) == found[0]


def test_all_rivals_that_are_missing_are_named_at_once(tmp_path):
    grid = load_grid(experiment(tmp_path), "tiny")
    with pytest.raises(UserError, match=r"nowhere \(rival 'x'\), elsewhere \(rival 'y'\)"):
        plan_grid(replace(grid, rivals={"x": "nowhere", "y": "elsewhere"}), tmp_path).check()


def test_an_experiment_that_fails_does_not_keep_the_next_from_running(tmp_path, monkeypatch):
    from dp2osr.reproduce import program, writing

    ran, grids = [], [replace(load_grid(experiment(tmp_path), "tiny"), name=name) for name in ("first", "second")]

    def run_grid(planned, jobs):
        ran.append(planned.grid.name)
        if len(ran) == 1:
            raise UserError("it diverged")
        return {}, {}

    monkeypatch.setattr(runs, "run_grid", run_grid)
    monkeypatch.setattr(writing, "write_results", lambda grid, *_: ran.append(f"results of {grid.name}"))
    monkeypatch.chdir(ROOT)
    args = SimpleNamespace(output_dir=str(tmp_path / "out"), plan=False, jobs=1, bootstrap=10)
    with pytest.raises(UserError, match="^first: it diverged$"):
        program.run_grids(args, {tmp_path / grid.name: grid for grid in grids})
    assert ran == ["first", "second", "results of second"]


def test_the_same_training_in_two_experiments_is_one_run_and_another_setting_is_another(tmp_path):
    grid = load_grid(experiment(tmp_path), "tiny")
    arm = grid.arms[0]

    def folder_of(**changes):
        return plan_grid(replace(grid, arms=[replace(arm, **changes)]), tmp_path).held_out[f"{changes.get('name', arm.name)}-0"][0].folder

    assert folder_of(name="renamed") == folder_of()
    changes = ({}, {"train": {"top_n": 1}}, {"reward": {"normalise": "rank"}}, {"reward": {"normalise": "z_score"}})
    different = [folder_of(**change) for change in changes]
    assert len(set(different)) == 4
    other_candidates = replace(grid, stages=grid.stages | {"sample": grid.stages["test"]})
    assert plan_grid(other_candidates, tmp_path).held_out["plain-0"][0].folder not in different
    assert plan_grid(other_candidates, tmp_path).held_out["base"][0].folder == plan_grid(grid, tmp_path).held_out["base"][0].folder


def test_a_further_round_samples_other_images_with_the_policy_and_starts_from_it(tmp_path):
    grid = load_grid(experiment(tmp_path), "tiny")
    arms = [
        replace(grid.arms[0], name=reference, rounds=3, reference=reference, sample={"max_images": 2}) for reference in ("moved", "fixed")
    ]
    tasks = plan_grid(replace(grid, arms=arms), tmp_path)
    assert len(tasks.shared) == 1 and tasks.shared[0].settings["sample"]["settings"]["max_images"] == 2
    for reference in ("moved", "fixed"):
        task, tested = tasks.held_out[f"{reference}-1"]
        names = [program.name for program in task.programs]
        assert names == ["train", *(f"{stage}-{number}" for number in (2, 3) for stage in ("sample", "label", "train"))]
        flags = {program.name: program.flags(part.folder) for part in (task, tested) for program in part.programs}
        policies = [str(task.folder / name) for name in ("policy", "policy-2", "policy-3")]
        assert flags["train"]["controlnet_model_name_or_path"] == "preset/models/c-tiny-sd2"
        assert [flags[f"{stage}-2"]["controlnet_model_name_or_path"] for stage in ("sample", "train")] == policies[:1] * 2
        assert [flags[f"{stage}-3"]["controlnet_model_name_or_path"] for stage in ("sample", "train")] == policies[1:2] * 2
        assert flags["sample"]["controlnet_model_name_or_path"] == policies[2] == flags["train-3"]["output_dir"]
        assert flags["train-3"]["candidates_dir"] == flags["sample-3"]["output_dir"] == flags["label-3"]["candidates_dir"]
        assert flags["sample-2"]["images_offset"] == 1 and flags["sample-2"]["seed"] != flags["sample-3"]["seed"]
        anchor = flags["train-3"].get("reference_controlnet_model_name_or_path")
        assert anchor == ("preset/models/c-tiny-sd2" if reference == "fixed" else None)
    assert tasks.held_out["moved-1"][0].folder != tasks.held_out["fixed-1"][0].folder
    with pytest.raises(UserError, match="arm 'moved'.*max_images"):
        everything = yaml.safe_load(grid.stages["sample"].read_text(encoding="utf-8"))
        grid.stages["sample"].write_text(yaml.safe_dump({**everything, "max_images": None}), encoding="utf-8")
        plan_grid(replace(grid, arms=[replace(arms[0], sample={})]), tmp_path)


# ---------------------------------------------------------------- statistics


def test_another_degradation_makes_its_own_lr_images_and_is_another_folder(tmp_path):
    arms = {"given": {"at": 1}, "clean": {"at": 1, "degradation": "bicubic"}, "noisy": {"at": 1, "degradation": "resshift_noisy"}}
    tasks = plan_grid(load_grid(experiment(tmp_path, arms=arms), "tiny"), tmp_path / "out")
    given, clean, noisy = tasks.shared
    assert len({given.folder, clean.folder, noisy.folder}) == 3 and [program.name for program in clean.programs] == [
        "pairs",
        "sample",
        "label",
    ]
    assert tasks.held_out["clean-0"][0].folder != tasks.held_out["given-0"][0].folder
    for task in tasks.shared:
        task.check("shared")
    run_alone(clean)
    assert clean.is_done() and read_scores(clean.folder / "candidates/scores.parquet").scores["gmsd"].shape == (3, 4)
    store = CandidateStore(clean.folder / "candidates")
    for image_id in store.ids():
        with Image.open(ROOT / f"preset/train/gt/{image_id}.png") as gt, Image.open(ROOT / f"preset/train/lr/{image_id}.png") as given_lr:
            pixels, own = (torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32)) for image in (gt, given_lr))
        reduced = F.interpolate(pixels.permute(2, 0, 1)[None], scale_factor=0.25, mode="bicubic")[0].permute(1, 2, 0).clamp(0, 255)
        lr = torch.from_numpy(np.asarray(store.read(image_id).lr).astype(np.float32))
        assert (lr - reduced).abs().max() <= 1 < (own - reduced).abs().mean()  # nothing but the reduction; ResShift's has noise and JPEG
    (tmp_path / "stages/label.yaml").write_text(yaml.safe_dump({"reward_config": "nr_only"}), encoding="utf-8")
    with pytest.raises(UserError, match="arm 'clean': 'degradation'.*'gt_path'"):
        plan_grid(load_grid(tmp_path / "small.yaml", "tiny"), tmp_path / "out")
    with pytest.raises(UserError, match="arm 'x': 'degradation' is of one round"):
        load_grid(experiment(tmp_path / "two", arms={"x": {"at": 1, "degradation": "bicubic", "rounds": 2}}), "tiny")


def test_the_mean_gain_of_one_training_is_its_gain():
    rng = np.random.default_rng(0)
    base, policy = rng.normal(size=(6, 5)), rng.normal(0.3, size=(6, 5))
    weights = stats.bootstrap_weights(list("aabbcd"), 500, 0)
    expected = stats.gain(policy, base, weights)
    difference = (policy.mean(axis=1) - base.mean(axis=1))[None]
    got, _ = stats.mean_gain(difference, stats.spread(base), weights, stats.seed_weights(1, 500, 0))
    assert (got.value, got.low, got.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_the_interval_of_several_trainings_is_that_of_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    differences, spread = rng.normal(size=(3, 4)), rng.random(4) + 0.5
    weights, of_seeds = stats.bootstrap_weights(list("aabc"), 200, 0), stats.seed_weights(3, 200, 0)
    values = []
    for images, seeds in zip(weights, of_seeds, strict=True):
        above = sum(images[g] * seeds[s] * differences[s, g] for s in range(3) for g in range(4))
        below = sum(images[g] * seeds[s] * spread[g] for s in range(3) for g in range(4))
        values.append(above / below)
    got, draws = stats.mean_gain(differences, spread, weights, of_seeds)
    assert got.value == pytest.approx(differences.mean() / spread.mean())
    assert [got.low, got.high] == pytest.approx(list(np.percentile(values, [2.5, 97.5])))
    assert draws == pytest.approx(values)
    one, _ = stats.mean_gain(differences[:1], spread, weights, stats.seed_weights(1, 200, 0))
    assert np.isfinite([one.low, one.high]).all()


# ---------------------------------------------------------------- the whole of it


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An experiment that was run; (path of its YAML, output folder, what it printed)."""
    folder = tmp_path_factory.mktemp("experiment")
    path, output = experiment(folder), folder / "out"
    flags = ["--experiment", path, "--output_dir", output, "--jobs", "2", "--bootstrap", "200"]
    done = run_program("scripts/reproduce/aggregation.py", *flags)
    return path, output, done.stdout


def test_an_experiment_ends_with_tables_that_equal_loops_over_the_scores(finished):
    path, output, printed = finished
    rows = list(csv.DictReader((output / "own" / "small" / "results.csv").open(encoding="utf-8")))
    tasks = plan_grid(load_grid(path, "tiny"), output)
    scores = {name: read_scores(chain[-1].folder / "candidates" / "scores.parquet") for name, chain in tasks.held_out.items()}
    sigma = np.mean([np.std(row, ddof=1) for row in scores["base"].scores["ssim"]])
    for arm, seeds in (("plain", [0, 1]), ("ranks", [1])):
        [row] = [row for row in rows if row["arm"] == arm and row["metric"] == "ssim"]
        changes = [(scores[f"{arm}-{seed}"].scores["ssim"].mean() - scores["base"].scores["ssim"].mean()) / sigma for seed in seeds]
        assert float(row["change"]) == pytest.approx(np.mean(changes), rel=1e-4)
        assert [float(row[f"seed_{seed}"]) for seed in seeds] == pytest.approx(changes, rel=1e-4)
    gmsd = (scores["base"].scores["gmsd"].mean() - scores["ranks-1"].scores["gmsd"].mean()) / np.mean(
        [np.std(row, ddof=1) for row in scores["base"].scores["gmsd"]]
    )
    [row] = [row for row in rows if row["arm"] == "ranks" and row["metric"] == "gmsd"]
    assert float(row["change"]) == pytest.approx(gmsd, rel=1e-4)  # lower is better, so a fall is a gain
    both = scores["ranks-1"].scores["ssim"].mean() - scores["plain-1"].scores["ssim"].mean()
    [row] = [row for row in rows if row["arm"] == "ranks" and row["metric"] == "ssim"]
    assert float(row["difference"]) == pytest.approx(both / sigma, rel=1e-4)
    assert "Against plain" in printed
    for name in ("results.png", "results.svg", "axis.png", "axis.svg"):
        assert (output / "own" / "small" / name).stat().st_size > 1000


def test_the_mean_rewards_are_those_of_a_loop_over_the_pool(finished):
    path, output, printed = finished
    grid = load_grid(path, "tiny")
    config = load_reward_config(grid.evaluated_by)
    tables = {
        name: read_scores(chain[-1].folder / "candidates" / "scores.parquet").scores
        for name, chain in plan_grid(grid, output).held_out.items()
    }
    lower_better = {"gmsd", "nlpd", "brisque", "piqe", "lpips"}
    totals = dict.fromkeys(tables, 0.0)
    for half in (half for half in (config.fr, config.nr) if half):
        weight = 1.0 if not (config.fr and config.nr) else config.fr_weight if half is config.fr else 1 - config.fr_weight
        for spec in half:
            for group in range(len(tables["base"][spec.name])):
                every = [value for scores in tables.values() for value in scores[spec.name][group]]
                low, high = min(every), max(every)
                for name, scores in tables.items():
                    scaled = [(value - low) / (high - low) for value in scores[spec.name][group]]
                    scaled = [1 - value for value in scaled] if spec.name in lower_better else scaled
                    totals[name] += weight / len(half) * sum(scaled) / len(scaled) / len(tables["base"][spec.name])
    expected = {"base": totals["base"], "plain": (totals["plain-0"] + totals["plain-1"]) / 2, "ranks": totals["ranks-1"]}
    [line] = [line for line in printed.splitlines() if line.startswith("Mean reward, from 0 to 1")]
    assert line.endswith(": " + ", ".join(f"{name} {value:.3f}" for name, value in expected.items()))


def test_an_experiment_that_is_done_is_not_run_again(finished):
    path, output, printed = finished
    before = {file: file.stat().st_mtime_ns for file in output.glob("*/*/*/*.parquet")}
    started = time.time()
    again = run_program("scripts/reproduce/aggregation.py", "--experiment", path, "--output_dir", output, "--bootstrap", "200")
    logs = [file for file in output.glob("*/*/log.txt") if file.stat().st_mtime > started]
    assert before and before == {file: file.stat().st_mtime_ns for file in before} and not logs
    assert "3 trainings, 0 of them missing" in again.stdout
    assert again.stdout[again.stdout.index("# A small one") :] == printed[printed.index("# A small one") :]


def test_a_program_that_fails_is_named_with_its_own_words_and_its_log(tmp_path, finished):
    diverges = {"at": 1, "seeds": [0], "train": {"learning_rate": 1.0, "max_train_steps": 40, "beta": 1e30}}
    path = experiment(tmp_path, arms={"plain": diverges, "usual": {"at": 2, "seeds": [0]}})
    output = tmp_path / "out"
    output.mkdir()
    (output / "candidates").symlink_to(finished[1] / "candidates")
    done = run_program("scripts/reproduce/aggregation.py", "--experiment", path, "--output_dir", output, "--jobs", "2", check=False)
    assert_one_clear_line(done, "1 of 3 runs failed", "train_sd2_dpo.py stopped", "no finite loss", "log.txt")
    told = run_program("scripts/reproduce/aggregation.py", "--experiment", path, "--output_dir", output, "--plan").stdout
    assert "2 trainings, 1 of them missing" in told and "held-out candidates of 1 models" in told  # the others went on to their end


def test_a_killed_experiment_leaves_no_program_behind(tmp_path):
    path = experiment(tmp_path)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "scripts/reproduce/aggregation.py", "--experiment", str(path), "--output_dir", str(tmp_path / "out")]
    parent = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child = wait_for(lambda: running_under(tmp_path))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert child and wait_for(lambda: not running_under(tmp_path)), running_under(tmp_path)
    finally:
        parent.kill()
    assert not list((tmp_path / "out").glob("*/*/done.json"))


def test_programs_that_share_no_work_are_one_process(monkeypatch):
    started = []
    monkeypatch.setattr(runs.subprocess, "Popen", lambda command, **_: started.append(command))
    for script, jobs in (("gen_candidates.py", 1), ("gen_candidates.py", 2), ("scripts/make_lr_pairs.py", 1)):
        runs.start(script, "x.yaml", jobs)
    assert ["dp2osr.launch" in command for command in started] == [True, False, False]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    return condition()


def running_under(folder):
    """Process ids of programs whose settings are in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "--config" in words and str(folder) in words[words.index("--config") + 1]:
                found.append(int(entry.name))
    return found


def test_an_image_table_restores_each_set_once_and_evaluates_it(tmp_path, lr_folder):
    model = {"pretrained_model_name_or_path": "preset/models/tiny-sd2", "controlnet_model_name_or_path": "preset/models/c-tiny-sd2"}
    flags = model | {"num_inference_steps": 1, "guidance_scale": 1.0, "upscale": 4, "sample_times": 2}
    (tmp_path / "psnr.yaml").write_text("fr: [psnr]\n", encoding="utf-8")
    gt = tmp_path / "gt"
    gt.mkdir()
    for path in lr_folder.iterdir():
        (gt / path.name).write_bytes((ROOT / "preset/train/gt" / path.name).read_bytes())
    content = {
        "title": "Small",
        "protocol": str(tmp_path / "psnr.yaml"),
        "sets": {"three": {"image_path": str(lr_folder), "gt_path": str(gt)}},
        "methods": {"ours": {"program": "test_sd2b_controlnet.py", "flags": flags}, "bicubic": {"bicubic": 4}, "GT": {"images": str(gt)}},
    }
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    words = ["scripts/reproduce/table1.py", "--experiment", tmp_path / "table.yaml", "--output_dir", tmp_path / "out"]
    run_program(*words)
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "out/own/table/three/table.csv").open(encoding="utf-8"))}
    assert set(rows) == {"ours", "bicubic", "GT"} and rows["ours"]["std_within_image"] and float(rows["GT"]["mean"]) > 70
    [log] = (tmp_path / "out").glob("images/*/log.txt")
    before = log.stat().st_mtime_ns
    assert "0 of them to be restored" in run_program(*words).stdout and log.stat().st_mtime_ns == before
    content["sets"]["absent"] = {"image_path": str(tmp_path / "absent"), "optional": True}
    content["cost"] = {"machine": "a clock", "processes": 2, "start": 0, "score": 3600, "image": 1e9}
    content["methods"]["ours"] |= {"seconds": 7200, "flags": flags | {"seed": 5}}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    told = run_program(*words, "--plan").stdout
    assert "without absent" in told and "about 9 hours and 6 GB on a clock" in told  # 3 images, 2 samples, 3 hours each, two processes
    content["sets"]["three"]["optional"] = True
    content["sets"]["three"]["gt_path"] = "nowhere"
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert_one_clear_line(run_program(*words, check=False), "without absent", "nowhere", "no set is left")
    content["sets"]["three"]["gt_path"] = str(gt)
    content["cost"].pop("score")
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert_one_clear_line(run_program(*words, check=False), "'cost' must have", "score")
    del content["cost"]
    content["methods"]["SeeSR"] = {"images": "nowhere/{set}"}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert_one_clear_line(run_program(*words, check=False), "nowhere/three")
    content["methods"]["SeeSR"] = {"images": "x", "bicubic": 4}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert_one_clear_line(run_program(*words, check=False), "method 'SeeSR'", "one of")


# ---------------------------------------------------------------- during a training, beside other methods


@pytest.fixture(scope="module")
def watched(tmp_path_factory, finished):
    """An experiment that looks at a training twice, beside bicubic as images and by name: (YAML, output folder, what it printed)."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "bicubic").mkdir()
    output = folder / "out"
    output.mkdir()
    path = experiment(
        folder,
        axis=None,
        checkpoints=[2, 1],
        seeds=[0],
        arms={"ours": {}},
        rivals={"bicubic": "bicubic", "SeeSR": str(folder / "bicubic"), "other": str(folder / "stages")},
        best_mean_worst=True,
        pictures=2,
    )
    [store] = {Path(task.folder) for task in plan_grid(load_grid(path, "tiny"), finished[1]).held_out["base"]}
    for group in (store / "candidates" / "groups").iterdir():
        lr = Image.open(ROOT / f"preset/test/lr/{group.name}.png").convert("RGB")
        lr.resize((4 * lr.width, 4 * lr.height), Image.Resampling.BICUBIC).save(folder / "bicubic" / f"{group.name}.png")
    gt = folder / "gt"
    gt.mkdir()
    for image in (folder / "bicubic").iterdir():
        (gt / image.name).write_bytes((ROOT / "preset/test/gt" / image.name).read_bytes())
    label = yaml.safe_load((folder / "stages/label_test.yaml").read_text())
    (folder / "stages/label_test.yaml").write_text(yaml.safe_dump(label | {"gt_path": str(gt)}), encoding="utf-8")
    costs = {"machine": "an abacus", "processes": 2, "start": 100, "sample": 1, "label": 2, "train": 3}
    costs |= {"candidate": 1e9, "policy": 1e9, "checkpoint": 5e9}
    (folder / "stages/cost.yaml").write_text(yaml.safe_dump(costs | {"images": {}}), encoding="utf-8")
    done = run_program("scripts/reproduce/fig1b.py", "--experiment", path, "--output_dir", output, "--bootstrap", "200")
    return path, output, done.stdout


def test_a_training_is_looked_at_where_it_was_and_run_once(watched, finished):
    path, output, printed = watched
    tasks = plan_grid(load_grid(path, "tiny"), output)
    assert list(tasks.held_out) == ["base", "ours@1-0", "ours@2-0"] and len(tasks.chains()) == 2
    assert len(list((output / "trainings").iterdir())) == 1
    scores = {name: read_scores(chain[-1].folder / "candidates/scores.parquet").scores["gmsd"] for name, chain in tasks.held_out.items()}
    assert not np.array_equal(scores["ours@1-0"], scores["ours@2-0"])
    plain = plan_grid(load_grid(finished[0], "tiny"), finished[1]).held_out["plain-0"][-1]  # the same two steps, its policy at the end
    assert np.array_equal(scores["ours@2-0"], read_scores(plain.folder / "candidates/scores.parquet").scores["gmsd"])
    assert (output / "own/small/axis.png").stat().st_size > 1000
    with Image.open(output / "own/small/pictures.png") as sheet:  # LR, bicubic, base, two looks, GT, enlarged twice; two images
        assert sheet.size[0] > 6 * 256 and 2 * 256 < sheet.size[1] < 3 * 256


def test_other_methods_stand_beside_it_without_a_part_in_the_scale(watched):
    path, output, _ = watched
    rows = {(row["arm"], row["metric"]): row for row in csv.DictReader((output / "own/small/results.csv").open(encoding="utf-8"))}
    for metric in ("reward", "psnr", "gmsd", "ssim"):
        assert float(rows["SeeSR", metric]["change"]) == pytest.approx(float(rows["bicubic", metric]["change"]), rel=1e-5)
        assert float(rows["other", metric]["change"]) == pytest.approx(0, abs=1e-5)  # the base itself
    tasks = plan_grid(load_grid(path, "tiny"), output)
    scores = {name: read_scores(chain[-1].folder / "candidates/scores.parquet").scores for name, chain in tasks.held_out.items()}
    reward = {name: np.zeros_like(of["psnr"]) for name, of in scores.items()}
    for metric, sign in (("psnr", 1), ("gmsd", -1)):  # by hand: min-max over base and both looks, the mean of the two metrics
        pooled = np.concatenate([sign * of[metric] for of in scores.values()], axis=1)
        low, span = pooled.min(axis=1, keepdims=True), np.ptp(pooled, axis=1)[:, None]
        for name, of in scores.items():
            reward[name] += (sign * of[metric] - low) / span / 2
    sigma = np.std(reward["base"], axis=1, ddof=1).mean()
    expected = (reward["ours@2-0"].mean() - reward["base"].mean()) / sigma
    assert float(rows["ours@2", "reward"]["change"]) == pytest.approx(expected, rel=1e-4)
    curves = {
        (row["model"], int(row["m"])): row for row in csv.DictReader((output / "own/small/best_mean_worst.csv").open(encoding="utf-8"))
    }
    assert float(curves["base", 4]["best"]) == pytest.approx(reward["base"].max(axis=1).mean(), rel=1e-4)
    pairs = [reward["ours@1-0"][:, list(pair)].min(axis=1) for pair in combinations(range(4), 2)]
    assert float(curves["ours@1", 2]["worst"]) == pytest.approx(np.mean(pairs), rel=1e-4)


def test_a_plan_tells_hours_and_disk_by_what_a_candidate_costs(watched, tmp_path):
    path, output, printed = watched
    # 3 images x 4 to sample and score; 2 steps of 2 groups of 4; twice held out and twice for the rival that is the base: those are one
    seconds = 12 * 3 + 2 * 2 * 4 * 3 + 3 * 12 * 3 + 100 * (2 + 1 + 3 * 2)  # and as many programs
    size = 12 + 1 + 2 * 5 + 3 * 12
    assert f"about {seconds / 2 / 3600:.2g} hours and {size} GB on an abacus" in printed
    again = run_program("scripts/reproduce/fig1b.py", "--experiment", path, "--output_dir", output, "--plan").stdout
    assert "1 trainings, 0 of them missing" in again and "hours" not in again
    grid = load_grid(path, "tiny")
    with pytest.raises(UserError, match="has no step 3"):
        plan_grid(replace(grid, arms=[replace(grid.arms[0], checkpoint=3)], checkpoints=(3,)), tmp_path)
    with pytest.raises(UserError, match="not on this machine: nowhere \\(rival 'x'\\)"):
        plan_grid(replace(grid, rivals={"x": "nowhere"}), tmp_path).check()
    label = grid.stages["label_test"]
    content = label.read_text(encoding="utf-8")
    try:
        label.write_text(content.replace(yaml.safe_load(content)["gt_path"], "preset/test/gt"), encoding="utf-8")
        plan_grid(replace(grid, rivals={"x": "preset/test/gt"}), tmp_path).check()  # images beyond those that are sampled have no part
        with pytest.raises(UserError, match="test/lr/.*32 x 32"):
            plan_grid(replace(grid, rivals={"x": "preset/test/lr"}), tmp_path).check()
        with pytest.raises(UserError, match="only in preset/test/gt, not in x"):
            plan_grid(replace(grid, rivals={"x": "preset/train/gt"}), tmp_path).check()
        label.write_text(yaml.safe_dump({"reward_config": "nr_only"}), encoding="utf-8")
        with pytest.raises(UserError, match="label_test.yaml: 'gt_path' is missing"):
            plan_grid(grid, tmp_path).check()
    finally:
        label.write_text(content, encoding="utf-8")


# ---------------------------------------------------------------- one sweep on several models


def test_a_sweep_of_capacities_has_each_model_in_every_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    grids = load_capacity("capacity", "tiny")
    tasks = {key: plan_grid(grid, tmp_path) for key, grid in grids.items()}
    suffixes = {
        "C-tiny-SD2, 8 channels": "sd2-8",
        "C-tiny-SD2, 16 channels": "sd2-16",
        "C-tiny-SD2, 32 channels": "sd2",
        "C-tiny-FLUX": "flux",
    }
    for (model, _), of_model in tasks.items():
        of_model.check()
        programs = [
            program
            for task in [*of_model.shared, *(task for chain in of_model.held_out.values() for task in chain)]
            for program in task.programs
        ]
        networks = {
            tuple(program.settings[key] for key in ("pretrained_model_name_or_path", "controlnet_model_name_or_path"))
            for program in programs
            if "pretrained_model_name_or_path" in program.settings
        }
        assert networks == {(f"preset/models/tiny-{suffixes[model]}", f"preset/models/c-tiny-{suffixes[model]}")}
        [sampled] = {task.programs[0].settings["num_candidates"] for task in of_model.shared}
        assert sampled == (64 if model == "C-tiny-SD2, 32 channels" else 16)
    sweep = plan_grid(load_grid("fig4", "tiny"), tmp_path)  # what the sweep of the preset's model has in common is run once
    preset = tasks["C-tiny-SD2, 32 channels", "rate 1e-4"]
    assert preset.held_out["N4-1"][0].folder == sweep.held_out["M16_N4-1"][0].folder
    assert "N1_5x-0" not in preset.held_out and "N1-1" not in tasks["C-tiny-FLUX", "rate 1e-4"].held_out
    sizes = [trained_parameters(grid) for grid in grids.values()]
    weights = load_file(ROOT / "preset/models/c-tiny-sd2/diffusion_pytorch_model.safetensors")
    assert sizes == sorted(sizes) and sizes[4] == sum(tensor.numel() for tensor in weights.values())


def test_the_best_place_of_each_model_and_how_it_moves_by_hand():
    rng = np.random.default_rng(0)
    sizes, draws = {"a": 1e3, "b": 4e3, "c": 16e3}, {}
    points = []
    for model, best in (("a", 0.5), ("b", 0.25), ("c", 0.125)):
        for place in (0.5, 0.25, 0.125):
            value = 1.0 if place == best else 0.5
            draws[model, place] = value + rng.normal(0, 0.35, 300)
            low, high = np.percentile(draws[model, place], [2.5, 97.5])
            points.append(Point(model, "slow", place, Estimate(value, low, high), draws[model, place], 3))
    found = best_places(points)
    assert [(one.model, one.at) for one in found] == [("a", 0.5), ("b", 0.25), ("c", 0.125)]
    moves, share = [], 0
    for number in range(300):
        best = [max((0.5, 0.25, 0.125), key=lambda place: draws[model, place][number]) for model in "abc"]
        moves.append(np.polyfit(np.log2([1e3, 4e3, 16e3]), np.log2(best), 1)[0])
        share += (best[0] == 0.5) / 300
    estimate = slope(found, sizes)
    assert estimate.value == pytest.approx(-0.5)  # half a doubling for each
    assert [estimate.low, estimate.high] == pytest.approx(np.percentile(moves, [2.5, 97.5]))
    assert estimate.low < estimate.high and 0.5 < share < 0.95
    text = capacity_markdown("T", "N/M", points, sizes)
    assert f"1/2 ({share:.0%})" in text and "cannot be told from not moving" in text and "Worse than its base: none." in text
    sure = [replace(point, draws=np.full(300, point.change.value)) for point in points]
    assert "it falls with capacity" in capacity_markdown("T", "N/M", sure, sizes)
    assert "doubling" not in capacity_markdown("T", "N/M", sure, dict.fromkeys(sizes, 1e3))
    points.append(Point("c", "fast", 0.5, Estimate(-1.0, -2.0, -0.5), np.zeros(300), 1))
    text = capacity_markdown("T", "N/M", points, sizes)
    assert "Worse than its base: c, fast 1/2." in text and "whose own chance is in no interval: c." in text


def test_draws_without_a_value_say_nothing_of_the_best_place():
    points = [
        Point("a", "", place, Estimate(value), draws, 1)
        for place, value, draws in ((0.5, 1.0, np.array([np.nan, 2, 2, 0])), (0.25, 0.5, np.ones(4)))
    ]
    [found] = best_places(points)
    assert found.share == pytest.approx(2 / 3) and found.draws.tolist() == [0.5, 0.5, 0.25]
    [found] = best_places([replace(point, draws=None) for point in points])  # one photograph alone
    assert found.at == 0.5 and np.isnan(found.share)
    assert "1/2 |" in capacity_markdown("T", "N/M", [replace(point, draws=None) for point in points], {"a": 1})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {"a": {"stages": "x"}}}, "at least two"),
        ({"models": {"a": {}, "b": {}}}, "model 'a': 'stages' is missing"),
        ({"models": {"a": {"stage": "x"}, "b": {}}}, "model 'a'.*'stage'"),
        ({"axis": None}, "'axis' is missing"),
        ({"models": {"a": {"stages": "nowhere"}, "b": {"stages": "nowhere"}}}, "nowhere"),
        ({"models": {"a": {"stages": 3}, "b": {"stages": 3}}}, "'stages' must be a folder"),
        ({"models": {"a 1": {"stages": "STAGES"}, "a-1": {"stages": "STAGES"}}}, "they name folders"),
        ({"arms": {"one": {"at": 1}, "two": {"at": 1}}}, "different places"),
    ],
)
def test_a_mistake_in_a_sweep_of_capacities_is_named(tmp_path, changes, said):
    path = experiment(tmp_path)
    content = yaml.safe_load(path.read_text(encoding="utf-8")) | {"models": {name: {"stages": str(tmp_path / "stages")} for name in "ab"}}
    written = yaml.safe_dump({key: value for key, value in content.items() if key != "stages"} | changes)
    path.write_text(written.replace("STAGES", str(tmp_path / "stages")), encoding="utf-8")
    with pytest.raises(UserError, match=said) as error:
        load_capacity(path, "tiny")
    assert str(path) in str(error.value)


def test_models_are_swept_one_after_the_other_and_compared(finished, tmp_path):
    """The same model by three names, on candidates and trainings that are there."""
    path, done, _ = finished
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    stages = content.pop("stages")
    content["models"] = {name: {"stages": stages} for name in ("one", "two", "three")}
    content["arms"]["ranks"] |= {"line": ""}
    own = tmp_path / "three.yaml"
    own.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    output = tmp_path / "out"
    output.mkdir()
    for folder in ("candidates", "trainings"):
        (output / folder).symlink_to(done / folder)
    said = run_program("scripts/reproduce/capacity.py", "--experiment", own, "--output_dir", output, "--bootstrap", "200").stdout
    rows = list(csv.DictReader((output / "own/three/capacity.csv").open(encoding="utf-8")))
    before = list(csv.DictReader((done / "own/small/results.csv").open(encoding="utf-8")))
    changes = {row["arm"]: float(row["change"]) for row in before if row["metric"] == "reward"}
    assert [row["model"] for row in rows] == ["one"] * 2 + ["two"] * 2 + ["three"] * 2
    assert [float(row["change"]) for row in rows] == pytest.approx([changes[arm] for arm in ("plain", "ranks")] * 3, rel=1e-4)
    best = "1/2" if changes["plain"] > changes["ranks"] else "1/4"
    table = [line for line in said.splitlines() if line.startswith(("| one |", "| two |", "| three |"))]
    assert len(table) == 3 and all(f"| {best} (" in line for line in table) and "doubling" not in said  # models of one size have no slope
    assert (output / "own/three/capacity.png").stat().st_size > 1000 and (output / "own/three/two/results.md").exists()


# ---------------------------------------------------------------- a probe before a sweep


def test_a_probe_is_compared_with_the_sweep_that_was_run(tmp_path, monkeypatch, capsys):
    from dp2osr.reproduce import prediction

    arms = {
        f"M{size}_N{top}": {"at": top / size, "train": {"num_candidates": size, "top_n": top}} for size, top in ((4, 1), (4, 2), (2, 1))
    }
    path = experiment(tmp_path, arms=arms)
    words = ["predict_nm.py", "--experiment", str(path), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="own/small/results.csv: is missing; run scripts/reproduce/small.py first"):
        prediction.run_prediction("")
    results = tmp_path / "out/own/small/results.csv"
    results.parent.mkdir(parents=True)
    lines = ["arm,metric,change,low,high", "M4_N1,reward,0.5,0.4,0.6", "M4_N1,psnr,9,9,9", "M4_N2,reward,0.7,0.6,0.8"]
    results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no results of M2_N1"):
        prediction.run_prediction("")
    results.write_text("\n".join([*lines, "M2_N1,reward,-0.2,-0.3,-0.1"]) + "\n", encoding="utf-8")
    ran = []

    def run_alone(task):
        if task.programs[0].name != "probe":
            return
        ran.append(task.programs[0].flags(task.folder))
        records = [{"M": 4, "N": 1, "gain": 3.0}, {"M": 4, "N": 2, "gain": 2.0}, {"M": 2, "N": 1, "gain": 1.0}]
        both = {"photographs": ["a", "b"]}
        records = [record | both | {"by_group": [record["gain"], record["gain"] + 0.1]} for record in records]
        (task.folder / "probe").mkdir()
        (task.folder / "probe/probe.json").write_text(json.dumps(records), encoding="utf-8")

    monkeypatch.setattr(prediction, "run_alone", run_alone)
    prediction.run_prediction("")
    said = capsys.readouterr().out
    assert (ran[0]["sizes"], ran[0]["tops"]) == ([2, 4], [1, 2]) and "num_candidates" not in ran[0] and ran[0]["learning_rate"] == 1e-3
    assert "rank correlation +0.50" in said  # 3, 2, 1 against .5, .7, −.2
    assert "Its best: N = 1 of M = 4, measured +0.50, 0.20 below the sweep's best, M4_N2." in said
    rows = list(csv.DictReader((results.parent / "prediction.csv").open(encoding="utf-8")))
    assert [(row["arm"], float(row["gain"]), float(row["change"])) for row in rows] == [
        ("M4_N1", 3, 0.5),
        ("M4_N2", 2, 0.7),
        ("M2_N1", 1, -0.2),
    ]
    assert (results.parent / "prediction.png").stat().st_size > 1000


def test_a_probe_is_compared_with_each_models_own_sweep(tmp_path, monkeypatch, capsys):
    from dp2osr.reproduce import prediction

    path = experiment(tmp_path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    stages = content.pop("stages")
    usual = {f"N{top}": {"line": "usual", "at": top / 4, "train": {"num_candidates": 4, "top_n": top}} for top in (1, 2)}
    fast = {f"F{top}": {**usual[f"N{top}"], "line": "fast", "train": {**usual[f"N{top}"]["train"], "learning_rate": 0.1}} for top in (1, 2)}
    models = {"small": {"stages": stages, "controlnet": "preset/models/c-tiny-sd2-8", "base": "preset/models/tiny-sd2-8"}}
    content |= {"axis": "N/M", "arms": usual | fast, "models": models | {"large": {"stages": stages}}}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["predict_nm.py", "--experiment", str(path), "--output_dir", str(tmp_path / "out")])
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="small_usual/results.csv: is missing; run scripts/reproduce/capacity.py first"):
        prediction.run_prediction("")
    folder, gains = tmp_path / "out/own/small", {"tiny-sd2-8": (2.0, 1.0), "tiny-sd2": (1.0, 2.0)}
    for model in ("small", "large"):
        (folder / f"{model}_usual").mkdir(parents=True)
        lines = ["arm,metric,change,low,high", "N1,reward,0.5,0.4,0.6", "N2,reward,0.7,0.6,0.8"]
        (folder / f"{model}_usual/results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run_alone(task):
        if task.programs[0].name == "probe":
            flags = task.programs[0].flags(task.folder)
            assert flags["learning_rate"] == 1e-3  # the first line's, not the fast one's
            records = [
                {"M": 4, "N": top, "gain": gain, "photographs": ["a", "b"], "by_group": [gain, gain]}
                for top, gain in zip((1, 2), gains[Path(flags["pretrained_model_name_or_path"]).name], strict=True)
            ]
            (task.folder / "probe").mkdir()
            (task.folder / "probe/probe.json").write_text(json.dumps(records), encoding="utf-8")

    monkeypatch.setattr(prediction, "run_alone", run_alone)
    prediction.run_prediction("")
    said = capsys.readouterr().out
    small, large = said.split("## small")[1].split("## large")
    assert "rank correlation -1.00" in small and "0.20 below the sweep's best, N2" in small
    assert "rank correlation +1.00" in large and "0.00 below the sweep's best, N2" in large
    assert "Mean of the 2 rank correlations: +0.00" in large
    rows = list(csv.DictReader((folder / "prediction.csv").open(encoding="utf-8")))
    assert [(row["model"], row["arm"], float(row["gain"])) for row in rows] == [
        ("small", "N1", 2), ("small", "N2", 1), ("large", "N1", 1), ("large", "N2", 2)
    ]  # fmt: skip


def test_the_chance_of_a_mean_rank_correlation_is_that_of_all_orders():
    from itertools import permutations

    from scipy.stats import spearmanr

    from dp2osr.reproduce.prediction import Predicted, mean_within

    gains, changes = [(3.0, 1.0, 2.0), (1.0, 2.0, 3.0)], [(0.5, 0.1, 0.9), (0.1, 0.3, 0.2)]
    sweeps = [
        [Predicted("", 4, 1, gain, change, 0, 0) for gain, change in zip(*of_model, strict=True)]
        for of_model in zip(gains, changes, strict=True)
    ]
    each = [[spearmanr(order, change).statistic for order in permutations(gain)] for gain, change in zip(gains, changes, strict=True)]
    measured = sum(spearmanr(gain, change).statistic for gain, change in zip(gains, changes, strict=True)) / 2
    all_orders = [(first + second) / 2 for first in each[0] for second in each[1]]
    expected = sum(value >= measured - 1e-9 for value in all_orders) / len(all_orders)
    assert mean_within(sweeps) == (pytest.approx(measured), pytest.approx(expected, abs=0.02)) and 0.05 < expected < 0.6


@pytest.mark.parametrize("change", [{"train": {"learning_rate": 1e-4}}, {"reward": {"normalise": "rank"}}, {"rounds": 2}])
def test_a_probe_is_compared_with_nothing_but_a_sweep_over_m_and_n(tmp_path, monkeypatch, change):
    from dp2osr.reproduce import prediction

    flags = {"num_candidates": 4, "top_n": 1}
    arms = {"a": {"at": 1, "train": flags}, "b": {"at": 2} | change | {"train": flags | {"top_n": 2} | change.get("train", {})}}
    path = experiment(tmp_path, arms=arms)
    monkeypatch.setattr(sys, "argv", ["predict_nm.py", "--experiment", str(path), "--output_dir", str(tmp_path / "out")])
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="differ in more than M and N"):
        prediction.run_prediction("")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample": "slow"}, "'sample' must be a number"),
        ({"processes": 0}, "'processes' must be"),
        ({"images": 3}, "'images' must be lines"),
        ({"images": {"data/lr": "many"}}, "'images' must be lines"),
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


def test_settings_of_a_run_tell_what_it_was(finished):
    path, output, _ = finished
    settings = json.loads((output / "own" / "small" / "settings.json").read_text(encoding="utf-8"))
    tested = Path(settings["runs"]["ranks-1"]).parent
    run = output / "trainings" / json.loads((tested / "settings.json").read_text())["training"]
    assert yaml.safe_load((run / "reward.yaml").read_text())["normalise"] == "rank"
    assert json.loads((run / "settings.json").read_text())["train"]["settings"]["top_n"] == 1
    assert settings["arms"]["ranks"]["seeds"] == [1] and settings["arms"]["ranks"]["rounds"] == 2
