"""dp2o_naturalness: the orders that it learns, its judgement on models that it never saw, and a head that does not fit."""

import json

import numpy as np
import pytest
import torch
from conftest import KINDS, ROOT
from safetensors.torch import load_file, save_file

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.rewards.config import MetricSpec
from dp2osr.rewards.efficientnet import Features
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.naturalness import Head, Naturalness, load_naturalness, pool, pooled_size
from dp2osr.rewards.naturalness_training import Known, Material, cross_model, judge, save_head, train_head

SHIPPED = ROOT / "preset/metrics/naturalness.safetensors"


def crops(count, size=48):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def test_pooled_features_are_means_and_spreads_free_of_the_size():
    maps = [torch.randn(2, channels, side, side + 1) for channels, side in ((3, 8), (4, 4), (5, 4), (6, 2), (7, 1))]
    pooled = pool(maps)
    assert pooled.shape == (2, pooled_size([3, 4, 5, 6, 7])) and pooled_size([3, 4, 5, 6, 7]) == 36
    np.testing.assert_allclose(pooled[0, :3], maps[0][0].flatten(1).mean(1), atol=1e-6)
    np.testing.assert_allclose(pooled[0, 3:6], maps[0][0].flatten(1).std(1, correction=0), atol=1e-4)
    larger = [torch.cat([stage, stage], dim=3) for stage in maps]
    torch.testing.assert_close(pool(larger), pooled)


def test_known_orders_are_photograph_then_mixture_then_sample_then_sample_worsened():
    photograph, bicubic, sample = crops(3)
    known = Known(photograph, bicubic, [("a", sample)], np.random.default_rng(0))
    sorts, order = known.sorts, {(known.sorts[better], known.sorts[worse]) for better, worse in known.pairs}
    assert sorts[0] == "photograph" and sorts.count("a") == sorts.count("a+photograph") == sorts.count("bicubic") == 1
    assert {f"photograph+{kind}" for kind in ("blur", "noise", "jpeg", "downsampling", "sharpening")} <= set(sorts)
    assert ("photograph", "photograph+blur") in order and ("photograph+blur", "photograph+blur") in order and ("a+photograph", "a") in order
    assert not any("a+blur" in pair or "a+downsampling" in pair for pair in order)  # a blur may do good to a noisy sample
    mixture = known.images[sorts.index("a+photograph")].astype(float)
    assert np.abs(mixture - photograph).mean() < np.abs(sample.astype(float) - photograph).mean()


def made_up(names, seed, crops_count=20, tell=1.0):
    """Material whose first feature falls from photograph to sample worsened, by `tell`; the second is each model's own and says nothing."""
    rng, rows, sorts, crop, pairs = np.random.default_rng(seed), [], [], [], []
    quality = {"photograph": 3.0, "bicubic": 0.0}
    for index in range(crops_count):
        start = len(sorts)
        images = [("photograph", 3.0), ("bicubic", 0.0)]
        for name in names:
            images += [(f"{name}+photograph", 2.0), (name, 1.0), (f"{name}+noise", 0.0)]
        for sort, level in images:
            sorts.append(sort)
            crop.append(index)
            own = float(names.index(sort.split("+")[0]) + 1) if sort not in quality else 0.0
            rows.append([tell * level + 0.1 * rng.standard_normal(), own])
        pairs += [(start, place) for place in range(start + 1, len(sorts))]
        for offset in range(len(names)):
            mixture = start + 2 + 3 * offset
            pairs += [(mixture, mixture + 1), (mixture + 1, mixture + 2)]
    return Material(torch.tensor(rows, dtype=torch.float32), sorts, np.array(crop), np.array(pairs))


def test_a_head_learns_the_orders_and_is_judged_on_models_that_it_never_saw():
    train, held_out = made_up(["a-4", "b-4"], 0), made_up(["a-4", "b-4"], 1)
    found = cross_model(train, held_out, {"a": ["a-4"], "b": ["b-4"]}, steps=150)
    assert set(found) == {"a-4", "b-4"}
    assert all(share > 0.9 for shares in found.values() for share in shares.values())
    head = train_head(train, train.models(), steps=150)
    scores = head(train.pooled).detach().numpy()
    sorts = np.array(train.sorts)
    assert scores[sorts == "bicubic"].mean() == pytest.approx(0, abs=1e-4) and scores[sorts == "photograph"].mean() == pytest.approx(
        1, abs=1e-4
    )
    again = train_head(train, train.models(), steps=150)
    assert torch.equal(again(train.pooled), head(train.pooled))


