"""The label loop on a small store: shards, resume, stale groups, one more metric, bad input."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dp2osr.errors import UserError
from dp2osr.rewards import label as label_module
from dp2osr.rewards.config import MetricSpec
from dp2osr.rewards.label import Labeller, label_candidates, pair_gt
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.table import read_columns, read_scores
from dp2osr.sampling.store import CandidateGroup, CandidateStore

COUNT, SIDE = 3, 48


def write_group(store, image_id, seed):
    """A group whose latents are its images."""
    shutil.rmtree(store.groups / image_id, ignore_errors=True)
    latents = torch.rand(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    store.write(CandidateGroup(image_id, latents, "", Image.new("RGB", (12, 12)), list(range(COUNT)), 4))


class Decoder:
    """Stands in for the autoencoder; counts the groups and can fail after some."""

    def __init__(self, fail_after=None):
        self.decoded, self.fail_after = [], fail_after

    def __call__(self, group):
        if len(self.decoded) == self.fail_after:
            raise KeyboardInterrupt
        self.decoded.append(group.image_id)
        return group.latents.float().mul(255).round().div(255)


@pytest.fixture(scope="module")
def suites():
    names = {"full": ["gmsd", "nlpd", "piqe"], "more": ["gmsd", "nlpd", "piqe", "psnr"], "nr": ["piqe"]}
    return {key: MetricSuite([MetricSpec(name) for name in metrics]) for key, metrics in names.items()}


@pytest.fixture
def store(tmp_path):
    store = CandidateStore(tmp_path / "candidates", {"seed": 0, "num_candidates": COUNT, "align_method": "adain"})
    for seed, image_id in enumerate(["b", "a", "c", "d"]):
        write_group(store, image_id, seed)
    return store


@pytest.fixture
def gt_path(tmp_path, store):
    folder = tmp_path / "gt"
    folder.mkdir()
    for index, image_id in enumerate(store.ids()):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{image_id}.png")
    return folder


def labeller(store, suite, gt_path, output, decoder=None, batch_size=2):
    gt_paths = pair_gt(gt_path, store.ids(), suite.modes)
    return Labeller(store, suite, gt_paths, output, decoder or Decoder(), batch_size)


def label(*args, **kwargs):
    """One process labels everything; returns (its decoder, whether the table was written)."""
    worker = labeller(*args, **kwargs)
    worker.score_missing(worker.store.ids(), show_progress=False)
    return worker.decode, worker.merge()


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
    spy.score = lambda images, gt, image_id, candidates, names: asked.append(tuple(names)) or score(images, gt, image_id, candidates, names)
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
    with pytest.raises(UserError, match="no GT for 1 of 4 candidate groups, the first is 'c'"):
        pair_gt(gt_path, store.ids(), suites["full"].modes)
    with pytest.raises(UserError, match="gmsd, nlpd compare with the GT"):
        pair_gt(None, store.ids(), suites["full"].modes)


def test_gt_of_another_size_is_named(store, suites, gt_path, tmp_path):
    Image.new("RGB", (SIDE + 4, SIDE)).save(gt_path / "b.png")
    with pytest.raises(UserError, match=f"b.png: the GT is {SIDE + 4} x {SIDE} pixels.*'b' are {SIDE} x {SIDE}"):
        label(store, suites["full"], gt_path, tmp_path / "scores.parquet")


def test_nan_stops_the_group_and_writes_nothing_of_it(store, gt_path, tmp_path):
    suite = MetricSuite([MetricSpec("gmsd"), MetricSpec("piqe")])
    piqe, calls = suite._metrics["piqe"], []

    def broken(images):
        calls.append(len(images))
        return piqe(images) * (torch.nan if sum(calls) > 4 else 1)  # the second group's first batch: 3 candidates + GT before it

    suite._metrics["piqe"] = broken
    with pytest.raises(UserError, match="'piqe' gives nan for image 'b', candidate 0"):
        label(store, suite, gt_path, tmp_path / "scores.parquet")
    assert [path.name for path in (tmp_path / "scores.parquet.parts").iterdir()] == ["a.parquet"]
    assert not (tmp_path / "scores.parquet").exists()


def test_an_absent_latents_file_is_named(store, suites, gt_path, tmp_path):
    (store.groups / "c" / "latents.safetensors").unlink()
    with pytest.raises(UserError, match="c/latents.safetensors: cannot be read"):
        label(store, suites["full"], gt_path, tmp_path / "scores.parquet")


def test_label_candidates_from_config_to_table(store, gt_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(label_module, "LazyDecoder", lambda store, device: Decoder())
    config = tmp_path / "small.yaml"
    config.write_text("fr: [gmsd]\nnr: [piqe]\n")
    for last_line in ("gmsd, piqe, psnr", "nothing to do"):
        label_candidates(store.folder, gt_path, config, ["psnr", "piqe"])
        assert last_line in capsys.readouterr().out
    assert set(read_scores(store.folder / "scores.parquet").scores) == {"gmsd", "piqe", "psnr"}


def test_empty_store(tmp_path, gt_path):
    CandidateStore(tmp_path / "empty", {"seed": 0})
    with pytest.raises(UserError, match="empty: holds no candidate group"):
        label_candidates(tmp_path / "empty", gt_path, "embedded")
