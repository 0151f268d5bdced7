"""Scores that others computed become the score table of a candidate folder."""

import numpy as np
import pandas as pd
import pytest
from fabricated import IMAGE_IDS, raw_scores, write_method

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.files import read_json, write_json
from dp2osr.preference.groups import PreferenceGroups
from dp2osr.rewards.chosen import read_with_reward
from dp2osr.rewards.foreign_scores import import_scores
from dp2osr.rewards.settings import ImportScoresSettings
from dp2osr.rewards.table import read_metadata, read_scores
from dp2osr.sampling.store import CandidateStore

REWARD = "fr: [gmsd]\nnr: [musiq, {mine: {better: lower}}]\n"
LOWER = ["--lower_better", "gmsd", "mine"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A candidate folder of eight images, M = 6, without scores."""
    monkeypatch.setattr(CandidateStore, "has_prompt", lambda store, image_id: True)
    folder = write_method(tmp_path / "candidates", 0.0)
    for path in folder.glob("scores.parquet*"):
        path.unlink()
    write_json(folder / "settings.json", read_json(folder / "settings.json") | {"num_candidates": 6})
    (tmp_path / "reward.yaml").write_text(REWARD, encoding="utf-8")
    return folder


def theirs(seed=0):
    raw = raw_scores(0.0, 6, seed)
    frame = pd.DataFrame({"image_id": np.repeat(IMAGE_IDS, 6), "candidate": np.tile(range(6), len(IMAGE_IDS))})
    return frame.assign(gmsd=raw["gmsd"].ravel(), musiq=raw["piqe"].ravel(), mine=raw["ssim"].ravel())


def bring_in(path, folder, *more):
    import_scores(parse(ImportScoresSettings, ["--table", path, "--candidates_dir", folder, *more]))


@pytest.mark.parametrize("ending", ["csv", "parquet", "semicolons"])
def test_training_takes_an_imported_table_with_its_directions_in_any_order_of_rows(folder, tmp_path, ending):
    frame = theirs().sample(frac=1, random_state=1).assign(candidate=lambda table: table["candidate"] + 1)
    path = tmp_path / f"theirs.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_csv(path, index=False, sep=";" if ending == "semicolons" else ",")
    bring_in(path, folder, *LOWER, "--first_number", 1, "--reward_config", tmp_path / "reward.yaml")
    table, config = read_with_reward(None, folder, show=None)
    assert config.name == "reward" and table.lower_better == {"gmsd": True, "musiq": False, "mine": True}
    raw = raw_scores(0.0, 6, 0)
    assert np.allclose(table.scores["gmsd"], raw["gmsd"], rtol=1e-12) and np.allclose(table.scores["mine"], raw["ssim"], rtol=1e-12)
    assert len(PreferenceGroups(CandidateStore(folder), table, config, None, 2)) == len(IMAGE_IDS)
    metadata = read_metadata(folder / "scores.parquet")
    assert metadata["imported"]["table"] == path.name and metadata["metrics"]["gmsd"]["mode"] == "FR"


def test_rows_that_do_not_fit_the_candidates_are_all_named_in_one_line(folder, tmp_path):
    frame, (first, second, third, fourth) = theirs(), IMAGE_IDS[:4]
    rows = frame[(frame["image_id"] != first) & ~((frame["image_id"] == second) & (frame["candidate"].isin([1, 4])))]
    rows = pd.concat([rows, rows[(rows["image_id"] == third) & (rows["candidate"] == 2)], rows[:1].assign(image_id="stranger")])
    rows = pd.concat([rows, rows[(rows["image_id"] == fourth) & (rows["candidate"] == 2)].assign(candidate=9)])
    rows.to_csv(tmp_path / "theirs.csv", index=False)
    wanted = [f"{first}: no candidate at all", f"{second}: lacks 1, 4", f"{third}: has twice 2", f"{fourth}: has, of 6, 9"]
    with pytest.raises(UserError) as caught:
        bring_in(tmp_path / "theirs.csv", folder, *LOWER)
    for words in ("rows of 5 images", "stranger: no such candidate group", *wanted):
        assert words in str(caught.value)
    assert not (folder / "scores.parquet").exists()


def test_what_is_said_of_a_column_must_be_true_of_it(folder, tmp_path):
    path = tmp_path / "theirs.csv"
    theirs().to_csv(path, index=False)
    for flags, words in (
        (["--lower_better", "mine"], "of pyiqa's gmsd lower is better; name it there"),
        (["--lower_better", "gmsd", "musiq"], "of pyiqa's musiq higher is better"),
        (["--lower_better", "gmds"], "--lower_better gmds: .* did you mean 'gmsd'"),
        (["--lower_better", "gmsd", "--reward_config", tmp_path / "reward.yaml"], "says that of mine lower is better"),
        ([*LOWER, "--metrics", "gmsd", "mine", "--reward_config", tmp_path / "reward.yaml"], "lacks musiq of the reward"),
    ):
        with pytest.raises(UserError, match=words):
            bring_in(path, folder, *flags)
    theirs().assign(mine="good").to_csv(path, index=False)
    with pytest.raises(UserError, match="column 'mine' has no number in 48 rows .*'good' in row 0"):
        bring_in(path, folder, *LOWER)
    theirs().drop(columns="candidate").to_csv(path, index=False)
    with pytest.raises(UserError, match="has no column candidate; it has image_id, gmsd, musiq, mine"):
        bring_in(path, folder, *LOWER)


def test_a_table_of_label_rewards_is_not_overwritten_an_imported_one_is(folder, tmp_path, capsys):
    path = tmp_path / "theirs.csv"
    theirs(1).to_csv(path, index=False)
    bring_in(path, folder, *LOWER)
    frame = theirs(2)
    frame.loc[0, "mine"] = np.nan
    frame.to_csv(path, index=False)
    bring_in(path, folder, *LOWER)
    assert f"1 of them have an empty, NaN or infinite score; training passes over those whose reward needs it: {IMAGE_IDS[0]}" in (
        capsys.readouterr().out
    )
    assert np.allclose(read_scores(folder / "scores.parquet").scores["gmsd"], raw_scores(0.0, 6, 2)["gmsd"])
    write_method(tmp_path / "other", 0.0)
    before = (tmp_path / "other/scores.parquet").read_bytes()
    write_json(tmp_path / "other/settings.json", read_json(tmp_path / "other/settings.json") | {"num_candidates": 6})
    with pytest.raises(UserError, match="is a table of label_rewards.py, which is not overwritten"):
        bring_in(path, tmp_path / "other", *LOWER)
    assert (tmp_path / "other/scores.parquet").read_bytes() == before
