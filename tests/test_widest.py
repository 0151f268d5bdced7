"""Adaptive M: the groups whose rewards spread most go on, their first candidates kept."""

import csv
import json
from statistics import pstdev

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_one_clear_line, one_kind, run_program, write_made_up_scores

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.preference.settings import WidestSettings
from dp2osr.preference.widest import group_spreads, keep_widest
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.store import CandidateStore


def sample(kind, images, folder, count, *more):
    words = ["--image_path", images, "--output_dir", folder, "--num_candidates", count, "--num_inference_steps", 2]
    return run_program("gen_candidates.py", *kind.model_flags, "--prompt_source", "none", *words, "--guidance_scale", 1, *more)


def widest(first, out, *more):
    words = ["--candidates_dir", first, "--image_path", ROOT / "preset/train/lr", "--reward_config", first / "reward.yaml"]
    return keep_widest(parse(WidestSettings, [*words, "--output_dir", out, *more]))


@pytest.fixture
def first(kind, lr_folder, tmp_path):
    """Two scored candidates of each of three images."""
    folder = tmp_path / "first"
    sample(kind, lr_folder, folder, 2)
    write_made_up_scores(folder)
    return folder


def spreads_by_hand(folder):
    """The reward's spread of each group, in plain numbers: gmsd and piqe with half the weight each, lower is better."""
    table = read_scores(folder / "scores.parquet")
    scale = {name: pstdev(values.ravel().tolist()) for name, values in table.scores.items()}
    rows = {image_id: zip(*(table.scores[name][row] / scale[name] for name in scale)) for row, image_id in enumerate(table.image_ids)}
    return {image_id: pstdev([-(a + b) / 2 for a, b in pairs]) for image_id, pairs in rows.items()}


def test_the_widest_groups_go_on_as_if_they_had_been_sampled_at_once(kind, first, lr_folder, tmp_path, capsys):
    out, expected = tmp_path / "out", spreads_by_hand(first)
    widest(first, out, "--share", 0.6)
    kept = sorted(expected, key=expected.get)[1:]
    assert CandidateStore(out).ids() == sorted(kept) and "2 of 3 groups" in capsys.readouterr().out
    with open(out / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(out / row["file"]).stem for row in rows] == [row["id"] for row in rows] == kept[::-1]
    assert [float(row["spread"]) for row in rows] == pytest.approx([expected[image_id] for image_id in kept[::-1]], abs=1e-6)
    (tmp_path / "direct").mkdir()
    sample(kind, out / "images.csv", out, 4)
    sample(kind, lr_folder, tmp_path / "direct", 4)
    direct, adaptive = CandidateStore(tmp_path / "direct"), CandidateStore(out)
    for image_id in kept:
        assert torch.equal(adaptive.read(image_id).latents[:2], CandidateStore(first).read(image_id).latents)
        assert torch.allclose(adaptive.read(image_id).latents.float(), direct.read(image_id).latents.float(), atol=5e-3)
    widest(first, out, "--share", 0.6)  # again, after they were sampled on
    assert len(CandidateStore(out).read(kept[0]).seeds) == 4 and CandidateStore(out).settings["num_candidates"] == 4


@one_kind
def test_images_of_sub_folders_keep_their_ids(kind, lr_folder, tmp_path):
    below = tmp_path / "lr/below"
    below.mkdir(parents=True)
    for path in lr_folder.iterdir():
        (below / path.name).write_bytes(path.read_bytes())
    sample(kind, tmp_path / "lr", tmp_path / "first", 2, "--recursive")
    write_made_up_scores(tmp_path / "first")
    widest(tmp_path / "first", tmp_path / "out", "--image_path", tmp_path / "lr")
    [kept] = CandidateStore(tmp_path / "out").ids()
    sample(kind, tmp_path / "out/images.csv", tmp_path / "out", 3)
    assert kept.startswith("below__") and CandidateStore(tmp_path / "out").ids() == [kept]
    assert len(CandidateStore(tmp_path / "out").read(kept).seeds) == 3


def test_the_spread_is_on_one_scale_for_all_groups():
    config = load_reward_config("embedded")
    rng = np.random.default_rng(0)
    scores = {spec.name: rng.normal(size=(4, 6)) * np.array([[1], [2], [4], [8]]) for spec in config.metrics}
    directions = dict.fromkeys(scores, False)
    spreads = group_spreads(scores, directions, config)
    assert (np.diff(spreads) > 0).all()
    moved = {name: 1000 * values + 7 for name, values in scores.items()}
    assert group_spreads(moved, directions, config) == pytest.approx(spreads)
    constant = {**scores, "piqe": np.full((4, 6), 3.0)}
    assert np.isfinite(group_spreads(constant, directions, config)).all()


@one_kind
@pytest.mark.parametrize("more, mentions", [(["--num_candidates", 3], "only 2"), (["--num_candidates", 1], "has no spread")])
def test_candidates_that_are_not_scored_or_too_few_are_refused(kind, first, tmp_path, more, mentions):
    with pytest.raises(UserError, match=mentions):
        widest(first, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


@one_kind
def test_a_folder_with_another_choice_is_left_as_it_is(kind, first, tmp_path):
    out = tmp_path / "out"
    widest(first, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="another choice"):
        widest(first, out, "--share", 1)
    settings = json.loads((first / "settings.json").read_text())
    (first / "settings.json").write_text(json.dumps(settings | {"seed": 5}))
    with pytest.raises(UserError, match="other settings.*seed"):
        widest(first, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@one_kind
def test_lr_images_that_are_not_there_and_a_folder_into_itself_are_one_clear_line(kind, first, tmp_path):
    (tmp_path / "lr").mkdir()
    (tmp_path / "lr/other.png").write_bytes((ROOT / "preset/train/lr").glob("*.png").__next__().read_bytes())
    words = ["--candidates_dir", first, "--reward_config", first / "reward.yaml"]
    program = "scripts/widest_groups.py"
    assert_one_clear_line(
        run_program(program, *words, "--image_path", tmp_path / "lr", "--output_dir", tmp_path / "out", check=False),
        "has no LR image of", "sampled from",
    )  # fmt: skip
    assert not (tmp_path / "out").exists()
    itself = run_program(program, *words, "--image_path", ROOT / "preset/train/lr", "--output_dir", first, check=False)
    assert_one_clear_line(itself, str(first))
    for share in (0, 1.5, "nan"):
        done = run_program(program, *words, "--image_path", "x", "--output_dir", "y", "--share", share, check=False)
        assert_one_clear_line(done, "above 0 and at most 1")
