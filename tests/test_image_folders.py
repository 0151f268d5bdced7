"""Folders of SR images: pairing by name, and mistakes that are named before anything is scored."""

import json
import sys

import pytest
import yaml
from conftest import ROOT, assert_one_clear_line, run_program, save_noise
from sr_folders import SIDE, photographs, protocol, rows_of  # noqa: F401 - fixtures

from dp2osr.errors import UserError
from dp2osr.evaluation.image_folders import pair_images, parse_folders
from dp2osr.evaluation.published import load_published

sys.path.insert(0, str(ROOT / "scripts"))


def test_samples_are_paired_with_their_image(photographs):
    folders = parse_folders([f"soft={photographs / 'soft'}", f"sharp={photographs / 'sharp'}", f"sharp={photographs / 'gt'}"])
    methods, _ = pair_images(folders, photographs / "gt")
    assert [len(next(iter(method.samples.values()))) for method in methods] == [2, 2]
    assert [path.parent.name for path in methods[1].samples["image3"]] == ["sharp", "gt"]
    assert [path.name for path in methods[0].samples["image3"]] == ["image3_00.png", "image3_01.png"]


def test_of_some_images_alone_another_image_is_no_sample(tmp_path):
    for name in ("photo", "photo_01", "other"):
        save_noise(tmp_path / f"{name}.png", (8, 8))
    [method], gt = pair_images({"sr": [tmp_path]}, tmp_path, only=["photo"])
    assert method.samples == {"photo": [tmp_path / "photo.png"]} and gt == {"photo": tmp_path / "photo.png"}
    with pytest.raises(UserError, match="no GT for 1 of 1 images: nobody"):
        pair_images({"sr": [tmp_path]}, tmp_path, only=["nobody"])


def test_without_gt_the_lr_images_tell_samples_from_images(photographs):
    [method], gt = pair_images({"soft": [photographs / "soft"]}, lr_path=photographs / "gt")
    assert {len(paths) for paths in method.samples.values()} == {2} and len(method.samples) == 20 and not gt
    [method], _ = pair_images({"soft": [photographs / "soft"]})
    assert {len(paths) for paths in method.samples.values()} == {1} and len(method.samples) == 40


def test_names_that_do_not_match_are_listed_on_both_sides(photographs, tmp_path):
    for path in sorted((photographs / "gt").iterdir())[:3]:
        (tmp_path / f"{path.stem}_sr.png").write_bytes(path.read_bytes())
    flags = ["--images", f"mine={tmp_path}", "--gt_path", photographs / "gt", "--output_dir", tmp_path / "out"]
    done = run_program("scripts/evaluate.py", *flags, check=False)
    assert_one_clear_line(done, "only in mine: image0_sr, image10_sr, image1_sr", "not in mine: image0, image1", "and 12 more")


def test_sizes_that_differ_are_named_with_both_sizes(photographs, tmp_path):
    for path in (photographs / "gt").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_noise(tmp_path / "image7.png", (80, SIDE))
    flags = ["--images", f"mine={tmp_path}", "--gt_path", photographs / "gt", "--output_dir", tmp_path / "out"]
    done = run_program("scripts/evaluate.py", *flags, "--exclude_metrics", "vif", "vsi", "fsim", "ssim", "nlpd", "brisque", check=False)
    assert_one_clear_line(done, "image7.png", "80 x 96", "96 x 96")
    assert not (tmp_path / "out/scores.jsonl").exists()  # found before the first of the other images is scored


@pytest.mark.parametrize(
    ("flags", "mentions"),
    [
        (["--images", "mine"], ["NAME=DIR"]),
        (["--images", "mine=nowhere"], ["nowhere"]),
        (["--images", "a=preset/test/gt", "--published", "table9"], ["table9", "table1_realsr"]),
        (["--images", "a=preset/test/gt", "--protocol", "offlin"], ["offlin", "did you mean", "offline"]),
        (["--images", "a=preset/test/gt", "--candidates", "a=b"], ["--candidates", "give one of the two"]),
        (["--images", "a=preset/test/gt", "--crop_suffix", "_("], ["--crop_suffix", "not a regular expression"]),
        (["--candidates", "a=b"], ["--gt_path"]),
    ],
)
def test_a_mistake_is_one_clear_line(flags, mentions, tmp_path):
    assert_one_clear_line(run_program("scripts/evaluate.py", *flags, "--output_dir", tmp_path / "out", check=False), *mentions)


def test_one_folder_is_not_two_samples_and_a_file_is_no_folder(photographs, tmp_path):
    folder = photographs / "sharp"
    (tmp_path / "file").write_text("", encoding="utf-8")
    twice = ["--images", f"a={folder}", f"a={folder}/.", "--gt_path", photographs / "gt", "--output_dir", tmp_path / "out"]
    assert_one_clear_line(run_program("scripts/evaluate.py", *twice, check=False), "given twice")
    once = ["--images", f"a={folder}", "--gt_path", photographs / "gt", "--output_dir", tmp_path / "file"]
    assert_one_clear_line(run_program("scripts/evaluate.py", *once, check=False), "file: cannot be made a folder")


@pytest.mark.parametrize("change", [{"spreads": [1]}, {"methods": {"a": {"psnr": float("nan")}}}, {"methods": [1]}])
def test_a_published_table_of_another_form_is_named(change, tmp_path):
    content = {"metrics": ["psnr"], "methods": {"a": {"psnr": 1.0}}} | change
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match="table.yaml: "):
        load_published(tmp_path / "table.yaml")


def test_lines_that_are_no_scores_are_passed_over(photographs, protocol, tmp_path):
    flags = ["--images", f"sharp={photographs / 'sharp'}", "--protocol", protocol, "--output_dir", tmp_path]
    run_program("scripts/evaluate.py", *flags)
    before, cache = rows_of(tmp_path / "table.csv"), tmp_path / "scores.jsonl"
    cache.write_bytes(b'{}\n[1]\n\xff\xfe\n{"image": "x", "gt": "", "scores": 3}\n' + cache.read_bytes())
    run_program("scripts/evaluate.py", *flags, "--published", "table1_realsr")
    assert rows_of(tmp_path / "table.csv") == before


def test_without_gt_the_no_reference_metrics_are_left(photographs, protocol, tmp_path):
    flags = ["--images", f"sharp={photographs / 'sharp'}", "--protocol", protocol, "--output_dir", tmp_path]
    run_program("scripts/evaluate.py", *flags)
    assert {row["metric"] for row in rows_of(tmp_path / "table.csv")} == {"piqe"}
    assert set(json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))["metrics"]) == {"piqe"}
