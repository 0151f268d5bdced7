"""What is said of a reward, against loops over its definition; the page and the table that say it."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, assert_one_clear_line, one_kind, run_program, save_noise
from scipy.stats import spearmanr

from dp2osr.errors import UserError
from dp2osr.evaluation import reward_inspection as inspection_module
from dp2osr.evaluation.reward_inspection import find_outliers, finite_groups, inspect_rewards, sentences
from dp2osr.rewards.config import MetricSpec, RewardConfig
from dp2osr.rewards.reward import hybrid_reward
from dp2osr.rewards.table import ScoreTable, read_scores

CONFIG = RewardConfig("r", [MetricSpec("a"), MetricSpec("b")], [MetricSpec("c"), MetricSpec("d")])
LOWER_BETTER = {"a": True, "b": False, "c": False, "d": True, "x": False}
TOP_N = 3


@pytest.fixture(scope="module")
def table():
    """Six groups of twelve: a and b agree, c pulls against both, d is noise, x is outside the reward."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(6, 12))
    draw = lambda scale: scale * rng.normal(size=truth.shape)  # noqa: E731
    scores = {"x": truth + draw(0.1), "a": -(truth + draw(0.3)), "b": truth + draw(0.3), "c": -truth + draw(1.0), "d": draw(1.0)}
    scores["d"][2] = 7.0
    gt_scores = {"c": scores["c"].max(axis=1) + 1, "d": np.median(scores["d"], axis=1)}
    return ScoreTable([f"image{index}" for index in range(6)], scores, gt_scores, LOWER_BETTER)


@pytest.fixture(scope="module")
def inspection(table):
    return inspect_rewards(table, CONFIG, TOP_N)


def aligned(table, name):
    return -table.scores[name] if LOWER_BETTER[name] else table.scores[name]


def test_correlations_equal_scipys_group_by_group(table, inspection):
    assert inspection.names == ["a", "b", "c", "d", "x"]
    for first in inspection.names:
        for second in inspection.names:
            groups = [row for row in range(6) if "d" not in (first, second) or row != 2]
            expected = np.mean([spearmanr(aligned(table, first)[row], aligned(table, second)[row]).statistic for row in groups])
            assert inspection.of(first, second) == pytest.approx(expected)
    assert inspection.between_halves() == pytest.approx(np.mean([inspection.of(fr, nr) for fr in "ab" for nr in "cd"]))


def test_shares_of_the_variance_sum_to_one_and_agreement_is_with_the_others(table, inspection):
    rewards = hybrid_reward(table.scores, LOWER_BETTER, CONFIG)
    others = {name: hybrid_reward(table.scores, LOWER_BETTER, inspection_module.without(CONFIG, name)) for name in inspection.parts}
    for name, part in inspection.parts.items():
        covariances = [np.cov(part[row], rewards[row], bias=True)[0, 1] / rewards[row].var() for row in range(6)]
        assert inspection.shares[name] == pytest.approx(np.mean(covariances))
        rows = [row for row in range(6) if np.ptp(part[row]) > 0]
        expected = np.mean([spearmanr(aligned(table, name)[row], others[name][row]).statistic for row in rows])
        assert inspection.agreement[name] == pytest.approx(expected)
    assert sum(inspection.shares.values()) == pytest.approx(1)


def test_what_one_metric_alone_decides(table, inspection):
    rewards = hybrid_reward(table.scores, LOWER_BETTER, CONFIG)
    falls_without = {}
    for name in "abcd":
        others = hybrid_reward(table.scores, LOWER_BETTER, inspection_module.without(CONFIG, name))
        brought = 0
        for row in range(6):
            winners = set(np.argsort(-rewards[row])[:TOP_N])
            brought += len(winners - set(np.argsort(-others[row])[:TOP_N]))
            for winner in winners:
                if sum(other <= others[row, winner] for other in others[row]) <= 6:
                    falls_without.setdefault((row, winner), []).append(name)
        assert inspection.decides[name] == pytest.approx(brought / (6 * TOP_N))
    assert falls_without
    for row in range(6):
        for candidate in range(12):
            assert inspection.decided[row, candidate] == " or ".join(falls_without.get((row, candidate), []))


