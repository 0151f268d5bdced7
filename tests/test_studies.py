"""Studies: one sweep on models of several capacities, and a probe before a sweep."""

import csv
import json
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from fabricated import write_method
from safetensors.torch import load_file
from scipy.stats import spearmanr
from small_experiment import experiment

from dp2osr.errors import UserError
from dp2osr.experiments import run
from dp2osr.experiments.plan import plan_experiment
from dp2osr.experiments.spec import load_experiment
from dp2osr.stats import Estimate
from studies import capacity, predict_nm
from studies.capacity import Point, best_places, capacity_markdown, line_folder, load_capacity, slope, trained_parameters
from studies.predict_nm import Predicted, mean_within


def test_a_sweep_of_capacities_has_each_model_in_every_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiments = load_capacity("capacity", "tiny")
    suffixes = {
        "C-tiny-SD2, 8 channels": "sd2-8",
        "C-tiny-SD2, 16 channels": "sd2-16",
        "C-tiny-SD2, 32 channels": "sd2",
        "C-tiny-FLUX": "flux",
    }
    plans = {key: plan_experiment(experiment, tmp_path, tmp_path / line_folder(*key)) for key, experiment in experiments.items()}
    for (model, _), plan in plans.items():
        plan.check_flags()
        plan.check_inputs(tmp_path)
        models = {(step.flags["pretrained_model_name_or_path"], step.flags["controlnet_model_name_or_path"]) for step in plan.steps()
                  if step.trains or step.folder.parent.name in ("candidates", "held_out") and step.name == "sample"}  # fmt: skip
        assert models == {(f"preset/models/tiny-{suffixes[model]}", f"preset/models/c-tiny-{suffixes[model]}")}
        [sampled] = {steps[0].flags["num_candidates"] for steps in plan.shared}
        assert sampled == (64 if model == "C-tiny-SD2, 32 channels" else 16)
    sweep = plan_experiment(load_experiment("fig4", "tiny"), tmp_path, tmp_path)  # the preset's model has its candidates in common
    preset = plans["C-tiny-SD2, 32 channels", "rate 1e-4"]
    assert preset.shared[0][0].folder == sweep.shared[0][0].folder and preset.held_out["base"] == sweep.held_out["base"]
    assert "N1_5x-0" not in preset.held_out and "N1-1" not in plans["C-tiny-FLUX", "rate 1e-4"].held_out
    sizes = [trained_parameters(experiment) for experiment in experiments.values()]
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
        ({"models": {"a": {"stages": [3]}, "b": {"stages": [3]}}}, "'stages' must be text|'stages' must be a path"),
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


def test_models_are_swept_one_after_the_other_and_compared(tmp_path, monkeypatch, capsys):
    """The same model by three names, on candidates that are there."""
    path = experiment(tmp_path, seeds=[0])
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    stages, output = content.pop("stages"), tmp_path / "out"
    content["models"] = {name: {"stages": stages} for name in ("one", "two", "three")}
    content["arms"] = {"better": {"at": 0.5}, "best": {"at": 0.25}}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    for place, (name, shift) in enumerate({"base": 0.0, "better-0": 0.5, "best-0": 1.5}.items()):
        write_method(tmp_path / name, shift, seed=place)
    for experiment_, folder in [(of, output / "own/small" / line_folder(*key)) for key, of in load_capacity(path, "tiny").items()]:
        for name, candidates in plan_experiment(experiment_, output, folder).held_out.items():
            candidates.parent.mkdir(parents=True, exist_ok=True)
            if not candidates.exists():
                candidates.symlink_to(tmp_path / name)
    monkeypatch.setattr(run, "run_plan", lambda plan, jobs: None)
    monkeypatch.setattr(sys, "argv", ["capacity.py", "--experiment", str(path), "--output_dir", str(output), "--bootstrap", "200"])
    monkeypatch.chdir(ROOT)
    capacity.main()
    rows = list(csv.DictReader((output / "own/small/capacity.csv").open(encoding="utf-8")))
    alone = list(csv.DictReader((output / "own/small/two/results.csv").open(encoding="utf-8")))
    changes = [float(row["change"]) for row in alone if row["metric"] == "reward"]
    assert [row["model"] for row in rows] == ["one"] * 2 + ["two"] * 2 + ["three"] * 2 and changes[1] > changes[0] > 0
    assert [float(row["change"]) for row in rows] == pytest.approx(changes * 3, rel=1e-4)
    said = capsys.readouterr().out
    table = [line for line in said.splitlines() if line.startswith(("| one |", "| two |", "| three |"))]
    assert len(table) == 3 and all("| 1/4 (" in line for line in table) and "doubling" not in said  # models of one size have no slope
    assert (output / "own/small/capacity.png").stat().st_size > 1000


