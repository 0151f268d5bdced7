"""Which reward a program reads scores with, and what it says where they do not suffice."""

import json
import shlex
import shutil
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from conftest import ROOT, one_kind

from dp2osr.cli import parse
from dp2osr.commands import command
from dp2osr.errors import UserError
from dp2osr.evaluation.settings import EvaluateSettings
from dp2osr.preference.describe import describe_preferences
from dp2osr.preference.groups import check_same_candidates
from dp2osr.preference.settings import PreferenceSettings
from dp2osr.rewards.chosen import as_dict, check_scored, from_dict, label_command, record_reward, reward_of
from dp2osr.rewards.config import CONFIG_DIR, MetricSpec, RewardConfig, load_reward_config
from dp2osr.rewards.settings import InspectRewardSettings, LabelSettings
from dp2osr.rewards.table import ScoreTable, read_metadata
from dp2osr.training.settings import ProbeSettings, TrainSettings

sys.path.insert(0, str(ROOT / "scripts"))
ONE = RewardConfig("one", [MetricSpec("psnr", {"test_y_channel": True})], [MetricSpec("piqe")], 0.3, "rank", {"piqe": 2.0}, True)
OTHER = RewardConfig("other", [], [MetricSpec("piqe")])


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIG_DIR.glob("*.yaml"))])
def test_a_reward_is_the_same_after_it_was_written_into_a_table(name):
    config = load_reward_config(name)
    assert from_dict(json.loads(json.dumps(as_dict(config)))) == config
    assert from_dict(json.loads(json.dumps(as_dict(ONE)))) == ONE


def test_a_reader_takes_the_reward_that_the_scores_were_made_for_and_asks_where_there_are_several():
    lines, first = [], json.loads(json.dumps(record_reward({}, ONE, "my rewards/one.yaml", "gt folder")))
    assert reward_of(None, {"a.parquet": first}, lines.append) == ONE
    assert lines == ["reward: one, which a.parquet was scored for"]
    both = json.loads(json.dumps(record_reward(first, OTHER)))
    assert both["gt_path"] == "gt folder"
    with pytest.raises(UserError, match=r"a.parquet: was scored for several rewards \(one, other\); say which with --reward_config"):
        reward_of(None, {"a.parquet": both}, None)
    assert reward_of("nr_only", {"a.parquet": both}, None) == load_reward_config("nr_only")
    assert reward_of(None, {"a.parquet": both, "b.parquet": first}, None) == ONE  # what both were scored for
    edited = record_reward(both, RewardConfig("other", [], [MetricSpec("niqe")]))
    assert list(edited["reward_configs"]) == ["one", "other"]
    assert [spec["name"] for spec in edited["reward_configs"]["other"]["nr"]] == ["niqe"]


def test_a_table_that_does_not_say_is_read_by_the_default_and_what_it_lacks_is_a_command_that_can_be_pasted():
    config = reward_of(None, {"a.parquet": {}}, None)
    assert config == load_reward_config("default")
    scores = {spec.name: None for spec in load_reward_config("embedded").metrics}
    table = ScoreTable(["a"], scores, {}, {}, {"gt_path": "my photos/gt"})
    with pytest.raises(UserError) as error:
        check_scored(config, table, "my runs/candidates")
    assert "take --reward_config embedded or fr_only or nr_only" in str(error.value)
    words = shlex.split(str(error.value).partition("; run ")[2].partition(", or ")[0])
    assert words == [
        "python", "label_rewards.py", "--candidates_dir", "my runs/candidates", "--gt_path", "my photos/gt", "--reward_config", "default",
    ]  # fmt: skip
    with pytest.raises(UserError, match="or with --reward_config embedded, whose weights ship"):
        check_scored(config, ScoreTable(["a"], {}, {}, {}, {}), "c")


def test_commands_in_messages_are_quoted_and_leave_out_what_is_not_given():
    assert command("x.py", a="b c", d=None, e=True, f=False, g=[1, "h i"]) == "python x.py --a 'b c' --e --g 1 'h i'"
    told = label_command("c", ONE, record_reward({}, ONE, "my rewards/one.yaml"), scores="other.parquet")
    expected = "python label_rewards.py --candidates_dir c --gt_path GT_FOLDER --reward_config 'my rewards/one.yaml' --output other.parquet"
    assert told == expected


def test_no_program_has_a_reward_of_its_own():
    kinds = (LabelSettings, PreferenceSettings, InspectRewardSettings, ProbeSettings, TrainSettings, EvaluateSettings)
    assert {kind.reward_config for kind in kinds} == {None}


@one_kind
def test_label_and_read_by_the_defaults_without_the_rewards_file(kind, sampled, tmp_path, capsys):

    from dp2osr.rewards.label import label_candidates

    folder = tmp_path / "my candidates"
    shutil.copytree(sampled, folder)
    for path in folder.glob("scores.parquet"):
        path.unlink()

    def label(name, content):
        (tmp_path / f"{name}.yaml").write_text(content)
        words = [
            "--candidates_dir",
            str(folder),
            "--reward_config",
            str(tmp_path / f"{name}.yaml"),
            "--gt_path",
            str(ROOT / "preset/train/gt"),
        ]
        label_candidates(parse(LabelSettings, words))
        (tmp_path / f"{name}.yaml").unlink()

    def read(*more):
        words = ["--candidates_dir", str(folder), "--top_n", "1", *more]
        return describe_preferences(parse(PreferenceSettings, words))

    label("mine", "nr: [piqe]\n")
    assert read() and "reward: mine, which" in capsys.readouterr().out
    label("yours", "fr: [gmsd]\nnr: [piqe]\n")
    with pytest.raises(UserError, match=r"several rewards \(mine, yours\)"):
        read()
    metadata = read_metadata(folder / "scores.parquet")
    assert set(metadata["reward_configs"]) == {"mine", "yours"} and metadata["gt_path"] == str(ROOT / "preset/train/gt")
    label("yours", "nr: [piqe]\n")  # nothing to score: the table says so all the same
    assert read_metadata(folder / "scores.parquet")["reward_configs"]["yours"]["fr"] == []
    with pytest.raises(UserError, match="lack .* of the reward 'embedded'; run python label_rewards.py --candidates_dir '.*my candidates'"):
        read("--reward_config", "embedded")


def test_scores_of_the_first_candidates_are_good_where_more_were_sampled_since():
    store = SimpleNamespace(folder="c", ids=lambda: ["a"], settings={"seed": 0, "num_candidates": 8})
    for of, good in (
        ({"seed": 0, "num_candidates": 6}, True),
        ({"seed": 0, "num_candidates": 9}, False),
        ({"seed": 1, "num_candidates": 6}, False),
    ):
        with nullcontext() if good else pytest.raises(UserError, match="candidates with other settings"):
            check_same_candidates(store, ScoreTable(["a"], {}, {}, {}, {"candidates": of}))
