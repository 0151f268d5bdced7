"""What counts as done: a record of this program, of this input's content, with these settings."""

import json
import os

import pytest

from dp2osr.errors import UserError
from dp2osr.results import Results, read_image_record

CAT, DOG = {"image": "sha of a cat"}, {"image": "sha of a dog"}


def make(results, name, content, made_of=CAT):
    with results.writing(name, made_of) as part:
        part.write_text(content)


@pytest.fixture
def results(tmp_path):
    results = Results(
        tmp_path / "out", {"steps": 3, "model": "here"}, not_compared=("model",), flags=("--output_dir", "--suffix", "--overwrite")
    )
    make(results, "sub/a.png", "cat")
    return results


def same(results, **changes):
    return Results(results.folder, {**results.settings, **changes}, not_compared=("model",), flags=("--output_dir", "--overwrite"))


def test_a_result_of_the_same_input_and_settings_is_kept(results):
    assert results.missing({"sub/a.png": CAT, "b.png": CAT}) == ["b.png"]
    assert same(results, model="there").missing({"sub/a.png": CAT}) == []
    assert results.missing({"sub/a.png": CAT}, overwrite=True) == ["sub/a.png"]


def test_a_replaced_input_is_computed_anew(results):
    assert results.missing({"sub/a.png": DOG}) == ["sub/a.png"]
    make(results, "sub/a.png", "dog", DOG)
    assert results.missing({"sub/a.png": DOG}) == [] and (results.folder / "sub/a.png").read_text() == "dog"


def test_other_settings_are_refused_and_the_way_out_is_named(results):
    with pytest.raises(UserError, match="steps is 3 there and 4 here.*sub/a.png.*--overwrite"):
        same(results, steps=4).missing({"sub/a.png": CAT})
    assert same(results, steps=4).missing({"sub/a.png": CAT}, overwrite=True) == ["sub/a.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_file_of_that_name_is_refused(results, overwrite):
    (results.folder / "b.png").write_text("the user's")
    with pytest.raises(UserError, match="b.png"):
        results.missing({"b.png": CAT}, overwrite)
    (results.folder / "b.png").unlink()
    (results.folder / "sub/a.png").write_text("touched up by the user")
    with pytest.raises(UserError, match="a.png"):
        results.missing({"sub/a.png": CAT}, overwrite)
    os.symlink("/nowhere", results.folder / "c.png")
    with pytest.raises(UserError, match="c.png"):
        results.missing({"c.png": CAT}, overwrite, adopt=True)


def test_results_from_before_there_were_records_are_adopted_only_when_asked(results):
    (results.folder / "b.png").write_text("old")
    assert results.missing({"b.png": CAT}, adopt=True) == []
    assert results.missing({"b.png": CAT}) == [] and results.missing({"b.png": DOG}) == ["b.png"]
    (results.folder / "c.png").write_text("old")
    assert results.missing({"c.png": CAT}, overwrite=True, adopt=True) == ["c.png"]


def test_a_stop_between_the_record_and_the_result_leaves_both_usable(results, monkeypatch):
    path = results.folder / "sub/a.png"
    replace = type(path).replace

    def stopped(self, target):
        if str(target) == str(path):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(type(path), "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(results, "sub/a.png", "dog", DOG)
    monkeypatch.undo()
    assert path.read_text() == "cat" and sorted(os.listdir(path.parent)) == ["a.png"]
    assert results.missing({"sub/a.png": DOG}) == ["sub/a.png"]  # it is ours, and still of the cat
    make(results, "sub/a.png", "dog", DOG)
    assert results.missing({"sub/a.png": DOG}) == []


def test_results_that_would_overwrite_inputs_are_refused_however_they_are_spelt(tmp_path):
    (tmp_path / "in").mkdir()
    photo = tmp_path / "in/a.png"
    photo.write_text("photo")
    os.symlink(tmp_path / "in", tmp_path / "link")
    os.mkdir(tmp_path / "hard")
    os.link(photo, tmp_path / "hard/a.png")
    for folder in (tmp_path / "in", tmp_path / "in/../in/.", tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(UserError, match="would overwrite the inputs"):
            Results(folder, {}).check_inputs(["a.png"], [photo])
    Results(tmp_path / "in", {}).check_inputs(["a_sr.png"], [photo])


def test_names_as_long_as_a_file_system_takes_have_records(results):
    name = "n" * 251 + ".png"
    make(results, name, "cat")
    assert results.missing({name: CAT}) == []


def test_a_broken_record_counts_as_none(results):
    [record] = (results.folder / ".records").glob("*.json")
    record.write_text("{")
    with pytest.raises(UserError, match="a.png"):
        results.missing({"sub/a.png": CAT})


def test_the_record_of_an_image_is_found_from_its_path(results):
    assert read_image_record(results.folder / "sub/a.png")["input"] == CAT
    assert read_image_record(results.folder / "other.png") is None
    assert json.loads(next((results.folder / ".records").glob("*.json")).read_text())["settings"]["steps"] == 3