def test_a_probe_is_compared_with_the_sweep_that_was_run(tmp_path, monkeypatch, capsys):
    arms = {
        f"M{size}_N{top}": {"at": top / size, "train": {"num_candidates": size, "top_n": top}} for size, top in ((4, 1), (4, 2), (2, 1))
    }
    path = experiment(tmp_path, arms=arms)
    words = ["predict_nm.py", "--experiment", str(path), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="own/small/results.csv: is missing; run scripts/reproduce.py small first"):
        predict_nm.main()
    results = tmp_path / "out/own/small/results.csv"
    results.parent.mkdir(parents=True)
    lines = ["arm,metric,change,low,high", "M4_N1,reward,0.5,0.4,0.6", "M4_N1,psnr,9,9,9", "M4_N2,reward,0.7,0.6,0.8"]
    results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no results of M2_N1"):
        predict_nm.main()
    results.write_text("\n".join([*lines, "M2_N1,reward,-0.2,-0.3,-0.1"]) + "\n", encoding="utf-8")
    ran = []

    def run_alone(steps):
        step = steps[-1]
        ran.append(step.flags)
        records = [{"M": 4, "N": 1, "gain": 3.0}, {"M": 4, "N": 2, "gain": 2.0}, {"M": 2, "N": 1, "gain": 1.0}]
        both = {"photographs": ["a", "b"]}
        records = [record | both | {"by_group": [record["gain"], record["gain"] + 0.1]} for record in records]
        step.output.parent.mkdir(parents=True)
        step.output.write_text(json.dumps(records), encoding="utf-8")

    monkeypatch.setattr(predict_nm, "run_alone", run_alone)
    predict_nm.main()
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
    with pytest.raises(UserError, match="small_usual/results.csv: is missing; run studies/capacity.py first"):
        predict_nm.main()
    folder, gains = tmp_path / "out/own/small", {"tiny-sd2-8": (2.0, 1.0), "tiny-sd2": (1.0, 2.0)}
    for model in ("small", "large"):
        (folder / f"{model}_usual").mkdir(parents=True)
        lines = ["arm,metric,change,low,high", "N1,reward,0.5,0.4,0.6", "N2,reward,0.7,0.6,0.8"]
        (folder / f"{model}_usual/results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run_alone(steps):
        step = steps[-1]
        assert step.flags["learning_rate"] == 1e-3  # the first line's, not the fast one's
        records = [
            {"M": 4, "N": top, "gain": gain, "photographs": ["a", "b"], "by_group": [gain, gain]}
            for top, gain in zip((1, 2), gains[Path(step.flags["pretrained_model_name_or_path"]).name], strict=True)
        ]
        step.output.parent.mkdir(parents=True)
        step.output.write_text(json.dumps(records), encoding="utf-8")

    monkeypatch.setattr(predict_nm, "run_alone", run_alone)
    predict_nm.main()
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
    flags = {"num_candidates": 4, "top_n": 1}
    arms = {"a": {"at": 1, "train": flags}, "b": {"at": 2} | change | {"train": flags | {"top_n": 2} | change.get("train", {})}}
    path = experiment(tmp_path, arms=arms)
    monkeypatch.setattr(sys, "argv", ["predict_nm.py", "--experiment", str(path), "--output_dir", str(tmp_path / "out")])
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="differ in more than M and N"):
        predict_nm.main()