def test_findings_name_the_conflict_the_flat_group_and_the_doubtful_metric(inspection):
    assert {pair[:2] for pair in inspection.conflicts} == {("a", "c"), ("b", "c")}
    assert inspection.flat == {"a": 0, "b": 0, "c": 0, "d": 1, "x": 0}
    assert inspection.gt_beaten["c"] == 0 and 0.3 < inspection.gt_beaten["d"] < 0.6
    text = "\n".join(sentences(replace(inspection, gt_beaten={"c": 0.0, "d": 0.7})))
    for expected in ("conflict: ", "against the rest: c", "prefers most candidates to the GT: d (70%)", "no spread: d in 1 groups"):
        assert expected in text


def test_outliers_are_the_furthest_of_their_group_on_the_scale_of_the_rest():
    values = np.random.default_rng(1).normal(size=(3, 20))
    values[1, 4], values[1, 5] = 30.0, -12.0
    [outlier] = find_outliers(["p", "q", "r"], {"m": values, "n": np.zeros((3, 20))})
    median = np.median(values[1])
    expected = (30 - median) / (1.4826 * np.median(np.abs(values[1] - median)))
    assert (outlier.image_id, outlier.candidate, outlier.metric) == ("q", 4, "m") and outlier.deviation == pytest.approx(expected)


def test_what_is_not_finite_is_left_out_as_training_leaves_it_out(table):
    scores = {name: values.copy() for name, values in table.scores.items()}
    scores["a"][4, 1], scores["x"][0, 2] = np.inf, np.nan
    kept, left_out, odd = finite_groups(replace(table, scores=scores), CONFIG)
    assert left_out == ["image4"] and odd == ["x"] and list(kept.scores) == ["a", "b", "c", "d"]
    assert len(kept.image_ids) == 5 and kept.scores["a"].shape == (5, 12) and kept.gt_scores["c"].shape == (5,)
    with pytest.raises(UserError, match="needs metric 'y'"):
        finite_groups(table, RewardConfig("r", [MetricSpec("y")], []))


def test_a_metric_without_weight_still_has_its_agreement(table):
    aware = inspect_rewards(table, replace(CONFIG, conflict_aware=True), TOP_N)
    assert aware.shares["c"] == 0 and aware.agreement["c"] < -0.2
    assert "against the rest: c" in "\n".join(sentences(aware))
    [alone] = inspect_rewards(table, RewardConfig("one", [MetricSpec("a")], []), TOP_N).agreement.values()
    assert np.isnan(alone)


# --- maps ------------------------------------------------------------------------------------------------------------


def test_maps_are_of_the_metrics_that_they_are_named_after():
    import pyiqa

    from dp2osr.rewards.maps import gmsd_map, ssim_map

    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(1, 3, 48, 40, generator=generator)
    images = (gt + 0.1 * torch.randn(2, 3, 48, 40, generator=generator)).clamp(0, 1)
    similarity = 1 - gmsd_map(images, gt)
    gmsd, ssim = (pyiqa.create_metric(name, device="cpu") for name in ("gmsd", "ssim"))
    np.testing.assert_allclose(similarity.flatten(1).std(dim=1), gmsd(images, gt.expand_as(images)), atol=1e-6)
    np.testing.assert_allclose(1 - ssim_map(images, gt).mean(dim=(1, 2)), ssim(images, gt.expand_as(images)), atol=1e-5)


