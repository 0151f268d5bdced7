"""The label loop on a small store: shards, resume, stale groups, one more metric, bad input."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.preference.groups import PreferenceGroups
from dp2osr.rewards import label as label_module
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.config import MetricSpec, RewardConfig, load_reward_config
from dp2osr.rewards.label import label_candidates, pair_gt
from dp2osr.rewards.labeller import Labeller
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.settings import LabelSettings
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
    return {key: MetricSuite([MetricSpec(name) for name in metrics], batches=Batches(2)) for key, metrics in names.items()}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(CandidateStore, "has_prompt", lambda store, image_id: True)
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


def labeller(store, suite, gt_path, output, decoder=None, strict=False):
    gt_paths = pair_gt(gt_path, store.ids(), suite.modes)
    return Labeller(store, suite, gt_paths, output, decoder or Decoder(), strict)


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

    broken.forget, broken.at_hand = metric.forget, False
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
    suite = MetricSuite([MetricSpec("piqe")])
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
    monkeypatch.setattr(label_module, "pyiqa_version", lambda: "9.9")
    with pytest.raises(UserError, match=r"scores.parquet: was scored with pyiqa 0\..*, and this is 9\.9.*--output"):
        labeller(store, suites["full"], gt_path, tmp_path / "scores.parquet").check_version()
    assert (tmp_path / "scores.parquet").read_bytes() == before


def test_an_absent_latents_file_is_named(store, suites, gt_path, tmp_path):
    (store.groups / "c" / "latents.safetensors").unlink()
    with pytest.raises(UserError, match="c/latents.safetensors: cannot be read"):
        label(store, suites["full"], gt_path, tmp_path / "scores.parquet")


def label_args(*words):
    return parse(LabelSettings, words)


def test_label_candidates_from_config_to_table(store, gt_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(label_module, "LazyDecoder", lambda store, device, batches: Decoder())
    config = tmp_path / "small.yaml"
    config.write_text("fr: [gmsd]\nnr: [piqe]\n")
    words = ["--candidates_dir", store.folder, "--gt_path", gt_path, "--reward_config", config, "--extra_metrics", "psnr", "piqe"]
    for last_line in ("gmsd, piqe, psnr", "nothing to do"):
        label_candidates(label_args(*words))
        assert last_line in capsys.readouterr().out
    assert set(read_scores(store.folder / "scores.parquet").scores) == {"gmsd", "piqe", "psnr"}
    label_candidates(label_args(*words, "--exclude_metrics", "gmsd"))
    assert capsys.readouterr().out.rstrip().endswith("4 groups scored with piqe, psnr; it was complete, nothing to do")
    label_candidates(label_args(*words, "--precision", "bf16", "--memory_limit", "8"))
    assert "bf16 against fp32 on the 3 candidates of 'a', Kendall's tau: gmsd " in capsys.readouterr().out
    assert read_scores(store.folder / "scores.parquet").metadata["metrics"]["gmsd"]["precision"] == "bf16"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="--compile: needs a C"):
        label_candidates(label_args(*words, "--compile"))
    with pytest.raises(UserError, match="--exclude_metrics gmds: .* 'small' does not have it; did you mean 'gmsd'"):
        label_candidates(label_args(*words, "--exclude_metrics", "gmds"))
    with pytest.raises(UserError, match="leaves no metric"):
        label_candidates(label_args(*words, "--exclude_metrics", "gmsd", "piqe", "psnr"))


def add_columns(path):
    """Columns of the user's, of several types, by pandas."""
    import pandas as pd

    frame = pd.read_parquet(path)
    frame["mine"] = [7 * row for row in range(len(frame))]
    frame["note"] = frame["image_id"] + "!"
    frame.to_parquet(path)
    return frame.set_index(["image_id", "candidate"])


def read_back(path):
    import pandas as pd

    return pd.read_parquet(path).set_index(["image_id", "candidate"])


