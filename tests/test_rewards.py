"""Reward, config, table and metric suite against brute force and against pyiqa."""

import numpy as np
import pytest
import yaml

from dp2osr.errors import UserError
from dp2osr.rewards.config import MetricSpec, RewardConfig, for_new_images, load_reward_config
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.reward import hybrid_reward, normalise, reward_parts, reward_shares, with_fixed_weights
from dp2osr.rewards.table import read_columns, read_metadata, read_scores, write_scores

CONFIG = RewardConfig("test", [MetricSpec("a"), MetricSpec("b"), MetricSpec("c")], [MetricSpec("d"), MetricSpec("e")])
LOWER_BETTER = {"a": True, "b": False, "c": False, "d": True, "e": False}


def draw_scores(groups=5, count=7, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(scale=10**index, size=(groups, count)) for index, name in enumerate("abcde")}


def brute_force_reward(scores, lower_better, fr, nr, fr_weight=0.5):
    """Section 4.1, one candidate at a time, in plain Python floats."""
    groups, count = scores[(fr + nr)[0]].shape
    reward = [[0.0] * count for _ in range(groups)]
    for group in range(groups):
        for candidate in range(count):
            halves = []
            for names, weight in ((fr, fr_weight), (nr, 1 - fr_weight)):
                if not names:
                    continue
                weight = weight if fr and nr else 1.0
                total = 0.0
                for name in names:
                    row = [float(-value if lower_better[name] else value) for value in scores[name][group]]
                    if max(row) > min(row):
                        total += (row[candidate] - min(row)) / (max(row) - min(row))
                halves.append(weight * total / len(names))
            reward[group][candidate] = sum(halves)
    return np.array(reward)


@pytest.mark.parametrize(
    ("fr", "nr", "weight"), [("abc", "de", 0.5), ("abc", "", 0.5), ("", "de", 0.3), ("a", "bcde", 0.5), ("abc", "de", 0.2)]
)
def test_hybrid_reward_equals_brute_force(fr, nr, weight):
    config = RewardConfig("test", [MetricSpec(name) for name in fr], [MetricSpec(name) for name in nr], weight)
    scores = draw_scores()
    scores["b"][2] = 3.0  # zero span in one group
    expected = brute_force_reward(scores, LOWER_BETTER, list(fr), list(nr), weight)
    np.testing.assert_allclose(hybrid_reward(scores, LOWER_BETTER, config), expected, rtol=0, atol=1e-12)


def test_halves_weigh_the_same_whatever_their_sizes():
    scores = {name: np.array([[0.0, 1.0]]) for name in "abcde"}
    up = dict.fromkeys("abcde", False)
    parts = reward_parts(scores, up, CONFIG)
    np.testing.assert_allclose(sum(parts[name] for name in "abc"), [[0, 0.5]])
    np.testing.assert_allclose(sum(parts[name] for name in "de"), [[0, 0.5]])


def test_direction_and_zero_span():
    scores = np.array([[1.0, 3.0, 2.0], [4.0, 4.0, 4.0]])
    np.testing.assert_array_equal(normalise(scores, lower_better=False), [[0, 1, 0.5], [0, 0, 0]])
    np.testing.assert_array_equal(normalise(scores, lower_better=True), [[1, 0, 0.5], [0, 0, 0]])


@pytest.mark.parametrize("how", ["min_max", "rank", "z_score"])
def test_normalisations_equal_a_loop_over_candidates(how):
    from math import erf, sqrt

    scores = draw_scores(seed=3)["c"]
    scores[1, :3] = scores[1, 3]  # ties
    scores[2] = 5.0
    for lower_better in (False, True):
        sign = -1 if lower_better else 1
        for row, values in zip(scores, normalise(scores, lower_better, how), strict=True):
            row = [sign * value for value in row]
            mean = sum(row) / len(row)
            std = sqrt(sum((value - mean) ** 2 for value in row) / len(row))
            for value, normalised in zip(row, values, strict=True):
                expected = {
                    "min_max": lambda v, row=row: (v - min(row)) / (max(row) - min(row)),
                    "rank": lambda v, row=row: sum((other < v) + 0.5 * (other == v) for other in row) / len(row),
                    "z_score": lambda v, mean=mean, std=std: 0.5 * (1 + erf((v - mean) / std / sqrt(2))),
                }[how]
                assert normalised == pytest.approx(expected(value) if max(row) > min(row) else 0.0, abs=1e-12)


def test_an_outlier_stretches_min_max_and_not_ranks():
    scores = np.array([[0.0, 1.0, 2.0, 3.0, 1000.0]])
    assert np.ptp(normalise(scores, False)[0, :4]) < 0.01
    np.testing.assert_allclose(normalise(scores, False, "rank")[0], [0.1, 0.3, 0.5, 0.7, 0.9])


