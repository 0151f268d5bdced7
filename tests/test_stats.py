"""Order statistics, gains, intervals and normalisation against naive loops."""

import math
from itertools import combinations

import numpy as np
import pytest
from fabricated import CONFIG, METRICS, naive_gain, naive_rewards, raw_scores

from dp2osr import stats
from dp2osr.rewards.config import RewardConfig
from dp2osr.rewards.reward import hybrid_reward
from dp2osr.stats import Estimate


@pytest.fixture
def scores():
    return {"base": raw_scores(0.0, 6, 0), "policy": raw_scores(1.5, 6, 1)}


def best_by_enumeration(row, m):
    return np.mean([max(subset) for subset in combinations(row, m)])


def worst_by_enumeration(row, m):
    return np.mean([min(subset) for subset in combinations(row, m)])


def test_best_and_worst_of_m_equal_the_mean_over_all_subsets():
    rewards = np.random.default_rng(0).random((3, 7))
    rewards[1, 2] = rewards[1, 5]  # ties
    for m in range(1, 8):
        assert stats.expected_best(rewards, m) == pytest.approx([best_by_enumeration(row, m) for row in rewards], abs=1e-12)
        assert stats.expected_worst(rewards, m) == pytest.approx([worst_by_enumeration(row, m) for row in rewards], abs=1e-12)


def test_curves_run_from_the_mean_to_the_extremes():
    rewards = np.random.default_rng(1).random((4, 12))
    curves = stats.best_mean_worst(rewards)
    assert curves["m"] == [1, 2, 4, 8, 12]
    assert curves["best"][0] == pytest.approx(rewards.mean()) == curves["worst"][0]
    assert curves["best"][-1] == pytest.approx(rewards.max(axis=1).mean())
    assert curves["worst"][-1] == pytest.approx(rewards.min(axis=1).mean())
    assert stats.subset_sizes(16) == [1, 2, 4, 8, 16]


def test_expected_best_is_exact_for_the_paper_s_64():
    ranks = np.arange(1.0, 65)[None]  # E[max of m ranks of M] = m (M + 1) / (m + 1)
    for m in (1, 2, 32, 64):
        assert stats.expected_best(ranks, m)[0] == pytest.approx(m * 65 / (m + 1))


def test_pooled_rewards_equal_naive_loops(scores):
    lower_better = {name: entry["lower_better"] for name, entry in METRICS.items()}
    parts = stats.pooled_parts(scores, lower_better, CONFIG)
    for method, expected in naive_rewards(scores, CONFIG, lower_better).items():
        assert sum(parts[method].values()) == pytest.approx(expected, abs=1e-12)
    alone = hybrid_reward(scores["policy"], lower_better, CONFIG)
    assert abs(sum(parts["policy"].values()) - alone).max() > 0.05, "pooling must matter in this fixture"


def test_an_outsider_is_on_the_scale_of_the_pool_and_not_clipped(scores):
    lower_better = {name: entry["lower_better"] for name, entry in METRICS.items()}
    inside = {name: values[:, 3] for name, values in scores["base"].items()}  # a candidate scored as an outsider
    parts = stats.pooled_parts(scores, lower_better, CONFIG)["base"]
    for name, values in stats.parts_of_outsider(inside, scores, lower_better, CONFIG).items():
        assert values == pytest.approx(parts[name][:, 3], abs=1e-12)
    terrible = {name: values.max(axis=1) + 1 if lower_better[name] else values.min(axis=1) - 99 for name, values in scores["base"].items()}
    assert (sum(stats.parts_of_outsider(terrible, scores, lower_better, CONFIG).values()) < 0).all()
    uneven = RewardConfig("uneven", CONFIG.fr, CONFIG.nr, 0.2, "rank", conflict_aware=True)
    parts = stats.pooled_parts(scores, lower_better, uneven)["base"]
    for name, values in stats.parts_of_outsider(inside, scores, lower_better, uneven).items():
        assert values == pytest.approx(parts[name][:, 3], abs=1e-12)
    flat = {method: {name: np.ones_like(values) for name, values in table.items()} for method, table in scores.items()}
    assert all((values == 0).all() for values in stats.parts_of_outsider(inside, flat, lower_better, CONFIG).values())


def test_gain_equals_naive_loops():
    rng = np.random.default_rng(2)
    base, policy = rng.random((6, 9)), rng.random((6, 9)) + 0.1
    assert stats.gain(policy, base, None).value == pytest.approx(naive_gain(policy, base))
    assert stats.gain(3 * policy + 7, 3 * base + 7, None).value == pytest.approx(naive_gain(policy, base)), "scale-free"


def test_worst_raised_to_the_mean_of_the_base_is_one():
    base = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 6.0]])
    assert stats.worst_raised(np.maximum(base, base.mean(axis=1, keepdims=True)), base, None).value == pytest.approx(1)
    assert stats.worst_raised(base, base, None).value == 0


def test_crops_belong_to_their_photograph():
    assert stats.photographs_of(["polar_bear_00", "polar_bear_01", "img_123", "cat"]) == ["polar_bear", "polar_bear", "img_123", "cat"]
    assert stats.photographs_of(["a_00", "a_01"], "") == ["a_00", "a_01"]


def test_bootstrap_draws_photographs_with_all_their_crops():
    photographs = ["a", "a", "a", "b", "c", "c"]
    weights = stats.bootstrap_weights(photographs, 500, 0)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 0] == weights[:, 2]).all() and (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, [0, 3, 4]].sum(axis=1) == 3).all(), "as many photographs as there are, in each resample"
    assert weights[:, 3].std() > 0.5
    assert (weights == stats.bootstrap_weights(photographs, 500, 0)).all()
    assert stats.bootstrap_weights(["a", "a"], 500, 0) is None


def test_interval_equals_a_naive_cluster_bootstrap_and_is_wider_than_one_over_images():
    rng = np.random.default_rng(3)
    photographs = [f"p{i // 4}" for i in range(40)]
    values = np.repeat(rng.normal(size=10), 4) + 0.01 * rng.normal(size=40)  # crops of a photograph agree
    ones = np.ones(40)
    clustered = stats.ratio_of_means(values, ones, stats.bootstrap_weights(photographs, 4000, 0))
    naive = [np.concatenate([values[4 * i : 4 * i + 4] for i in rng.integers(0, 10, 10)]).mean() for _ in range(4000)]
    assert [clustered.low, clustered.high] == pytest.approx(np.percentile(naive, [2.5, 97.5]), abs=0.06)
    by_image = stats.ratio_of_means(values, ones, stats.bootstrap_weights([str(i) for i in range(40)], 4000, 0))
    assert clustered.high - clustered.low > 1.5 * (by_image.high - by_image.low)


def test_verdicts():
    assert Estimate(0.5, 0.1, 0.9).verdict == "better"
    assert Estimate(-0.5, -0.9, -0.1).verdict == "worse"
    assert Estimate(0.5, -0.1, 0.9).verdict == "unclear"
    assert Estimate(0.5).verdict == "unclear", "no interval, no verdict"
    assert math.isnan(stats.gain(np.ones((2, 2)), np.ones((2, 2)), None).value), "no spread, no gain"
