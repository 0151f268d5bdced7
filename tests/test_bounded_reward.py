"""NR scores above the GT's own win nothing more: `nr_bound: gt`, against loops, and on the way from scores to every user of a reward."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from fabricated import CONFIG, IMAGE_IDS, METRICS, raw_scores, write_method, write_table
from labelling import Decoder, gt_path, store  # noqa: F401 - fixtures
from PIL import Image

import dp2osr
from dp2osr.cli import parse
from dp2osr.data.images import pil_to_tensor, read_image
from dp2osr.errors import UserError
from dp2osr.evaluation.candidates import evaluate
from dp2osr.evaluation.methods import load_methods
from dp2osr.evaluation.reward_inspection import finite_groups, inspect_rewards
from dp2osr.preference.groups import PreferenceGroups
from dp2osr.rewards import label as label_module
from dp2osr.rewards.best_of import BestOf
from dp2osr.rewards.chosen import as_dict, from_dict, read_with_reward
from dp2osr.rewards.config import MetricSpec, RewardConfig, load_reward_config
from dp2osr.rewards.label import label_candidates
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.reward import finite_groups_of, hybrid_reward
from dp2osr.rewards.settings import BestOfSettings, LabelSettings
from dp2osr.rewards.table import read_scores

LOWER_BETTER = {"f": False, "up": False, "down": True}
BOUNDED = RewardConfig("b", [MetricSpec("f")], [MetricSpec("up"), MetricSpec("down")], nr_bound="gt", margin={"up": 0.1})


def draw(groups=6, count=9, seed=1):
    rng = np.random.default_rng(seed)
    scores = {name: rng.normal(size=(groups, count)) for name in LOWER_BETTER}
    return scores, {"up": rng.normal(size=groups), "down": rng.normal(size=groups)}


def loop(scores, of_gt, margin):
    """Bird-SR's −relu(GT − s + margin) of an NR metric, then the paper's min-max and mean, a candidate at a time."""
    groups, count = scores["f"].shape
    rewards = np.zeros((groups, count))
    for g in range(groups):
        terms = {}
        for name, lower in LOWER_BETTER.items():
            sign = -1 if lower else 1
            row = [sign * float(value) for value in scores[name][g]]
            if name in of_gt:
                row = [-max(0.0, sign * float(of_gt[name][g]) - value + margin.get(name, 0.0)) for value in row]
            span = max(row) - min(row)
            terms[name] = [(value - min(row)) / span if span else 0.0 for value in row]
        for m in range(count):
            rewards[g, m] = 0.5 * terms["f"][m] + 0.25 * (terms["up"][m] + terms["down"][m])
    return rewards


def test_the_bounded_reward_equals_bird_sr_s_normalised():
    scores, of_gt = draw()
    of_gt["up"][0] = -99  # all candidates are above: the metric tells none of this group apart
    of_gt["down"][1] = -99  # and lower is better: all are below the GT's quality, and nothing is bounded
    found = hybrid_reward(scores, LOWER_BETTER, BOUNDED, of_gt)
    np.testing.assert_allclose(found, loop(scores, of_gt, {"up": 0.1}), rtol=0, atol=1e-12)
    assert abs(found - hybrid_reward(scores, LOWER_BETTER, replace(BOUNDED, nr_bound=None))).max() > 0.05


def test_what_is_above_the_bound_wins_nothing_more():
    scores = {"up": np.array([[0.2, 0.5, 0.9, 3.0]])}
    config = RewardConfig("b", [], [MetricSpec("up")], nr_bound="gt")
    assert hybrid_reward(scores, {"up": False}, config, {"up": np.array([0.5])}).tolist() == [[0, 1, 1, 1]]
    wider = replace(config, margin={"up": 0.4})
    np.testing.assert_allclose(hybrid_reward(scores, {"up": False}, wider, {"up": np.array([0.5])}), [[0, 3 / 7, 1, 1]])
    each = hybrid_reward(scores, {"up": False}, config, {"up": np.array([[9, 0.3, 0.7, 0.4]])})  # a GT of its own for each candidate
    np.testing.assert_allclose(each, [[0, 1, 1, 1]])


def test_scores_of_the_gt_that_are_missing_or_not_finite_are_named():
    scores, of_gt = draw()
    with pytest.raises(UserError, match="'b' is bounded by the GT's own 'up', which was not scored; give the GT"):
        hybrid_reward(scores, LOWER_BETTER, BOUNDED)
    of_gt["down"][2] = np.nan
    with pytest.raises(UserError, match="'down' has no finite score for the GT of group 2"):
        hybrid_reward(scores, LOWER_BETTER, BOUNDED, of_gt)
    assert finite_groups_of(scores, BOUNDED, of_gt).tolist() == [True, True, False, True, True, True]
    assert finite_groups_of(scores, replace(BOUNDED, nr_bound=None), of_gt).all()


def test_the_yaml_says_it_and_the_record_keeps_it(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("fr: [gmsd]\nnr: [piqe, brisque]\nnr_bound: gt\nmargin: {piqe: 2}\n")
    config = load_reward_config(path)
    assert config.bounded == ["piqe", "brisque"] and config.margin == {"piqe": 2.0}
    assert from_dict(as_dict(config)) == config
    assert not {"nr_bound", "margin"} & as_dict(CONFIG).keys()  # records of before these keys stay equal
    for text, problem in {
        "nr: [piqe]\nnr_bound: GT\n": "'nr_bound' must be gt, not 'GT'",
        "fr: [gmsd]\nnr_bound: gt\n": "bounds the metrics under 'nr', and there are none",
        "nr: [piqe]\nmargin: {piqe: 1}\n": "'margin' is of 'nr_bound: gt'",
        "nr: [piqe]\nnr_bound: gt\nmargin: 0.04\n": "must give metrics a number of at least 0, in their own unit, not 0.04",
        "nr: [piqe]\nnr_bound: gt\nmargin: {pique: 1}\n": "'margin' names 'pique'.*did you mean 'piqe'",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=problem):
            load_reward_config(path)


def test_from_label_to_curation_and_inspection(store, gt_path, tmp_path, monkeypatch):
    monkeypatch.setattr(label_module, "LazyDecoder", lambda store, device, batches: Decoder())
    reward = tmp_path / "r.yaml"
    reward.write_text("nr: [piqe]\n")
    words = ["--candidates_dir", store.folder, "--reward_config", reward]
    label_candidates(parse(LabelSettings, words))
    reward.write_text("nr: [piqe]\nnr_bound: gt\nmargin: {piqe: 0.5}\n")
    with pytest.raises(UserError, match="'r': piqe are bounded by the GT's own scores; pass --gt_path"):
        label_candidates(parse(LabelSettings, words))
    with pytest.raises(UserError, match="lacks the GT's own piqe, by which the reward 'r' is bounded; run .*label_rewards.py .*--gt_path"):
        read_with_reward(str(reward), store.folder)
    label_candidates(parse(LabelSettings, [*words, "--gt_path", gt_path]))
    table, config = read_with_reward(None, store.folder, show=None)
    groups = PreferenceGroups(store, table, config, None, 1)
    for g in range(len(groups)):
        row = [-max(0.0, value - table.gt_scores["piqe"][g] + 0.5) for value in table.scores["piqe"][g].tolist()]
        span = max(row) - min(row)
        assert groups.rewards[g] == pytest.approx([(value - min(row)) / span if span else 0.0 for value in row])
    inspection = inspect_rewards(finite_groups(table, config)[0], config, 1)
    np.testing.assert_array_equal(inspection.rewards, groups.rewards)


def test_an_evaluation_bounds_all_methods_alike(tmp_path):
    folders = [f"{name}={write_method(tmp_path / name, shift, seed=seed)}" for seed, (name, shift) in enumerate([("base", 0), ("new", 1)])]
    config = replace(CONFIG, nr_bound="gt")
    methods, _ = load_methods(folders, config, "")
    bicubic = {name: values[:, 0] - 1 for name, values in raw_scores(0, 1, 5).items()}
    found = evaluate(methods, config, bicubic, resamples=10)
    pooled = {name: np.concatenate([method.scores[name] for method in methods], axis=1) for name in METRICS}
    lower_better = {name: entry["lower_better"] for name, entry in METRICS.items()}
    expected = hybrid_reward(pooled, lower_better, config, methods[0].gt_scores)
    np.testing.assert_allclose(np.concatenate([found.rewards["base"], found.rewards["new"]], axis=1), expected, atol=1e-12)
    assert abs(expected - hybrid_reward(pooled, lower_better, CONFIG)).max() > 0.01
    plain = evaluate(methods, CONFIG, bicubic, resamples=10)
    assert (found.parts["bicubic"]["psnr"] == plain.parts["bicubic"]["psnr"]).all()
    assert not np.allclose(found.parts["bicubic"]["piqe"], plain.parts["bicubic"]["piqe"])

    table = read_scores(tmp_path / "base/scores.parquet")
    columns = {name: about for name, about in METRICS.items() if about["mode"] == "FR"}
    write_table(tmp_path / "base", {name: table.scores[name] for name in columns}, IMAGE_IDS, columns)
    with pytest.raises(UserError, match="needs piqe, not in the scores of 'base'"):
        load_methods(folders, config, "")


def test_best_of_and_the_api_score_the_gt_too(tmp_path):
    """A GT that is noise: what is scored worse than it is told apart, what is scored better is not."""
    truth = ROOT / "preset/test/gt/chelsea_00.png"
    clean = Image.open(truth).convert("RGB")
    noise = np.random.default_rng(0).normal(size=(*clean.size[::-1], 3))
    images = [np.clip(np.asarray(clean) + level * noise, 0, 255).astype(np.uint8) for level in (0, 5, 60)]
    bound = Image.fromarray(np.clip(np.asarray(clean) + 20 * noise, 0, 255).astype(np.uint8))
    bound.save(tmp_path / "gt.png")
    (tmp_path / "r.yaml").write_text("nr: [piqe]\nnr_bound: gt\n")
    reward = dp2osr.Reward(tmp_path / "r.yaml")
    assert reward.score(images, gt=bound)["reward"].tolist() == [1, 1, 0]
    assert reward.score(images, gt=[bound, bound, images[2]])["reward"].tolist() == [0, 0, 0]  # each as good as its own
    with pytest.raises(UserError, match="'r': is bounded by the true image's own scores; pass gt="):
        reward.score(images)

    args = parse(
        BestOfSettings,
        ["--pretrained_model_name_or_path", "-", "--controlnet_model_name_or_path", "-", "--image_path", "-", "--output_dir", "-",
         "--keep", "best", "--sample_times", "3", "--reward_config", tmp_path / "r.yaml"],
    )  # fmt: skip
    with pytest.raises(UserError, match="piqe are bounded by the GT's own scores; pass --gt_path"):
        BestOf(args)
    args.gt_path = str(tmp_path)
    chooser = BestOf(args)
    chooser.gt_paths = {"x": tmp_path / "gt.png"}
    pixels = [pil_to_tensor(Image.fromarray(image)) for image in images]
    _, told = chooser("x", torch.stack(pixels), [0, 1, 2])
    assert told["scores"]["reward"] == [1, 1, 0]
    of_gt = MetricSuite([MetricSpec("piqe")]).score(pil_to_tensor(read_image(tmp_path / "gt.png"))[None])["piqe"][0]
    assert told["scores"]["piqe"][1] < of_gt < told["scores"]["piqe"][2]