def test_labelling_again_keeps_the_columns_of_the_user(store, suites, gt_path, tmp_path, capsys):
    """Another metric, a new group, a complete run; what was scored anew is empty there, and the table as it was is kept."""
    output = tmp_path / "scores.parquet"
    label(store, suites["full"], gt_path, output)
    mine = add_columns(output)
    decoder, written = label(store, suites["full"], gt_path, output)
    assert decoder.decoded == [] and not written
    label(store, suites["more"], gt_path, output)
    again = read_back(output)
    assert "psnr" in again and (again["mine"] == mine["mine"]).all() and (again["note"] == mine["note"]).all()
    assert "kept your columns mine, note" in capsys.readouterr().out and not list(tmp_path.glob("*before*"))

    write_group(store, "e", seed=5)
    Image.new("RGB", (SIDE, SIDE), "gray").save(gt_path / "e.png")
    label(store, suites["full"], gt_path, output)
    again = read_back(output)
    assert again.loc["e"][["mine", "note"]].isna().all(axis=None) and (again.drop("e")["mine"] == mine["mine"]).all()
    assert "warning" not in capsys.readouterr().out

    write_group(store, "b", seed=99)
    label(store, suites["full"], gt_path, output)
    again = read_back(output)
    assert again.loc["b"]["mine"].isna().all() and (again.drop(["b", "e"])["mine"] == mine["mine"].drop("b")).all()
    assert "values for 1 images (b) are left out" in capsys.readouterr().out
    assert (read_back(tmp_path / "scores.parquet.before1").drop("e")["mine"] == mine["mine"]).all()
    assert read_scores(tmp_path / "scores.parquet.before1").image_ids == ["a", "b", "c", "d", "e"]


def test_a_metric_does_not_overwrite_a_column_of_its_name(store, suites, gt_path, tmp_path):
    import pandas as pd

    output = tmp_path / "scores.parquet"
    label(store, suites["full"], gt_path, output)
    pd.read_parquet(output).assign(psnr=1.0).to_parquet(output)
    labeller(store, suites["full"], gt_path, output).check_own_columns()
    with pytest.raises(UserError, match="scores.parquet: has a column 'psnr' of your own.*rename your column"):
        labeller(store, suites["more"], gt_path, output).check_own_columns()


def test_a_column_is_not_computed_and_is_trained_on(store, gt_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(label_module, "LazyDecoder", lambda store, device, batches: Decoder())
    config = tmp_path / "mine.yaml"
    config.write_text("fr: [gmsd]\nnr:\n  - mine: {better: higher}\n")
    words = ["--candidates_dir", store.folder, "--gt_path", gt_path, "--reward_config", config]
    label_candidates(label_args(*words))
    assert capsys.readouterr().out.count("mine: not computed here; must be in") == 1
    scores, reward = store.folder / "scores.parquet", load_reward_config(config)
    with pytest.raises(UserError, match="has no column 'mine'"):
        read_scores(scores, reward)
    mine = add_columns(scores)["mine"]
    groups = PreferenceGroups(store, read_scores(scores, reward), reward, None, 1)
    assert groups.image_ids == ["a", "b", "c", "d"] and mine["a"][0] < mine["a"][1]
    (tmp_path / "alone.yaml").write_text("nr:\n  - mine: {better: higher}\n")
    with pytest.raises(UserError, match="'alone': all its metrics are columns of your own"):
        label_candidates(label_args(*words[:-1], tmp_path / "alone.yaml"))
    alone = load_reward_config(tmp_path / "alone.yaml")
    best = PreferenceGroups(store, read_scores(scores, alone), alone, None, 1).winners
    assert best.tolist() == [[COUNT - 1]] * 4


OWN = """
from torch import nn
from pyiqa.default_model_configs import DEFAULT_CONFIGS
from pyiqa.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register(override=True)
class LabelContrast(nn.Module):
    def forward(self, images):
        return {factor} * images.std(dim=(1, 2, 3))

DEFAULT_CONFIGS["label_contrast"] = {{"metric_opts": {{"type": "LabelContrast"}}, "metric_mode": "NR", "lower_better": True}}
"""


def test_a_metric_registered_with_pyiqa_is_labelled_and_scored_again_when_its_code_changes(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(label_module, "LazyDecoder", lambda store, device, batches: Decoder())
    words = ["--candidates_dir", store.folder, "--reward_config", tmp_path / "own.yaml", "--extra_metrics", "piqe"]
    for name, factor in (("first", 1), ("second", 3)):  # two files: a process imports each once
        (tmp_path / f"{name}.py").write_text(OWN.format(factor=factor))
        (tmp_path / "own.yaml").write_text(f"imports: [{name}.py]\nnr: [label_contrast]\n")
        label_candidates(label_args(*words))
        assert "label_contrast, piqe" in capsys.readouterr().out
        table = read_scores(store.folder / "scores.parquet")
        assert table.lower_better["label_contrast"] and table.scores["piqe"].shape == (4, COUNT)
        expected = factor * Decoder()(store.read("a")).std(dim=(1, 2, 3)).numpy()
        np.testing.assert_allclose(table.scores["label_contrast"][0], expected, atol=1e-6)


def test_empty_store(tmp_path, gt_path):
    CandidateStore(tmp_path / "empty", {"seed": 0})
    with pytest.raises(UserError, match="empty: holds no candidate group"):
        label_candidates(label_args("--candidates_dir", tmp_path / "empty", "--gt_path", gt_path))
