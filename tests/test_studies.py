"""A study: what a probe before a sweep says of it."""

import csv
import json
import re
import sys

import pytest
from conftest import KINDS, ROOT
from small_experiment import experiment

from dp2osr.errors import UserError
from studies import cheap_candidates, frontier, predict_nm, solver_errors


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


@pytest.mark.parametrize("change", [{"train": {"learning_rate": 1e-4}}, {"reward": {"normalise": "rank"}}, {"rounds": 2}])
def test_a_probe_is_compared_with_nothing_but_a_sweep_over_m_and_n(tmp_path, monkeypatch, change):
    flags = {"num_candidates": 4, "top_n": 1}
    arms = {"a": {"at": 1, "train": flags}, "b": {"at": 2} | change | {"train": flags | {"top_n": 2} | change.get("train", {})}}
    path = experiment(tmp_path, arms=arms)
    monkeypatch.setattr(sys, "argv", ["predict_nm.py", "--experiment", str(path), "--output_dir", str(tmp_path / "out")])
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="differ in more than M and N"):
        predict_nm.main()


def test_candidates_beside_themselves_have_the_same_order_level_spread_and_errors(labelled, monkeypatch, capsys):
    words = ["cheap_candidates.py", "--candidates", f"dear={labelled}", f"cheap={labelled}", "--num_candidates", "4", "--top_n", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--reward_config", str(labelled / "reward.yaml")])
    monkeypatch.chdir(ROOT)
    cheap_candidates.main()
    said = capsys.readouterr().out.splitlines()
    (beside,) = [line for line in said if line.startswith("| cheap | 1.00")]
    assert re.sub(r" \[.*?\]", "", beside) == "| cheap | 1.00 | +0.00 | 1.00 |"
    dear, cheap = (
        [line.removeprefix(f"| {name} |") for line in said if re.match(rf"\| {name} \| (winners|losers)", line)]
        for name in ("dear", "cheap")
    )
    assert len(dear) == 2 and dear == cheap and all(line.count("(1.00)") == 5 for line in dear) and dear[0] != dear[1]


def test_the_frontier_is_what_no_cheaper_arm_gains_as_much_as(tmp_path, monkeypatch, capsys):
    assert frontier.frontier([(1, 0.5), (2, 0.4), (3, 0.6), (4, 0.6)]) == [(1, 0.5), (3, 0.6)]
    arms = {name: {"at": at} for name, at in (("dear", 1), ("cheap", 0.3), ("harmful", 0.6))}
    path = experiment(tmp_path, arms=arms)
    results = tmp_path / "results.csv"
    results.write_text("arm,metric,change,low,high\ndear,reward,0.5,0.4,0.6\ncheap,reward,0.45,0.2,0.7\n", encoding="utf-8")
    words = ["frontier.py", "--experiment", str(path), "--results", str(results), "--output", str(tmp_path / "frontier.png")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(UserError, match="results.csv: has no results of harmful"):
        frontier.main()
    with results.open("a", encoding="utf-8") as file:
        file.write("harmful,reward,0.1,0,0.2\n")
    frontier.main()
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in said] == ["cheap", "harmful", "dear"] and ["on the frontier" in line for line in said] == [
        True,
        False,
        True,
    ]
    assert (tmp_path / "frontier.png").stat().st_size > 1000


def test_samples_of_more_steps_lie_nearer_to_those_of_many_and_the_reference_itself_at_zero(lr_folder, monkeypatch, capsys):
    kind = KINDS["flux"]
    words = ["--model", kind.model, "--controlnet", kind.controlnet, "--lr_path", str(lr_folder), "--max_images", "2"]
    many = "num_inference_steps 12 scheduler flow_dpm"
    monkeypatch.setattr(sys, "argv", ["solver_errors.py", *words, "--reference", many, "--set", "num_inference_steps 2", "steps 6", many])
    with pytest.raises(SystemExit):  # a flag that there is not
        solver_errors.main()
    sets = ["num_inference_steps 2", "num_inference_steps 6", many]
    monkeypatch.setattr(sys, "argv", ["solver_errors.py", *words, "--reference", many, "--set", *sets])
    capsys.readouterr()
    solver_errors.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [f"| `--{text.replace(' scheduler', ' --scheduler')}`" for text in sets]
    errors = [float(row[1]) for row in rows]
    assert errors[0] > errors[1] > errors[2] == 0
