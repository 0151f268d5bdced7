"""The label loop on a small store: shards, resume, stale groups, one more metric, bad input."""

import re

import numpy as np
import pytest
import torch
from labelling import COUNT, SIDE, Decoder, gt_path, label, labeller, store, suites, write_group  # noqa: F401 - fixtures
from PIL import Image

from dp2osr.errors import UserError
from dp2osr.preference.groups import PreferenceGroups
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.config import MetricSpec, RewardConfig
from dp2osr.rewards.label import pair_gt
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.table import read_columns, read_scores


def test_scores_are_each_metric_of_each_candidate(store, suites, gt_path, tmp_path):
    label(store, suites["full"], gt_path, tmp_path / "scores.parquet")
    table = read_scores(tmp_path / "scores.parquet")
    assert table.image_ids == ["a", "b", "c", "d"] and table.metadata["candidates"] == store.settings
    assert table.lower_better == {"gmsd": True, "nlpd": True, "piqe": True}
    for row, image_id in enumerate(table.image_ids):
        gt = torch.tensor(np.array(Image.open(gt_path / f"{image_id}.png"))).permute(2, 0, 1) / 255
        images = Decoder()(store.read(image_id))
        for candidate, image in enumerate(images):
            alone = suites["full"].score(image[None], gt)
            for name, value in alone.items():
                assert table.scores[name][row, candidate] == pytest.approx(value[0], abs=1e-5)
        assert table.gt_scores["piqe"][row] == pytest.approx(suites["nr"].score(gt[None])["piqe"][0], abs=1e-5)
    columns, _ = read_columns(tmp_path / "scores.parquet")
    assert np.isnan(columns["gmsd"][columns["candidate"] == -1]).all()
    assert not (tmp_path / "scores.parquet.parts").exists()


def test_one_and_two_processes_write_the_same_bytes(store, suites, gt_path, tmp_path):
    label(store, suites["full"], gt_path, tmp_path / "one.parquet")
    shards = [labeller(store, suites["full"], gt_path, tmp_path / "two.parquet") for _ in range(2)]
    for rank, worker in enumerate(shards):
        worker.score_missing(store.ids()[rank::2], show_progress=False)
    assert [worker.decode.decoded for worker in shards] == [["a", "c"], ["b", "d"]]
    shards[0].merge()
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_a_second_job_that_scores_a_metric_otherwise_is_refused(store, suites, gt_path, tmp_path):
    first, same, more, other = (labeller(store, suites[name], gt_path, tmp_path / "scores.parquet") for name in ("nr", "nr", "full", "nr"))
    other.wanted = {name: {**about, "precision": "bf16"} for name, about in other.wanted.items()}
    for job in (first, same, more):
        job.claim()
    with pytest.raises(UserError, match="another job makes piqe in scores.parquet with other settings; wait for its end"):
        other.claim()
    for job in (first, same, more):
        job.locks.leave()
    other.claim()
    other.locks.leave()
    assert not (tmp_path / ".locks").exists()


def test_an_interrupted_run_continues_and_a_complete_one_does_nothing(store, suites, gt_path, tmp_path):
    output = tmp_path / "scores.parquet"
    with pytest.raises(KeyboardInterrupt):
        label(store, suites["full"], gt_path, output, decoder=Decoder(fail_after=2))
    assert not output.exists() and sorted(path.name for path in (tmp_path / "scores.parquet.parts").iterdir()) == ["a.parquet", "b.parquet"]
    decoder, written = label(store, suites["full"], gt_path, output)
    assert decoder.decoded == ["c", "d"] and written
    label(store, suites["full"], gt_path, tmp_path / "straight.parquet")
    assert output.read_bytes() == (tmp_path / "straight.parquet").read_bytes()
    before = output.stat().st_mtime_ns
    decoder, written = label(store, suites["full"], gt_path, output)
    assert decoder.decoded == [] and not written and output.stat().st_mtime_ns == before


