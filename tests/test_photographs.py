"""Photographs of a manifest: where they come from, how they are cut, and that no photograph is in two splits."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp2osr.data.photographs import fetch_photographs, near_duplicates, open_photograph, read_manifest
from dp2osr.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "configs/photographs.csv"


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def package(tmp_path):
    """An unpacked Debian package with a plain picture, one in an archive, and a cut-out object."""
    root = tmp_path / "packages/pictures"
    root.mkdir(parents=True)
    noise((60, 40)).save(root / "plain.png")
    with zipfile.ZipFile(root / "textures.pk3", "w") as archive:
        archive.write(root / "plain.png", "walls/brick.png")
    cut_out = np.zeros((40, 40, 4), np.uint8)
    cut_out[10:30, 10:30] = (200, 100, 0, 255)
    Image.fromarray(cut_out).save(root / "object.png")
    return tmp_path / "packages"


def row(**more):
    return {"stem": "a", "split": "train", "source": "deb:pictures", "member": "plain.png", "short_side": "40", "prompt": "noise", **more}


def write_manifest(path, *rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_picture_inside_a_zip_archive_is_the_same_as_outside_of_it(package):
    plain, packed = open_photograph(row(), package), open_photograph(row(member="textures.pk3!walls/brick.png"), package)
    assert np.array_equal(plain, packed)


def test_a_box_is_cut_before_the_picture_is_reduced(package):
    whole, cut = open_photograph(row(), package), open_photograph(row(box="10:5:50:35"), package)
    assert np.array_equal(cut, np.asarray(whole)[5:35, 10:50])


def test_a_cut_out_object_gets_a_background_of_its_own_colour(package):
    pixels = np.asarray(open_photograph(row(member="object.png"), package)).astype(int)
    assert np.abs(pixels - (200, 100, 0)).max() <= 1


def test_a_photograph_that_changes_its_split_is_in_one_folder_only(package, tmp_path):
    out = tmp_path / "out"
    assert fetch_photographs([row(), row(stem="b")], out, package) == (2, 0)
    assert fetch_photographs([row(), row(stem="b")], out, package) == (0, 2)
    assert fetch_photographs([row(split="test"), row(stem="b")], out, package) == (1, 1)
    assert [path.relative_to(out).as_posix() for path in sorted(out.glob("*/*.png"))] == ["test/a.png", "train/b.png"]


def test_a_photograph_whose_size_changes_is_made_anew_and_one_that_left_the_manifest_goes(package, tmp_path):
    out = tmp_path / "out"
    fetch_photographs([row(), row(stem="b")], out, package)
    fetch_photographs([row(short_side="20")], out, package)
    assert [path.name for path in out.glob("*/*.png")] == ["a.png"]
    assert Image.open(out / "train/a.png").size == (30, 20)


def test_a_picture_in_two_sizes_or_mirrored_is_found(tmp_path):
    smooth = noise((8, 6)).resize((80, 60), Image.Resampling.BICUBIC)
    pictures = {"a": smooth, "b": smooth.resize((40, 30)), "c": smooth.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "d": noise((80, 60), 1)}
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    found = near_duplicates([tmp_path / f"{name}.png" for name in pictures])
    assert {(first.stem, second.stem) for first, second, *_ in found} == {("a", "b"), ("a", "c"), ("b", "c")}


@pytest.mark.parametrize(
    "more, word",
    [
        ({"source": "ftp:pictures"}, "deb:PACKAGE"),
        ({"short_side": "big"}, "short_side"),
        ({"box": "1:2:3"}, "box"),
        ({"stem": "../a"}, "plain names"),
    ],
)
def test_a_row_of_no_meaning_is_refused_by_name(tmp_path, more, word):
    with pytest.raises(UserError, match=word):
        read_manifest(write_manifest(tmp_path / "m.csv", {**row(), "box": "", **more}))


def test_a_stem_of_two_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match="two rows"):
        read_manifest(write_manifest(tmp_path / "m.csv", row(), row(split="test")))


def test_a_missing_member_and_a_box_outside_the_picture_are_refused(package):
    for bad in ({"member": "none.png"}, {"member": "textures.pk3!none.png"}, {"box": "0:0:99:99"}):
        with pytest.raises(UserError, match="^a: "):
            open_photograph(row(**bad), package)


def test_the_manifest_has_enough_of_each_split_and_no_source_of_test_elsewhere():
    rows = read_manifest(MANIFEST)
    count = {split: sum(one["split"] == split for one in rows) for split in ("train", "pref", "val", "test")}
    assert count["train"] >= 500 and count["pref"] >= 24 and count["val"] >= 24 and count["test"] >= 48
    sources = {held: {one["source"] for one in rows if (one["split"] == "test") == held} for held in (True, False)}
    assert not sources[True] & sources[False]
    assert len({(one["source"], one["member"], one["box"]) for one in rows}) == len(rows)


def test_every_photograph_has_tags_a_licence_and_a_credit():
    assert all(one["prompt"] and one["licence"] and one["credit"] for one in read_manifest(MANIFEST))
