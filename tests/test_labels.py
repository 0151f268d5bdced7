"""Labels that are published and taken back: equal to the bit, loadable by others, refused for other candidates."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import assert_one_clear_line
from fabricated import CONFIG, IMAGE_IDS, naive_rewards, raw_scores, write_method
from programs import run_program

from dp2osr.cli import parse
from dp2osr.digests import sha256
from dp2osr.errors import UserError
from dp2osr.files import read_json, write_json
from dp2osr.preference.label_export import export_labels
from dp2osr.preference.settings import ExportLabelsSettings
from dp2osr.rewards.chosen import record_reward
from dp2osr.rewards.foreign_scores import import_scores
from dp2osr.rewards.settings import ImportScoresSettings
from dp2osr.rewards.table import read_columns, read_metadata, read_scores, write_scores

SCORED = list(raw_scores(0, 6, 0))


@pytest.fixture
def folder(tmp_path):
    """A candidate folder of eight images, M = 6, its true images scored too, with a column of the user's and a NaN."""
    folder = write_method(tmp_path / "candidates", 0.0)
    settings = read_json(folder / "settings.json") | {"num_candidates": 6}
    write_json(folder / "settings.json", settings)
    columns, metadata = read_columns(folder / "scores.parquet")
    of_nan = (columns["image_id"] == IMAGE_IDS[2]) & (columns["candidate"] == 3)
    columns["gmsd"] = np.where(of_nan, np.nan, columns["gmsd"])
    columns["mine"] = np.arange(len(columns["candidate"])) / 3
    groups = {name: {"latents_sha256": sha256(folder / f"groups/{name}/latents.safetensors"), "gt_sha256": None} for name in IMAGE_IDS}
    about = {**metadata, "candidates": settings, "groups": groups, **record_reward(metadata, CONFIG, gt_path="/home/somebody/gt")}
    write_scores(folder / "scores.parquet", columns, about)
    return folder


def export(folder, *more):
    output = folder.parent / "labels"
    export_labels(parse(ExportLabelsSettings, ["--candidates_dir", folder, "--output_dir", output, *more]))
    return output


def bring_in(labels, folder, *more, output="back.parquet"):
    path = folder.parent / output
    import_scores(parse(ImportScoresSettings, ["--table", labels, "--candidates_dir", folder, "--output", path, *more]))
    return path


def in_order(columns):
    order = np.lexsort([columns["candidate"], columns["image_id"].astype(str)])
    return {name: values[order] for name, values in columns.items()}


def assert_same(path, folder):
    (found, about), (before, metadata) = read_columns(path), read_columns(folder / "scores.parquet")
    found, before = in_order(found), in_order(before)
    assert list(found) == list(before)
    for name, values in before.items():
        assert found[name].dtype == values.dtype and (found[name].tobytes() == values.tobytes() or values.dtype == object)
    assert found["image_id"].tolist() == before["image_id"].tolist()
    assert {key for key in {**about, **metadata} if about.get(key) != metadata.get(key)} == {"imported", "gt_path"}


def test_labels_that_are_taken_back_are_equal_to_the_bit(folder):
    assert_same(bring_in(export(folder), folder), folder)


def test_labels_that_datasets_has_written_anew_are_too(folder):
    """It keeps the values and drops what a schema says beside them; rows may come in another order."""
    labels = export(folder)
    for name in ("candidates.parquet", "gt.parquet"):
        table = pq.read_table(labels / name)
        rows = np.random.default_rng(0).permutation(table.num_rows)
        pq.write_table(table.take(rows).replace_schema_metadata(None), labels / name)
    assert_same(bring_in(labels, folder), folder)