def test_a_changed_group_or_gt_is_scored_again(store, suites, gt_path, tmp_path):
    output = tmp_path / "scores.parquet"
    label(store, suites["full"], gt_path, output)
    old = read_scores(output).scores["gmsd"]
    write_group(store, "b", seed=99)
    Image.new("RGB", (SIDE, SIDE), "gray").save(gt_path / "d.png")
    decoder, written = label(store, suites["full"], gt_path, output)
    assert decoder.decoded == ["b", "d"] and written
    changed = (read_scores(output).scores["gmsd"] != old).any(axis=1)
    assert changed.tolist() == [False, True, False, True]


def test_candidates_of_other_settings_are_all_scored_again(store, suites, gt_path, tmp_path):
    label(store, suites["full"], gt_path, tmp_path / "scores.parquet")
    store.settings = {**store.settings, "align_method": "nofix"}
    assert label(store, suites["full"], gt_path, tmp_path / "scores.parquet")[0].decoded == ["a", "b", "c", "d"]


def test_one_more_metric_or_group_costs_that_alone(store, suites, gt_path, tmp_path):
    output = tmp_path / "scores.parquet"
    label(store, suites["full"], gt_path, output)
    old = read_scores(output)
    asked = []
    spy = MetricSuite([suites["more"].specs[name] for name in suites["more"].specs])
    score = spy.score
    spy.score = lambda *args, names, **kwargs: asked.append(tuple(names)) or score(*args, names=names, **kwargs)
    label(store, spy, gt_path, output)
    assert set(asked) == {("psnr",)}
    new = read_scores(output)
    np.testing.assert_array_equal(new.scores["gmsd"], old.scores["gmsd"])
    assert np.isfinite(new.scores["psnr"]).all()
    label(store, suites["full"], gt_path, output)
    assert "psnr" in read_scores(output).scores  # asking for less forgets nothing
    write_group(store, "e", seed=5)
    Image.new("RGB", (SIDE, SIDE), "gray").save(gt_path / "e.png")
    assert label(store, suites["full"], gt_path, output)[0].decoded == ["e"]
    assert read_scores(output).image_ids == ["a", "b", "c", "d", "e"]


def test_nr_metrics_need_no_gt(store, suites, tmp_path):
    label(store, suites["nr"], None, tmp_path / "scores.parquet")
    table = read_scores(tmp_path / "scores.parquet")
    assert table.scores["piqe"].shape == (4, COUNT) and table.gt_scores == {}


def test_gt_missing_or_not_given(store, suites, gt_path):
    (gt_path / "c.png").unlink()
    with pytest.raises(UserError, match="no GT for 1 of 4 images: c;"):
        pair_gt(gt_path, store.ids(), suites["full"].modes)
    with pytest.raises(UserError, match="gmsd, nlpd compare with the GT"):
        pair_gt(None, store.ids(), suites["full"].modes)


def test_gt_of_another_size_is_named(store, suites, gt_path, tmp_path):
    Image.new("RGB", (SIDE + 4, SIDE)).save(gt_path / "b.png")
    with pytest.raises(UserError, match=f"b.png: the GT is {SIDE + 4} x {SIDE} pixels.*'b' are {SIDE} x {SIDE}"):
        label(store, suites["full"], gt_path, tmp_path / "scores.parquet")


def broken_from(suite, name, after):
    """The metric gives NaN for the candidate that follows its first `after` images."""
    metric, calls = suite._metrics[name], []

    def broken(images, *gt):
        values = metric(images, *gt).flatten().clone()
        for index in range(len(images)):
            calls.append(index)
            if len(calls) == after + 1:
                values[index] = torch.nan
        return values

    broken.forget = metric.forget
    suite._metrics[name] = broken


