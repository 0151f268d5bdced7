"""Test sets from what is distributed to pairs of one name and size, and manifests."""

import csv
import zipfile

import numpy as np
import pytest
from conftest import assert_one_clear_line, run_program, save_noise
from PIL import Image

from dp2osr.data import test_sets
from dp2osr.data.inputs import list_images
from dp2osr.data.test_sets import check_manifest, find_pairs, prepare, write_manifest
from dp2osr.errors import UserError


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    monkeypatch.setitem(test_sets.TEST_SETS, "RealSR", test_sets.TestSet(3, 16, True, "somewhere"))
    monkeypatch.setitem(test_sets.TEST_SETS, "RealLR200", test_sets.TestSet(2, None, False, "somewhere"))


def make_pairs(folder, lr="test_LR", gt="test_HR", ends=("", ""), size=16, count=3):
    for kind, end, scale in ((lr, ends[0], 1), (gt, ends[1], 4)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            save_noise(folder / kind / f"Canon_{index:03d}{end}.png", (scale * size, scale * size), seed=index + 10 * scale)
    return folder


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    ("lr", "gt", "ends"),
    [("test_LR", "test_HR", ("", "")), ("lq", "gt", ("", "")), ("Test/4", "Test/4", ("_LR4", "_HR")), ("LR", "HR", ("_x4", "_x1"))],
)
def test_the_ways_in_which_a_set_is_distributed(tmp_path, lr, gt, ends):
    source = make_pairs(tmp_path / "source" / "RealSR", lr, gt, ends)
    assert prepare("RealSR", tmp_path / "source", tmp_path / "data") == 3
    names = [path.name for path in list_images(tmp_path / "data/RealSR/lr")]
    assert names == ["Canon_000.png", "Canon_001.png", "Canon_002.png"] == [path.name for path in list_images(tmp_path / "data/RealSR/gt")]
    for kind, folder, end in (("lr", lr, ends[0]), ("gt", gt, ends[1])):
        copied = (tmp_path / "data/RealSR" / kind / "Canon_001.png").read_bytes()
        assert copied == (source / folder / f"Canon_001{end}.png").read_bytes()


def test_larger_images_are_cut_to_the_middle_of_both(tmp_path):
    source = make_pairs(tmp_path / "source", size=21)
    prepare("RealSR", source, tmp_path / "data")
    low, high = (pixels(tmp_path / f"data/RealSR/{kind}/Canon_002.png") for kind in ("lr", "gt"))
    assert low.shape == (16, 16, 3) and high.shape == (64, 64, 3)
    assert np.array_equal(low, pixels(source / "test_LR/Canon_002.png")[2:18, 2:18])
    assert np.array_equal(high, pixels(source / "test_HR/Canon_002.png")[8:72, 8:72])


def test_an_archive_is_as_good_as_a_folder_and_a_set_without_gt_is_its_images(tmp_path):
    make_pairs(tmp_path / "source", count=2)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in (tmp_path / "source/test_LR").iterdir():
            archive.write(path, f"RealLR200/lq/{path.name}")
        archive.writestr("RealLR200/readme.txt", "two photographs")
        archive.writestr("__MACOSX/RealLR200/lq/._Canon_000.png", "junk")
    assert prepare("RealLR200", tmp_path / "set.zip", tmp_path / "data") == 2
    assert sorted(path.name for path in (tmp_path / "data/RealLR200").iterdir()) == ["lr", "manifest.csv"]


@pytest.mark.parametrize(
    ("spoil", "mentions"),
    [
        (lambda folder: (folder / "test_LR/Canon_001.png").unlink(), ["no other half", "Canon_001"]),
        (lambda folder: save_noise(folder / "test_HR/Canon_001.png", (60, 64)), ["60 x 64", "16 x 16"]),
        (lambda folder: make_pairs(folder, count=4), ["4 images", "has 3", "--any_count"]),
        (lambda folder: make_pairs(folder / "more"), ["several sets", "more"]),
        (lambda folder: [path.unlink() for path in (folder / "test_LR").iterdir()], ["no LR and GT images"]),
        (lambda folder: (folder / "test_LR/Canon_001.png").write_bytes(b"x"), ["Canon_001.png", "not a readable image"]),
    ],
)
def test_a_set_that_is_not_whole_is_refused_and_what_was_there_stays(tmp_path, spoil, mentions):
    source = make_pairs(tmp_path / "source")
    prepare("RealSR", source, tmp_path / "data")
    spoil(source)
    with pytest.raises(UserError) as error:
        prepare("RealSR", source, tmp_path / "data")
    for mention in mentions:
        assert mention in str(error.value)
    assert len(list_images(tmp_path / "data/RealSR/gt")) == 3