def test_others_read_one_row_a_candidate_with_its_seed_and_reward(folder):
    labels = export(folder)
    front = yaml.safe_load((labels / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    [main] = [entry for entry in front["configs"] if entry.get("default")]
    table = pyarrow.dataset.dataset(labels / main["data_files"]).to_table().to_pandas()
    assert len(table) == 6 * len(IMAGE_IDS) and {"image_id", "candidate", "seed", "reward", *SCORED, "mine"} == set(table.columns)
    assert table["seed"].tolist() == table["candidate"].tolist()  # those of the made-up groups
    scores = read_scores(folder / "scores.parquet").scores
    expected = naive_rewards({"it": scores}, CONFIG, read_scores(folder / "scores.parquet").lower_better)["it"]
    rewards = table.pivot(index="image_id", columns="candidate", values="reward").loc[sorted(IMAGE_IDS)].to_numpy()
    bad = sorted(IMAGE_IDS).index(IMAGE_IDS[2])
    assert np.isnan(rewards[bad]).all() and np.allclose(np.delete(rewards, bad, 0), np.delete(expected, bad, 0), atol=1e-12)
    gt = pd.read_parquet(labels / "gt.parquet")
    assert gt["candidate"].eq(-1).all() and len(gt) == len(IMAGE_IDS) and front["configs"][1]["data_files"] == "gt.parquet"


def test_the_card_says_what_was_sampled_and_names_no_place_of_this_machine(folder):
    labels = export(folder)
    card = (labels / "README.md").read_text(encoding="utf-8")
    for words in (
        "8 LR images (groups), 6 candidates each, 48 in all", "pyiqa 0,", "| `gmsd` | raw score; full-reference, lower is better |",
        "The licence of 8 of the 8 images is not known here", "| `num_inference_steps` | `20` |", "| `model` | `tiny` |",
    ):  # fmt: skip
        assert words in card, words
    everything = [card, json.dumps(read_metadata(labels / "candidates.parquet")), (labels / "candidates.parquet.json").read_text()]
    assert not any("/home/somebody" in text or str(folder.parent) in text for text in everything)
    (labels / "README.md").write_text(card + "mine")
    export(folder)
    assert (labels / "README.md").read_text().endswith("mine")


def test_labels_of_other_candidates_are_refused_and_named(folder, tmp_path):
    labels = export(folder)
    other = write_method(tmp_path / "other", 0.0, seed=1)
    write_json(other / "settings.json", read_json(folder / "settings.json"))
    shutil.rmtree(other / f"groups/{IMAGE_IDS[0]}")
    shutil.copytree(folder / f"groups/{IMAGE_IDS[0]}", other / f"groups/{IMAGE_IDS[0]}")
    with pytest.raises(UserError) as error:
        bring_in(labels, other)
    assert "7 of its images have other candidates" in str(error.value) and IMAGE_IDS[0] not in str(error.value)
    about = folder / f"groups/{IMAGE_IDS[1]}/group.json"
    write_json(about, read_json(about) | {"seeds": [5, 4, 3, 2, 1, 0]})
    with pytest.raises(UserError, match=f"1 of its images have other candidates .*: {IMAGE_IDS[1]}; give --table"):
        bring_in(labels, folder)
    shutil.rmtree(folder / f"groups/{IMAGE_IDS[1]}")
    with pytest.raises(UserError, match=f"{IMAGE_IDS[1]}: no such candidate group"):
        bring_in(labels, folder)
    assert not (tmp_path / "back.parquet").exists()


def test_what_cannot_be_is_one_line(folder, tmp_path):
    labels = export(folder)
    for flags, told in (
        (["--lower_better", "gmsd"], "--lower_better: would do nothing with the folder"),
        (["--first_number", 1], "--first_number"),
    ):
        with pytest.raises(UserError, match=told):
            bring_in(labels, folder, *flags)
    with pytest.raises(UserError, match="has no candidates.parquet; give a folder of scripts/export_labels.py"):
        bring_in(tmp_path, folder)
    with pytest.raises(UserError, match="is a table of label_rewards.py, which is not overwritten"):
        import_scores(parse(ImportScoresSettings, ["--table", labels, "--candidates_dir", folder]))
    (labels / "candidates.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="candidates.parquet: not a readable parquet file"):
        bring_in(labels, folder)
    with pytest.raises(UserError, match="is there and no export of labels"):
        export(folder)
    done = run_program("scripts/export_labels.py", "--candidates_dir", folder, "--output_dir", folder, check=False)
    assert_one_clear_line(done, "is the input --candidates_dir")
    columns, metadata = read_columns(folder / "scores.parquet")
    write_scores(folder / "scores.parquet", {**columns, "seed": columns["mine"]}, metadata)
    with pytest.raises(UserError, match="has a column 'seed' of your own"):
        export_labels(parse(ExportLabelsSettings, ["--candidates_dir", folder, "--output_dir", tmp_path / "new"]))
    assert not (tmp_path / "new").exists()
