"""Experiments from their YAML to tables: the numbers against plain loops, what is run again, what a failure and a kill leave."""

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
import yaml
from conftest import ROOT, assert_one_clear_line
from PIL import Image
from small_experiment import experiment, reproduce

from dp2osr import stats
from dp2osr.errors import UserError
from dp2osr.experiments import run, steps
from dp2osr.experiments.plan import plan_experiment
from dp2osr.experiments.spec import load_experiment
from dp2osr.experiments.steps import last_line
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.table import read_scores


def held_out(path, output):
    """{name: candidate folder} of an experiment of one's own that was run to `output`."""
    return plan_experiment(load_experiment(path, "tiny"), output, output / "own/small").held_out


# ---------------------------------------------------------------- statistics


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
    done = reproduce("aggregation", *flags)
    return path, output, done.stdout


@pytest.mark.slow
def test_an_experiment_ends_with_tables_that_equal_loops_over_the_scores(finished):
    path, output, printed = finished
    rows = list(csv.DictReader((output / "own" / "small" / "results.csv").open(encoding="utf-8")))
    scores = {name: read_scores(folder / "scores.parquet") for name, folder in held_out(path, output).items()}
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
    config = load_reward_config(load_experiment(path, "tiny").evaluated_by)
    tables = {name: read_scores(folder / "scores.parquet").scores for name, folder in held_out(path, output).items()}
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
    before = {file: file.stat().st_mtime_ns for file in output.glob("**/*.parquet")}
    started = time.time()
    again = reproduce("aggregation", "--experiment", path, "--output_dir", output, "--bootstrap", "200")
    logs = [file for file in output.glob("**/log.txt") if file.stat().st_mtime > started]
    assert len(before) == 6 and before == {file: file.stat().st_mtime_ns for file in before} and not logs
    assert "3 trainings, 0 of them missing" in again.stdout
    assert again.stdout[again.stdout.index("# A small one") :] == printed[printed.index("# A small one") :]


def test_folders_say_what_was_run_and_with_which_settings(finished):
    path, output, _ = finished
    settings = json.loads((output / "own/small/settings.json").read_text(encoding="utf-8"))
    training = output / "own/small/ranks-1"
    assert Path(settings["runs"]["ranks-1"]) == training / "held_out/candidates"
    assert yaml.safe_load((training / "reward.yaml").read_text())["normalise"] == "rank"
    assert yaml.safe_load((training / "train.yaml").read_text())["top_n"] == 1
    assert settings["arms"]["ranks"]["seeds"] == [1] and settings["arms"]["ranks"]["rounds"] == 2


def test_a_program_that_fails_is_named_and_the_others_go_on_and_a_changed_setting_is_refused_by_the_program(tmp_path, finished):
    diverges = {"at": 1, "seeds": [0], "train": {"learning_rate": 1.0, "max_train_steps": 40, "beta": 1e30}}
    path = experiment(tmp_path, arms={"plain": diverges, "usual": {"at": 2, "seeds": [0]}})
    words = ["aggregation", "--experiment", path, "--output_dir", tmp_path / "out"]
    done = reproduce(*words, "--jobs", "2", check=False)
    assert_one_clear_line(done, "1 of 3 runs failed", "train_sd2_dpo.py stopped", "no finite loss", "log.txt")
    told = reproduce(*words, "--plan").stdout
    assert "2 trainings, 1 of them missing" in told and "held-out candidates of 1 models" in told  # the others went on to their end
    path = experiment(tmp_path, arms={"usual": {"at": 2, "seeds": [0], "train": {"beta": 7}}})
    done = reproduce(*words, check=False)
    assert_one_clear_line(
        done, "beta is 5000.0 there and 7.0 here", f"move {tmp_path}/out/own/small/usual-0 away or give another --output_dir"
    )


def test_a_killed_experiment_leaves_no_program_behind(tmp_path):
    path = experiment(tmp_path)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "scripts/reproduce.py", "aggregation", "--experiment", str(path), "--output_dir", str(tmp_path / "out")]
    parent = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child = wait_for(lambda: running_under(tmp_path))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert child and wait_for(lambda: not running_under(tmp_path)), running_under(tmp_path)
    finally:
        parent.kill()
    assert not list((tmp_path / "out").glob("*/*/sample.yaml"))


