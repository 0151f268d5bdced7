"""Best of M: the sample that the reward ranks first is what is written, its scores are in a table, a stopped run goes on."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import KINDS, ROOT, assert_one_clear_line, one_kind, run_program
from fabricated import naive_rewards
from PIL import Image
from programs import run_ranks

from dp2osr.cli import parse
from dp2osr.data.images import pil_to_tensor, read_image
from dp2osr.errors import UserError
from dp2osr.rewards import best_of
from dp2osr.rewards.best_of import BestOf, restore_images
from dp2osr.rewards.config import MetricSpec, RewardConfig, load_reward_config
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.settings import BestOfSettings

QUICK = ["--num_inference_steps", "1", "--guidance_scale", "1", "--upscale", "4"]
M = 4


@pytest.fixture
def images(tmp_path):
    """Two LR photographs with their GT."""
    for side in ("lr", "gt"):
        (tmp_path / side).mkdir()
        for path in sorted((ROOT / f"preset/test/{side}").glob("*.png"))[:2]:
            shutil.copy(path, tmp_path / side)
    (tmp_path / "hybrid.yaml").write_text("fr: [gmsd]\nnr: [piqe]\n")
    return tmp_path


def flags(kind, images, *more, out="out"):
    return [*kind.model_flags, *QUICK, "--image_path", images / "lr", "--output_dir", images / out, *more]


def restored(kind, images, *more, out="out"):
    restore_images(parse(BestOfSettings, flags(kind, images, *more, out=out)))
    return images / out


def best(kind, images, *more, out="out"):
    return restored(kind, images, "--keep", "best", "--sample_times", M, *more, out=out)


def rows(folder):
    return list(csv.DictReader((folder / "best.csv").open(encoding="utf-8")))


def test_the_sample_that_the_reward_ranks_first_is_the_one_that_is_written(kind, images):
    hybrid = ["--reward_config", images / "hybrid.yaml", "--gt_path", images / "gt"]
    out, every = best(kind, images, *hybrid), restored(kind, images, "--sample_times", M, out="all")
    config = load_reward_config(images / "hybrid.yaml")
    suite = MetricSuite(config.metrics)
    for path in sorted((images / "lr").glob("*.png")):
        samples = [every / f"{path.stem}_{m:02d}.png" for m in range(M)]
        pixels = [pil_to_tensor(read_image(sample))[None] for sample in samples]
        gt = pil_to_tensor(read_image(images / "gt" / path.name))
        raw = {name: np.array([[suite.score(one, gt)[name][0] for one in pixels]]) for name in ("gmsd", "piqe")}
        rewards = naive_rewards({"x": raw}, config, suite.lower_better)["x"][0]
        of_image = [row for row in rows(out) if row["image"] == path.stem]
        assert [row["sample"] for row in of_image] == [str(m) for m in range(M)]
        assert np.allclose([float(row["reward"]) for row in of_image], rewards, atol=1e-5)  # of samples that differ little
        assert np.allclose([float(row["gmsd"]) for row in of_image], raw["gmsd"][0], atol=1e-6)
        assert [row["kept"] for row in of_image] == ["1" if m == rewards.argmax() else "0" for m in range(M)]
        assert (out / path.name).read_bytes() == samples[rewards.argmax()].read_bytes()
    assert sorted(path.name for path in out.glob("*.png")) == sorted(path.name for path in (images / "lr").glob("*.png"))


@one_kind
def test_a_stopped_run_goes_on_and_leaves_nothing_half_written(kind, images, monkeypatch, capsys):
    chosen = []

    def stop(self, image_id, *more):
        chosen.append(image_id)
        if len(chosen) == 2:
            raise KeyboardInterrupt
        return whole(self, image_id, *more)

    whole = BestOf.__call__
    monkeypatch.setattr(BestOf, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        best(kind, images)
    first = images / f"out/{chosen[0]}.png"
    written = first.stat().st_mtime_ns
    assert not list((images / "out").rglob("*.part")) and not (images / "out/best.csv").exists()
    monkeypatch.undo()
    out = best(kind, images)
    assert "1 image written, 1 already there" in capsys.readouterr().out and first.stat().st_mtime_ns == written
    once = (best(kind, images, out="once") / "best.csv").read_text()
    assert (out / "best.csv").read_text() == once and len(rows(out)) == 2 * M
    (out / "best.csv").unlink()
    assert (best(kind, images) / "best.csv").read_text() == once


@one_kind
def test_another_reward_or_gt_makes_other_results(kind, images, capsys):
    hybrid = ["--reward_config", images / "hybrid.yaml", "--gt_path", images / "gt"]
    out = best(kind, images, *hybrid)
    with pytest.raises(UserError, match="reward is 'hybrid .*' there and 'nr_only .*' here"):
        best(kind, images)
    with pytest.raises(UserError, match="keep is 'best' there and 'all' here"):
        restored(kind, images)
    name = sorted(path.name for path in out.glob("*.png"))[0]
    Image.open(images / "gt" / name).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(images / "gt" / name)
    best(kind, images, *hybrid)
    assert "1 image written, 1 already there" in capsys.readouterr().out
    record = json.loads((out / f".records/{name}.json").read_text())
    assert record["choice"]["sample"] == next(int(row["sample"]) for row in rows(out) if row["image"] == name[:-4] and row["kept"] == "1")


@one_kind
def test_results_from_before_there_was_a_choice_are_kept(kind, images, capsys):
    out = restored(kind, images)
    for path in [out / "settings.json", *(out / ".records").glob("*.json")]:
        content = json.loads(path.read_text())
        assert content.get("settings", content).pop("keep") == "all"
        path.write_text(json.dumps(content))
    restored(kind, images)
    assert "0 images written, 2 already there" in capsys.readouterr().out


@one_kind
def test_two_ranks_share_the_images_and_write_one_table(kind, images):
    words = [kind.test_program, *flags(kind, images, "--keep", "best", "--sample_times", M)]
    done = run_ranks(2, *words)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr[-2000:]
    assert sum("2 images written" in process.stdout for process in done) == 1
    once = best(kind, images, out="once")
    assert (images / "out/best.csv").read_text() == (once / "best.csv").read_text()
    assert all((images / "out" / path.name).read_bytes() == path.read_bytes() for path in once.glob("*.png"))


def refused(words, mentions):
    with pytest.raises(UserError, match=mentions):
        restore_images(parse(BestOfSettings, words))


def test_what_cannot_be_is_one_line_before_anything_is_sampled(images, monkeypatch):
    monkeypatch.setattr(best_of, "restore_folder", None)
    kind = KINDS["sd2"]
    refused(flags(kind, images, "--keep", "best"), "--sample_times is 1")
    refused(
        flags(kind, images, "--gt_path", "x", "--reward_config", "y"), "--reward_config, --gt_path: would do nothing without --keep best"
    )
    several = ["--keep", "best", "--sample_times", "2"]
    refused(flags(kind, images, *several, "--reward_config", "embedded"), "dp2o_lpips, .* compare with the GT; pass --gt_path")
    refused(flags(kind, images, *several, "--gt_path", images / "gt"), "reward 'nr_only' compares nothing with a GT")
    refused(flags(kind, images, *several, "--reward_config", "nr_onyl"), "did you mean 'nr_only'")
    monkeypatch.undo()
    Image.new("RGB", (64, 64)).save(sorted((images / "gt").glob("*.png"))[0])
    hybrid = [*several, "--reward_config", images / "hybrid.yaml", "--gt_path", images / "gt"]
    refused(flags(kind, images, *hybrid), r"the GT of 1 images has another size.*\(64 x 64, its results are 128 x 128\)")
    assert not (images / "out").exists()


@one_kind
def test_a_table_of_the_users_is_not_overwritten(kind, images):
    (images / "out").mkdir()
    (images / "out/best.csv").write_text("mine")
    with pytest.raises(UserError, match="best.csv: there, and not written by this program"):
        best(kind, images)
    assert (images / "out/best.csv").read_text() == "mine"


def scored_by(values):
    """A suite whose scores are given."""

    class Suite:
        modes, lower_better = dict.fromkeys(values, "NR"), dict.fromkeys(values, False)

        def score(self, images, gt, image_id, strict):
            return {name: np.array(scores) for name, scores in values.items()}

    chooser = BestOf.__new__(BestOf)
    chooser.suite, chooser.gt_paths = Suite(), {}
    chooser.config = RewardConfig("x", [], [MetricSpec(name) for name in values])
    return chooser


def test_a_sample_with_a_nan_score_is_reported_and_not_chosen(capsys):
    number, choice = scored_by({"a": [9.0, 1.0, 2.0], "b": [float("nan"), 1.0, 2.0]})("cat", np.zeros(3), [1, 2, 3])
    assert number == 2 and choice["scores"] == {"a": [9.0, 1.0, 2.0], "b": [None, 1.0, 2.0], "reward": [None, 0.0, 1.0]}
    assert "warning: metric 'b' gives nan for image 'cat', candidate 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="metric 'b' gives inf for image 'cat'"):
        scored_by({"b": [float("inf")] * 3})("cat", np.zeros(3), [1, 2, 3])


def test_the_program_takes_the_flags(images):
    done = run_program("test_flux_controlnet.py", *flags(KINDS["flux"], images, "--keep", "best"), check=False)
    assert_one_clear_line(done, "--keep best", "--sample_times")