def test_a_map_shows_where_the_damage_is():
    from bench.random_metrics import random_weights
    from dp2osr.rewards.building import quiet_imports
    from dp2osr.rewards.maps import spatial_maps
    from dp2osr.rewards.metrics import MetricSuite

    with random_weights(), quiet_imports():
        suite = MetricSuite([MetricSpec(name) for name in ("lpips", "dists", "topiq_fr", "gmsd", "fsim")])
    gt = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = torch.stack([gt, gt])
    images[1, :, 40:60, 4:24] = 0.5
    score = suite.score(images, gt)
    maps = spatial_maps(suite, images, gt)
    assert set(maps) == {"lpips", "dists", "topiq_fr", "gmsd", "ssim"}
    for name, (clean, damaged) in maps.items():
        assert clean.shape == damaged.shape == (64, 64)
        assert damaged[40:60, 4:24].mean() > 2 * damaged[:30, 34:].mean() + 10 * clean.mean(), name
    again = suite.score(images, gt)
    assert all(np.array_equal(score[name], again[name]) for name in score)  # the maps leave the metrics as they were


# --- page ------------------------------------------------------------------------------------------------------------


@one_kind
def test_the_program_writes_a_page_and_a_table(kind, labelled, tmp_path):
    config = labelled / "reward.yaml"
    words = ["--candidates_dir", labelled, "--reward_config", config, "--gt_path", ROOT / "preset/train/gt", "--top_n", 2]
    done = run_program("scripts/inspect_rewards.py", *words, "--output_dir", tmp_path / "out", "--max_groups_in_report", 2)
    assert "drives the reward most" in done.stdout and sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "correlation.csv",
        "rewards.html",
        "rewards.parquet",
    ]
    page = (tmp_path / "out/rewards.html").read_text(encoding="utf-8")
    assert "http" not in re.sub(r"data:image/[^\"]*", "", page).replace("http-equiv", "") and page.count('<section class="panel">') >= 2
    for expected in ("Do the metrics agree?", "What each metric does", "ssim", "gmsd ↓", "GT"):
        assert expected in page
    table = pq.read_table(tmp_path / "out/rewards.parquet")
    rows = table.to_pandas()
    assert len(rows) == 18 and (rows.groupby("image_id").chosen.value_counts() == 2).all()
    np.testing.assert_allclose(rows.reward, rows.part_gmsd + rows.part_piqe)
    assert (rows.groupby("image_id").reward.idxmax() == rows.index[rows["rank"] == 1]).all()
    assert json.loads(table.schema.metadata[b"dp2osr"])["top_n"] == 2
    head, *lines = (tmp_path / "out/correlation.csv").read_text(encoding="utf-8").splitlines()
    matrix = {line.split(",")[0]: dict(zip(head.split(",")[1:], map(float, line.split(",")[1:]), strict=True)) for line in lines}
    scores = read_scores(labelled / "scores.parquet").scores
    by_hand = np.mean([spearmanr(gmsd, piqe).statistic for gmsd, piqe in zip(scores["gmsd"], scores["piqe"], strict=True)])
    assert matrix["gmsd"]["piqe"] == pytest.approx(by_hand, abs=1e-4) and matrix["piqe"]["piqe"] == 1


@one_kind
def test_a_users_mistakes_are_one_line(kind, labelled, tmp_path):
    words = ["scripts/inspect_rewards.py", "--candidates_dir", labelled, "--output_dir", tmp_path / "out"]
    config = ["--reward_config", labelled / "reward.yaml"]
    assert_one_clear_line(run_program(*words, check=False), "of the reward 'default'", "or with --reward_config embedded")
    ignored = run_program(*words, *config, "--num_crops", 4, check=False)
    assert_one_clear_line(ignored, "--num_crops: would do nothing without --validation_image_path")
    assert_one_clear_line(run_program(*words, *config, "--top_n", 4, check=False), "--top_n 4", "between 1 and 3")
    assert_one_clear_line(run_program(*words, *config, "--gt_path", ROOT / "preset/test/gt", check=False), "no GT for")
    assert not (tmp_path / "out").exists()
    small = tmp_path / "small"
    small.mkdir()
    for path in (labelled / "groups").iterdir():
        save_noise(small / f"{path.name}.png", (64, 64))
    assert_one_clear_line(run_program(*words, *config, "--gt_path", small, check=False), "GT is 64 x 64, its candidates are 128 x 128")
    assert not (tmp_path / "out/rewards.html").exists()