def test_weights_within_a_set_and_of_the_sets():
    config = RewardConfig("test", CONFIG.fr, CONFIG.nr, 0.4, weights={"a": 2.0, "e": 3.0})
    assert config.shares() == pytest.approx({"a": 0.2, "b": 0.1, "c": 0.1, "d": 0.15, "e": 0.45})
    assert config.shares({"a": 0.0, "b": 1.0, "c": 3.0, "d": 0.0, "e": 0.0}) == pytest.approx(
        {"a": 0, "b": 0.1, "c": 0.3, "d": 0.15, "e": 0.45}
    )
    assert RewardConfig("fr", CONFIG.fr, [], 0.4).shares() == pytest.approx(dict.fromkeys("abc", 1 / 3))


def test_a_metric_against_the_rest_loses_its_weight_where_the_config_is_aware_of_conflicts():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 16))
    scores = {name: truth + 0.5 * rng.normal(size=truth.shape) for name in "bde"} | {
        "a": -truth,
        "c": truth + 3 * rng.normal(size=truth.shape),
    }
    up = dict.fromkeys("abcde", False)
    config = RewardConfig("test", CONFIG.fr, CONFIG.nr, conflict_aware=True)
    parts = reward_parts(scores, up, config)
    largest = {name: values.max() for name, values in parts.items()}
    assert largest["a"] == 0 < largest["c"] < largest["b"] and largest["b"] + largest["c"] == pytest.approx(0.5)
    aware, plain = hybrid_reward(scores, up, config), hybrid_reward(scores, up, CONFIG)
    fixed = with_fixed_weights(config, scores, up)
    np.testing.assert_allclose(hybrid_reward(scores, up, fixed), aware)
    others = draw_scores(seed=5)
    assert fixed.shares() == pytest.approx(reward_shares(others, up, fixed)) and with_fixed_weights(CONFIG, scores, up) is CONFIG
    follows = [np.corrcoef(reward.ravel(), truth.ravel())[0, 1] for reward in (plain, aware)]
    assert follows[1] > follows[0] + 0.03


def test_parts_sum_to_the_reward():
    scores = draw_scores(seed=1)
    parts = reward_parts(scores, LOWER_BETTER, CONFIG)
    assert list(parts) == list("abcde")
    np.testing.assert_allclose(sum(parts.values()), hybrid_reward(scores, LOWER_BETTER, CONFIG), atol=1e-15)


def test_pooled_normalisation_keeps_the_gap_between_models():
    base, policy = draw_scores(seed=2), draw_scores(seed=2)
    for name in policy:  # the policy is better by a constant: per-model normalisation would hide it
        policy[name] = policy[name] + (-1 if LOWER_BETTER[name] else 1) * 5 * np.abs(policy[name]).max()
    pooled = {name: np.concatenate([base[name], policy[name]], axis=1) for name in base}
    reward = hybrid_reward(pooled, LOWER_BETTER, CONFIG)
    assert (reward[:, 7:].min(axis=1) > reward[:, :7].max(axis=1)).all()
    np.testing.assert_allclose(reward, brute_force_reward(pooled, LOWER_BETTER, list("abc"), list("de")), atol=1e-12)
    alone = [hybrid_reward(model, LOWER_BETTER, CONFIG) for model in (base, policy)]
    np.testing.assert_allclose(alone[0], alone[1], atol=1e-9)


def test_absent_and_nan_scores_are_named():
    scores = draw_scores()
    with pytest.raises(UserError, match="metric 'e'"):
        hybrid_reward({name: scores[name] for name in "abcd"}, LOWER_BETTER, CONFIG)
    scores["c"][3, 4] = np.nan
    with pytest.raises(UserError, match="metric 'c'.*candidate 4 of group 3"):
        hybrid_reward(scores, LOWER_BETTER, CONFIG)


@pytest.mark.parametrize("name", ["embedded", "default", "paper", "fr_only", "nr_only"])
def test_shipped_configs_load(name):
    config = load_reward_config(name)
    assert config.name == name and config.metrics
    assert {spec.name for spec in config.metrics}.isdisjoint({"psnr", "ssim", "entropy", "niqe"})