def test_programs_that_share_no_work_are_one_process(monkeypatch):
    started = []
    monkeypatch.setattr(steps.subprocess, "Popen", lambda command, **_: started.append(command))
    for script, jobs in (("gen_candidates.py", 1), ("gen_candidates.py", 2), ("scripts/make_lr_pairs.py", 1)):
        steps.start(script, "x.yaml", jobs)
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


def test_the_last_error_is_that_of_the_last_attempt(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("error: the disk is full\n", encoding="utf-8")
    begun = log.stat().st_size
    log.write_text("error: the disk is full\ntrain: 3%\rtrain: 5%\n\n", encoding="utf-8")
    assert last_line(log) == "the disk is full" and last_line(log, begun) == "train: 5%"


def test_an_experiment_that_fails_does_not_keep_the_next_from_running(tmp_path, monkeypatch):
    ran, found = [], load_experiment(experiment(tmp_path), "tiny")

    def run_plan(plan, jobs):
        ran.append(plan.experiment.name)
        if len(ran) == 1:
            raise UserError("it diverged")

    monkeypatch.setattr(run, "run_plan", run_plan)
    monkeypatch.setattr(run, "write_results", lambda plan, *_: ran.append(f"results of {plan.experiment.name}"))
    monkeypatch.chdir(ROOT)
    args = SimpleNamespace(output_dir=str(tmp_path / "out"), plan=False, jobs=1, bootstrap=10)
    with pytest.raises(UserError, match="^first: it diverged$"):
        run.run_experiments(args, {tmp_path / "out" / name: replace(found, name=name) for name in ("first", "second")})
    assert ran == ["first", "second", "results of second"]


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
    for group in (held_out(finished[0], finished[1])["base"] / "groups").iterdir():
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
    done = reproduce("fig1b", "--experiment", path, "--output_dir", output, "--bootstrap", "200")
    return path, output, done.stdout


@pytest.mark.slow
def test_a_training_is_looked_at_where_it_was_and_run_once(watched, finished):
    path, output, printed = watched
    folders = held_out(path, output)
    assert list(folders) == ["base", "ours@1-0", "ours@2-0"]
    assert len(list(output.glob("**/train.yaml"))) == 1
    scores = {name: read_scores(folder / "scores.parquet").scores["gmsd"] for name, folder in folders.items()}
    assert not np.array_equal(scores["ours@1-0"], scores["ours@2-0"])
    plain = held_out(*finished[:2])["plain-0"]  # the same two steps, its policy at the end
    assert np.array_equal(scores["ours@2-0"], read_scores(plain / "scores.parquet").scores["gmsd"])
    assert (output / "own/small/axis.png").stat().st_size > 1000
    with Image.open(output / "own/small/pictures.png") as sheet:  # LR, bicubic, base, two looks, GT, enlarged twice; two images
        assert sheet.size[0] > 6 * 256 and 2 * 256 < sheet.size[1] < 3 * 256


def test_other_methods_stand_beside_it_without_a_part_in_the_scale(watched):
    path, output, _ = watched
    rows = {(row["arm"], row["metric"]): row for row in csv.DictReader((output / "own/small/results.csv").open(encoding="utf-8"))}
    for metric in ("reward", "psnr", "gmsd", "ssim"):
        assert float(rows["SeeSR", metric]["change"]) == pytest.approx(float(rows["bicubic", metric]["change"]), rel=1e-5)
        assert float(rows["other", metric]["change"]) == pytest.approx(0, abs=1e-5)  # the base itself
    scores = {name: read_scores(folder / "scores.parquet").scores for name, folder in held_out(path, output).items()}
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


def test_a_plan_tells_hours_and_disk_by_what_a_candidate_costs(watched):
    path, output, printed = watched
    # 3 images x 4 to sample and score; 2 steps of 2 groups of 4; held out for the base, which the rival is too, and two looks
    seconds = 12 * 3 + 2 * 2 * 4 * 3 + 3 * 12 * 3 + 100 * (2 + 1 + 3 * 2)  # and as many programs
    size = 12 + 1 + 2 * 5 + 3 * 12
    assert f"about {seconds / 2 / 3600:.2g} hours and {size} GB on an abacus" in printed
    again = reproduce("fig1b", "--experiment", path, "--output_dir", output, "--plan").stdout
    assert "1 trainings, 0 of them missing" in again and "hours" not in again
