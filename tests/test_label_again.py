"""Label: label again."""

import shutil

import numpy as np
import pytest
from labelling import COUNT, SIDE, Decoder, gt_path, label, labeller, store, suites, write_group  # noqa: F401 - fixtures
from PIL import Image

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.preference.groups import PreferenceGroups
from dp2osr.rewards import label as label_module
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.label import label_candidates
from dp2osr.rewards.settings import LabelSettings
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.store import CandidateStore


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