def test_nan_is_kept_and_told_and_the_rest_goes_on(store, gt_path, tmp_path, capsys):
    suite = MetricSuite([MetricSpec("gmsd"), MetricSpec("piqe")], batches=Batches(2))
    broken_from(suite, "piqe", 5)  # the second group's second candidate: 3 candidates + GT before it
    worker = labeller(store, suite, gt_path, tmp_path / "scores.parquet")
    worker.score_missing(store.ids(), show_progress=False)
    assert worker.merge() and worker.bad_groups() == ["b"]
    captured = capsys.readouterr()
    assert "warning: metric 'piqe' gives nan for image 'b', candidate 1" in captured.out + captured.err
    table = read_scores(tmp_path / "scores.parquet")
    assert np.argwhere(np.isnan(table.scores["piqe"])).tolist() == [[1, 1]] and np.isfinite(table.scores["gmsd"]).all()
    groups = PreferenceGroups(store, table, RewardConfig("r", [MetricSpec("gmsd")], [MetricSpec("piqe")]), None, 1)
    assert groups.image_ids == ["a", "c", "d"] and len(groups.rewards) == 3
    assert groups.warnings() == ["1 of 4 groups have a NaN or infinite score and are passed over (b)"]
    assert len(PreferenceGroups(store, table, RewardConfig("r", [MetricSpec("gmsd")], []), None, 1)) == 4
    decoder, _ = label(store, suite, gt_path, tmp_path / "scores.parquet")  # it is tried again, alone
    assert decoder.decoded == ["b"] and np.isfinite(read_scores(tmp_path / "scores.parquet").scores["piqe"]).all()


def test_strict_stops_at_nan_and_writes_nothing_of_its_group(store, gt_path, tmp_path):
    suite = MetricSuite([MetricSpec("gmsd"), MetricSpec("piqe")], batches=Batches(2))
    broken_from(suite, "piqe", 4)
    with pytest.raises(UserError, match="'piqe' gives nan for image 'b', candidate 0"):
        label(store, suite, gt_path, tmp_path / "scores.parquet", strict=True)
    assert [path.name for path in (tmp_path / "scores.parquet.parts").iterdir()] == ["a.parquet"]
    assert not (tmp_path / "scores.parquet").exists()


def test_scores_of_other_candidates_are_not_trained_on(store, suites, gt_path, tmp_path):
    label(store, suites["nr"], gt_path, tmp_path / "scores.parquet")
    store.settings = {**store.settings, "seed": 1}
    with pytest.raises(UserError, match=r"scores are of candidates with other settings \(seed\)"):
        PreferenceGroups(store, read_scores(tmp_path / "scores.parquet"), RewardConfig("r", [], [MetricSpec("piqe")]), None, 1)


def test_without_a_finite_group_there_is_nothing_to_train_on(store, suites, gt_path, tmp_path):
    label(store, suites["nr"], gt_path, tmp_path / "scores.parquet")
    table = read_scores(tmp_path / "scores.parquet")
    table.scores["piqe"][:, 0] = np.inf
    with pytest.raises(UserError, match="every group has a NaN or infinite score"):
        PreferenceGroups(store, table, RewardConfig("r", [], [MetricSpec("piqe")]), None, 1)


def test_what_a_draw_does_to_the_ranking_is_reported(store, suites, gt_path, tmp_path, capsys):
    suite = MetricSuite([MetricSpec("piqe", draws=True)])
    suite._metrics["piqe"].metric = lambda images: torch.rand(len(images))
    worker = labeller(store, suite, gt_path, tmp_path / "scores.parquet")
    worker.score_missing(store.ids(), show_progress=False)
    worker.report_draws("a")
    assert re.search(r"candidates of 'a' that another random draw ranks the other way round: piqe \d+\.\d%", capsys.readouterr().out)
    plain = labeller(store, suites["full"], gt_path, tmp_path / "plain.parquet")
    plain.score_missing(store.ids()[:1], show_progress=False)
    plain.report_draws("a")
    assert capsys.readouterr().out == ""


def test_a_table_of_another_pyiqa_is_not_written_over(store, suites, gt_path, tmp_path, monkeypatch):
    label(store, suites["full"], gt_path, tmp_path / "scores.parquet")
    before = (tmp_path / "scores.parquet").read_bytes()
    monkeypatch.setattr("dp2osr.rewards.known_scores.pyiqa_version", lambda: "9.9")
    with pytest.raises(UserError, match=r"scores.parquet: was scored with pyiqa 0\..*, and this is 9\.9.*--output"):
        labeller(store, suites["full"], gt_path, tmp_path / "scores.parquet").check_version()
    assert (tmp_path / "scores.parquet").read_bytes() == before


def test_an_absent_latents_file_is_named(store, suites, gt_path, tmp_path):
    (store.groups / "c" / "latents.safetensors").unlink()
    with pytest.raises(UserError, match="c/latents.safetensors: cannot be read"):
        label(store, suites["full"], gt_path, tmp_path / "scores.parquet")