def test_the_head_that_is_judged_on_a_model_saw_none_of_its_images(monkeypatch):
    import dp2osr.rewards.naturalness_training as training

    seen = []
    monkeypatch.setattr(training, "train_head", lambda material, models, **_: seen.append(tuple(models)) or Head(2))
    training.cross_model(made_up(["a-4", "a-9", "b-4"], 0, 2), made_up(["a-4", "b-4"], 1, 2), {"a": ["a-4", "a-9"], "b": ["b-4"]})
    assert seen == [("b-4",), ("a-4", "a-9")]
    material = made_up(["a-4", "b-4"], 0, 2)
    assert {sort for sort, kept in zip(material.sorts, material.of("a-4"), strict=True) if not kept} == {
        "b-4",
        "b-4+noise",
        "b-4+photograph",
    }


def test_a_judgement_is_the_share_of_pairs_in_the_right_order():
    material = made_up(["a-4"], 0, 4, tell=0.0)
    right = {"photograph": 3, "a-4+photograph": 1, "a-4": 2, "a-4+noise": 0, "bicubic": 0}
    shares = judge(lambda of: np.array([right[sort] for sort in of.sorts]), material, ["a-4"])["a-4"]
    assert shares == {
        "photograph > sample": 1,
        "any photograph > any sample": 1,
        "mixture > sample": 0,
        "sample > sample worsened": 1,
    }


def test_a_written_head_is_read_back_and_another_one_is_scored_anew(tmp_path):
    features = Features()
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    head = Head(pooled_size(features.channels)).eval()
    save_head(head, tmp_path / "one.safetensors", {"seed": 0})
    read = load_naturalness(tmp_path / "one.safetensors", features)
    torch.testing.assert_close(read(images), Naturalness(features, head)(images), atol=2e-3, rtol=0)
    torch.nn.init.zeros_(head.last.bias)
    save_head(head, tmp_path / "two.safetensors", {"seed": 0})
    about = [
        MetricSuite([MetricSpec("dp2o_naturalness", {"weights": str(tmp_path / f"{name}.safetensors")})]).describe()["dp2o_naturalness"]
        for name in ("one", "two")
    ]
    assert about[0]["weights"] != about[1]["weights"] and about[0]["mode"] == "NR" and not about[0]["lower_better"]


def test_a_head_that_is_missing_damaged_or_of_other_features_is_named(tmp_path):
    state = load_file(SHIPPED)
    save_file(state, tmp_path / "other.safetensors", {"features": "0123456789abcdef"})
    save_file({"weight": torch.zeros(2)}, tmp_path / "else.safetensors")
    for name, problem in (
        ("absent", "the head of dp2o_naturalness is not there; scripts/train_naturalness.py makes it"),
        ("else", "not the head of dp2o_naturalness"),
        ("other", "was trained on the features 0123456789abcdef, and .*efficientnet_lite0.safetensors has"),
    ):
        with pytest.raises(UserError, match=f"{name}.safetensors: {problem}") as error:
            MetricSuite([MetricSpec("dp2o_naturalness", {"weights": str(tmp_path / f"{name}.safetensors")})])
        assert "\n" not in str(error.value)


def test_the_shipped_head_puts_held_out_photographs_above_what_is_made_of_them():
    from dp2osr.rewards.ordering import held_out_crops, validate_reward

    suite = MetricSuite([MetricSpec("dp2o_naturalness")])
    found = validate_reward(suite, held_out_crops(ROOT / "preset/test/gt", 128, 6))["dp2o_naturalness"]
    assert not found.failures and all(share > 0.8 for share in found.gt_wins.values())


def test_one_command_samples_trains_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    import sys

    from PIL import Image

    sys.path.insert(0, str(ROOT / "scripts"))
    from train_naturalness import NaturalnessSettings

    import dp2osr.rewards.naturalness_training as training

    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.open(ROOT / "preset/test/gt/astronaut_00.png").save(tmp_path / split / "astronaut.png")
    model = f"{KINDS['sd2'].model}:{KINDS['sd2'].controlnet}"
    words = [f"--train_dir={tmp_path / 'train'}", f"--val_dir={tmp_path / 'val'}", f"--work_dir={tmp_path / 'work'}"]
    words += [f"--output={tmp_path / 'head.safetensors'}", "--num_inference_steps", "1", "--crops_per_image", "1", "--max_train_steps", "3"]
    record = training.train_naturalness(parse(NaturalnessSettings, [*words, "--models", model, "--crop_size", "64"]))
    assert record["models"] == ["tiny-sd2-1"] and set(record["held out"]) == {"tiny-sd2-1"} and record["never seen"] == {}
    first = (tmp_path / "head.safetensors").read_bytes()
    monkeypatch.setattr("dp2osr.sampling.sampler.GroupSampler.sample", None)  # nothing is sampled twice
    training.train_naturalness(parse(NaturalnessSettings, [*words, "--models", model, "--crop_size", "64"]))
    assert load_file(tmp_path / "head.safetensors").keys() and json.dumps(record) and len(first) > 1000
    with pytest.raises(UserError, match="--models tiny: write BASE:CONTROLNET"):
        training.train_naturalness(parse(NaturalnessSettings, [*words, "--models", "tiny"]))