@pytest.mark.parametrize("source", ["data/RealSR", "data/RealSR/original", "."])
def test_the_source_is_not_written_over(tmp_path, source):
    folder = make_pairs(tmp_path / source)
    with pytest.raises(UserError, match="would be lost"):
        prepare("RealSR", folder, tmp_path / "data")
    assert len(list_images(folder / "test_LR")) == 3


def test_a_folder_that_somebody_else_made_is_not_replaced(tmp_path):
    (tmp_path / "data/RealSR").mkdir(parents=True)
    (tmp_path / "data/RealSR/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="was not written by this program"):
        prepare("RealSR", make_pairs(tmp_path / "source"), tmp_path / "data")
    assert (tmp_path / "data/RealSR/notes.txt").exists()


def test_another_number_of_images_is_taken_where_that_is_asked(tmp_path):
    assert prepare("RealSR", make_pairs(tmp_path / "source", count=4), tmp_path / "data", any_count=True) == 4


def test_an_archive_that_is_cut_is_named(tmp_path):
    (tmp_path / "set.tar.gz").write_bytes(b"\x1f\x8b" + bytes(40))
    with pytest.raises(UserError, match=r"set.tar.gz: not a readable zip or tar archive"):
        prepare("RealSR", tmp_path / "set.tar.gz", tmp_path / "data")


def test_folders_are_told_apart_without_regard_to_case(tmp_path):
    pairs = find_pairs(make_pairs(tmp_path, "LR", "GT"))
    assert sorted(pairs) == ["Canon_000", "Canon_001", "Canon_002"] and pairs["Canon_000"][1].parent.name == "GT"


def test_a_manifest_names_what_is_different(tmp_path):
    for name in ("mine", "theirs"):
        make_pairs(tmp_path / name)
        write_manifest(tmp_path / name)
    check_manifest(tmp_path / "mine", tmp_path / "theirs/manifest.csv")
    save_noise(tmp_path / "mine/test_LR/Canon_001.png", (16, 16), seed=99)
    write_manifest(tmp_path / "mine")
    with pytest.raises(UserError, match="1 of 6 images .*test_LR/Canon_001.png"):
        check_manifest(tmp_path / "mine", tmp_path / "theirs/manifest.csv")
    with pytest.raises(UserError, match="not a manifest"):
        check_manifest(tmp_path / "mine", tmp_path / "nowhere.csv")


def test_a_manifest_of_photographs_is_trained_from(tmp_path):
    photographs = tmp_path / "photographs"
    for index, side in enumerate((96, 40, 80)):
        (photographs / f"by{index}").mkdir(parents=True)
        save_noise(photographs / f"by{index}" / f"photo{index}.png", (side, 96), seed=index)
    run_program("scripts/prepare_data.py", "HR", "--source", photographs, "--min_side", 64)
    rows = list(csv.DictReader((photographs / "manifest.csv").open(encoding="utf-8")))
    assert [(row["file"], row["width"]) for row in rows] == [("by0/photo0.png", "96"), ("by2/photo2.png", "80")]
    words = ["--image_path", photographs / "manifest.csv", "--output_dir", tmp_path / "pairs", "--crop_size", 64, "--num_workers", 1]
    run_program("scripts/make_lr_pairs.py", *words)
    assert [path.stem for path in list_images(tmp_path / "pairs/lr")] == ["photo0_00", "photo2_00"]
    (photographs / "by0/photo0.png").unlink()
    assert_one_clear_line(run_program("scripts/make_lr_pairs.py", *words, check=False), "1 of its 2 images are not there", "photo0.png")


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("name,size\na.png,3\n", encoding="utf-8")
    with pytest.raises(UserError, match="list.csv: not a manifest"):
        list_images(tmp_path / "list.csv")