def test_shipped_configs_have_the_sizes_that_the_method_names():
    configs = [load_reward_config(name) for name in ("default", "paper", "embedded")]
    assert [(len(config.fr), len(config.nr)) for config in configs] == [(4, 4), (3, 6), (4, 4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fr": ["gmsd"], "rn": ["piqe"]}, "unknown key 'rn'"),
        ({"fr": "gmsd"}, "must be a list"),
        ({"fr": [], "nr": []}, "no metric"),
        ({"fr": ["gmsd"], "nr": ["piqe"], "fr_weight": 1.5}, "'fr_weight' must be"),
        ({"fr": ["gmsd"], "nr": ["piqe"], "fr_weight": "half"}, "'fr_weight' must be"),
        ({"fr": ["gmsd", "gmsd"]}, "2 times"),
        ({"fr": ["gmsd"], "normalise": "minmax"}, "'normalise' must be one of min_max, rank, z_score"),
        ({"fr": ["gmsd"], "weights": {"gmds": 2}}, "'gmds', which is no metric of it; did you mean 'gmsd'"),
        ({"fr": ["gmsd"], "weights": {"gmsd": 0}}, "a number above 0"),
        ({"fr": ["gmsd"], "conflict_aware": "yes please"}, "true or false"),
        ({"fr": [["gmsd"]]}, "is not a metric"),
        ({"nr": [{"mine": {"better": "hihger"}}]}, "'mine': 'better' must be higher or lower, not 'hihger'; did you mean 'higher'"),
        ({"nr": [{"mine": {"better": True}}]}, "'better' must be higher or lower, not True"),
        ({"nr": [{"mine": {"better": "lower", "crop": 4}}]}, "'mine'.*no option crop"),
        ({"nr": [{"candidate": {"better": "lower"}}]}, "'candidate' names the rows"),
        ({"nr": ["piqe"], "imports": "my_metrics"}, "'imports' must be a list"),
        ({"nr": ["piqe"], "imports": ["absent.py"]}, "'imports' names absent.py, and there is no .*absent.py"),
        (["gmsd"], "two lists"),
    ],
)
def test_bad_configs(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        load_reward_config(path)


def test_unknown_config_name_shows_the_nearest():
    with pytest.raises(UserError, match="did you mean 'embedded'"):
        load_reward_config("embeded")


METADATA = {
    "pyiqa": "0.0",
    "candidates": {"seed": 3},
    "metrics": {
        "gmsd": {"lower_better": True, "mode": "FR", "options": {}},
        "musiq": {"lower_better": False, "mode": "NR", "options": {"k": 1}},
    },
}


def shuffled_columns():
    """Two groups of three candidates and their GT, in a random order of rows."""
    rows = [(image_id, candidate) for image_id in ("b", "a") for candidate in (0, 1, 2, -1)]
    rows = [rows[index] for index in np.random.default_rng(0).permutation(8)]
    value = {"a": 10.0, "b": 20.0}
    return {
        "image_id": [image_id for image_id, _ in rows],
        "candidate": [candidate for _, candidate in rows],
        "gmsd": [float("nan") if candidate < 0 else value[image_id] + candidate for image_id, candidate in rows],
        "musiq": [-value[image_id] - candidate for image_id, candidate in rows],
    }


def test_table_round_trip(tmp_path):
    path = tmp_path / "scores.parquet"
    write_scores(path, shuffled_columns(), METADATA)
    table = read_scores(path)
    assert table.image_ids == ["a", "b"] and table.metadata == METADATA
    np.testing.assert_array_equal(table.scores["gmsd"], [[10, 11, 12], [20, 21, 22]])
    np.testing.assert_array_equal(table.scores["musiq"], [[-10, -11, -12], [-20, -21, -22]])
    assert set(table.gt_scores) == {"musiq"}
    np.testing.assert_array_equal(table.gt_scores["musiq"], [-9, -19])
    assert table.lower_better == {"gmsd": True, "musiq": False}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scores.parquet", "scores.parquet.json"]


@pytest.mark.parametrize("change", ["missing", "twice"])
def test_table_refuses_ragged_groups(tmp_path, change):
    columns = shuffled_columns()
    row = next(i for i in range(8) if (columns["image_id"][i], columns["candidate"][i]) == ("b", 1))
    for values in columns.values():
        if change == "missing":
            del values[row]
        else:
            values.append(values[row])
    write_scores(tmp_path / "scores.parquet", columns, METADATA)
    with pytest.raises(UserError, match="candidate 1 of image 'b'"):
        read_scores(tmp_path / "scores.parquet")


def test_table_of_another_kind_is_refused(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for name in ("broken.parquet", "absent.parquet"):
        with pytest.raises(UserError, match=name):
            read_columns(tmp_path / name)


def test_a_column_added_with_pandas_leaves_a_score_table(tmp_path):
    """pandas drops what is in the schema, and writes NaN as null."""
    import pandas as pd

    path = tmp_path / "scores.parquet"
    write_scores(path, shuffled_columns(), METADATA | {"of another program": [1, 2]})
    before = read_scores(path)
    frame = pd.read_parquet(path)
    frame["mine"] = frame["musiq"] * 2
    frame["note"] = "seen"
    frame.sort_values("musiq").to_parquet(path)  # with an index that is written as a column
    table = read_scores(path)
    assert table.image_ids == before.image_ids and table.metadata == before.metadata and set(table.scores) == {"gmsd", "musiq"}
    for name in table.scores:
        np.testing.assert_array_equal(table.scores[name], before.scores[name])
    assert read_metadata(path)["of another program"] == [1, 2]


def test_a_table_without_its_metadata_is_refused_with_a_way_out(tmp_path):
    import pandas as pd

    path = tmp_path / "scores.parquet"
    write_scores(path, shuffled_columns(), METADATA)
    frame = pd.read_parquet(path)
    frame.drop(columns="gmsd").to_parquet(path)
    with pytest.raises(UserError, match="scores.parquet: column 'gmsd' is missing; write the table with all the columns"):
        read_columns(path)
    frame.assign(gmsd="0.5").to_parquet(path)
    with pytest.raises(UserError, match="column 'gmsd' holds .*string, and a metric needs numbers"):
        read_columns(path)
    frame.assign(candidate=np.nan).to_parquet(path)
    with pytest.raises(UserError, match="'candidate' must hold a whole number"):
        read_columns(path)
    frame.to_parquet(path)
    (tmp_path / "scores.parquet.json").unlink()
    with pytest.raises(UserError, match="not a score table of label_rewards.py.*scores.parquet.json beside it.*label again"):
        read_columns(path)


def with_column(path, **more):
    """A score table with columns of the user's, by pandas."""
    import pandas as pd

    write_scores(path, shuffled_columns(), METADATA)
    frame = pd.read_parquet(path)
    frame["mine"] = np.where(frame["candidate"] < 0, np.nan, frame["candidate"] * 2.0)
    frame.assign(**more).to_parquet(path)


def test_a_column_of_ones_own_is_a_metric_with_the_direction_and_the_mode_of_the_yaml(tmp_path):
    with_column(tmp_path / "scores.parquet")
    reward = tmp_path / "mine.yaml"
    reward.write_text("fr: [gmsd]\nnr:\n  - mine: {better: lower}\n")
    config = load_reward_config(reward)
    assert [spec.name for spec in config.metrics] == ["gmsd", "mine"] and [spec.name for spec in config.computed] == ["gmsd"]
    table = read_scores(tmp_path / "scores.parquet", config)
    np.testing.assert_array_equal(table.scores["mine"], [[0, 2, 4], [0, 2, 4]])
    assert table.lower_better["mine"] and table.metadata["metrics"]["mine"]["mode"] == "NR" and "mine" not in table.gt_scores
    np.testing.assert_allclose(hybrid_reward(table.scores, table.lower_better, config), [[1, 0.5, 0], [1, 0.5, 0]])
    assert "mine" not in read_scores(tmp_path / "scores.parquet").scores


def test_a_column_that_cannot_be_a_metric_is_named(tmp_path):
    path = tmp_path / "scores.parquet"
    with_column(path, words="good")
    for entry, problem in {
        "mnie: {better: lower}": "has no column 'mnie', which the reward config 'mine' names.*did you mean 'mine'",
        "words: {better: lower}": "column 'words' holds string, and a metric needs numbers",
        "musiq: {better: lower}": "'musiq' is a metric of label_rewards.py .NR, higher is better.*says otherwise",
    }.items():
        reward = tmp_path / "mine.yaml"
        reward.write_text(f"nr:\n  - {entry}\n")
        with pytest.raises(UserError, match=problem):
            read_scores(path, load_reward_config(reward))
    with pytest.raises(UserError, match="'mine' is a column of a score table.*cannot be computed"):
        MetricSuite([MetricSpec("mine", better="lower")])


def test_new_images_are_judged_without_the_columns_of_a_table(capsys):
    config = RewardConfig("r", [MetricSpec("gmsd")], [MetricSpec("mine", better="lower")], weights={"gmsd": 1.0, "mine": 2.0})
    left = for_new_images(config, "validation samples")
    assert [spec.name for spec in left.metrics] == ["gmsd"] and left.shares() == {"gmsd": 1.0} and left.weights == {"gmsd": 1.0}
    assert capsys.readouterr().err.count("validation samples are judged without mine") == 1
    with pytest.raises(UserError, match="'r': mine can be read from a score table alone"):
        for_new_images(RewardConfig("r", [], config.nr), "validation samples")
    assert for_new_images(CONFIG, "validation samples") is CONFIG
