"""Rewards: metric suite."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from bench.random_metrics import watching_draws
from dp2osr.errors import UserError
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.config import MetricSpec, RewardConfig, load_reward_config
from dp2osr.rewards.metrics import MetricSuite, check_modes


@pytest.fixture(scope="module")
def suite():
    return MetricSuite(load_reward_config("embedded").metrics)


@pytest.fixture(scope="module")
def images():
    """A textured GT (3, 64, 64) and three distortions of it (3, 3, 64, 64), in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 9, 9, generator=generator)
    texture = 0.1 * torch.rand(1, 3, 64, 64, generator=generator)
    gt = (torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic") + texture).clamp(0, 1)
    noisy = (gt + 0.1 * torch.randn(gt.shape, generator=generator)).clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(gt, 5, 1, 2, count_include_pad=False)
    return gt[0], torch.cat([noisy, blurred, gt * 0.8])


def test_suite_equals_pyiqa_one_image_at_a_time(suite, images):
    import pyiqa

    gt, batch = images
    scores = suite.score(batch, gt)
    names = [name for name in scores if name != "brisque" and not name.startswith("dp2o_")]
    assert {"fsim", "gmsd", "piqe"} <= set(names)
    for name in names:
        metric = pyiqa.create_metric(name, device="cpu")
        assert suite.lower_better[name] == bool(metric.lower_better) and suite.modes[name] == metric.metric_mode
        for image, score in zip(batch, scores[name], strict=True):
            expected = metric(image[None], gt[None]) if metric.metric_mode == "FR" else metric(image[None])
            assert score == pytest.approx(expected.item(), abs=1e-5), name


def test_brisque_equals_pyiqa_with_the_same_parameters(images, monkeypatch):
    """pyiqa's function has its own machine's feature ranges built in; with the file's ranges instead, both must agree."""
    from pyiqa.archs import brisque_arch

    from dp2osr.places import ROOT
    from dp2osr.rewards.brisque import Brisque

    network = Brisque(ROOT / "preset/metrics/brisque.safetensors")
    assert (len(network.coefficients), network.gamma, network.rho) == (770, 0.05, -155.845)
    low, high = network.feature_min, network.feature_max
    monkeypatch.setattr(brisque_arch, "scale_features", lambda features: -1 + 2 * (features - low) / (high - low))
    for image in images[1]:
        image = image.double()
        expected = brisque_arch.brisque(image[None], sv_coef=network.coefficients, sv=network.support_vectors, gamma=0.05, rho=-155.845)
        assert network(image[None]).item() == pytest.approx(expected.item(), abs=1e-5)


def test_batch_does_not_change_local_metrics(suite, images):
    gt, batch = images
    together = suite.score(batch, gt)
    for name in ("brisque", "dp2o_rank"):
        if name in together:
            alone = [suite.score(image[None], None, names=[name])[name][0] for image in batch]
            np.testing.assert_allclose(together[name], alone, rtol=0, atol=1e-5)


def test_without_gt_only_nr_metrics_are_scored(suite, images):
    assert set(suite.score(images[1])) == {name for name, mode in suite.modes.items() if mode == "NR"}


def test_embedded_metrics_draw_no_random_number(suite, images):
    assert not suite.drawing
    for name, metric in suite.networks().items():
        with watching_draws() as drawn:
            metric(images[1], *([images[0][None]] if suite.modes[name] == "FR" else []))
            assert not drawn(), name


@pytest.mark.parametrize("draw", [lambda: torch.rand(1).item(), np.random.rand, random.random], ids=["torch", "numpy", "python"])
def test_a_drawing_metric_is_seeded_by_image_and_candidate(images, draw):
    """Whatever the batch, the order and what was drawn before."""
    suite = MetricSuite([MetricSpec("piqe", draws=True)], batches=Batches(2))
    suite._metrics["piqe"].metric = lambda batch: batch.mean(dim=(1, 2, 3)) + draw()
    first = suite.score(images[1], image_id="koala")["piqe"]
    assert suite.describe()["piqe"]["draws"] and len(set(first - images[1].mean(dim=(1, 2, 3)).numpy())) == 3
    draw()
    alone = [suite.score(images[1][m][None], image_id="koala", candidates=[m])["piqe"][0] for m in (2, 0, 1)]
    np.testing.assert_allclose(alone, first[[2, 0, 1]], rtol=0, atol=1e-6)
    assert abs(suite.score(images[1], image_id="zebra")["piqe"] - first).min() > 1e-4
    suite.seed = 1
    assert abs(suite.score(images[1], image_id="koala")["piqe"] - first).min() > 1e-4


@pytest.mark.parametrize("draws", [True, False], ids=["said", "not_said"])
def test_scoring_with_a_drawing_metric_leaves_the_generators_as_they_were(images, draws):
    suite = MetricSuite([MetricSpec("piqe", draws=draws)])
    suite._metrics["piqe"].metric = lambda batch: batch.mean(dim=(1, 2, 3)) + torch.rand(1) + np.random.rand() + random.random()
    for _ in range(2):
        before = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
        suite.score(images[1])
        assert torch.equal(before[0], torch.random.get_rng_state()) and before[2] == random.getstate()
        assert all(np.array_equal(one, other) for one, other in zip(before[1], np.random.get_state(), strict=True))


def test_share_of_flips_counts_pairs_that_change_places():
    from dp2osr.rewards.draws import share_of_flips

    assert share_of_flips(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 40, 30])) == pytest.approx(1 / 6)
    assert share_of_flips(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == 1


def test_nan_names_metric_image_and_candidate(suite, images, monkeypatch):
    metric = suite._metrics["piqe"]
    monkeypatch.setattr(metric, "metric", lambda batch: torch.tensor([1.0, float("nan"), 2.0]))
    with pytest.raises(UserError, match="metric 'piqe' gives nan for image 'koala', candidate 5"):
        suite.score(images[1], images[0], "koala", [4, 5, 6])


def test_suite_refuses_what_it_cannot_score():
    with pytest.raises(UserError, match="unknown metric 'fsmi'.*'fsim'"):
        MetricSuite([MetricSpec("fsmi")])
    with pytest.raises(UserError, match="no option 'weigths'.*'weights'"):
        MetricSuite([MetricSpec("dp2o_rank", {"weigths": "x"})])
    with pytest.raises(UserError, match="'ms_ssim' cannot score image 'small' of 32 x 32"):
        MetricSuite([MetricSpec("ms_ssim")]).score(torch.rand(1, 3, 32, 32), torch.rand(3, 32, 32), "small")


def test_metric_in_the_wrong_half_is_refused():
    config = RewardConfig("mixed", [MetricSpec("piqe")], [])
    with pytest.raises(UserError, match="'piqe' is a NR metric"):
        check_modes(config, MetricSuite(config.metrics))


OWN_METRICS = """
import torch
from torch import nn
from pyiqa.default_model_configs import DEFAULT_CONFIGS
from pyiqa.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register(name="CONTRAST")
class Contrast(nn.Module):
    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = float(gain)

    def forward(self, images, gt=None):
        if self.gain < 0:
            raise KeyError("gain")
        images.mul_(self.gain)  # in place, on purpose
        scores = images.std(dim=(1, 2, 3))
        return scores.mean() if self.gain > 9 else scores

DEFAULT_CONFIGS["CONTRAST"] = {"metric_opts": {"type": "CONTRAST"}, "metric_mode": "NR", "lower_better": False}
DEFAULT_CONFIGS["CONTRAST-bare"] = {"metric_opts": {"type": "CONTRAST"}}
DEFAULT_CONFIGS["CONTRAST-lost"] = {"metric_opts": {"type": "Nowhere"}, "metric_mode": "NR"}
"""


@pytest.fixture
def own_reward(tmp_path):
    """Writes a reward YAML beside a module that registers metrics, each time under names of its own; returns a function of its `nr`."""

    def write(nr, imports="[own.py]"):
        name = f"contrast{abs(hash(str(tmp_path)))}"
        (tmp_path / "own.py").write_text(OWN_METRICS.replace("CONTRAST", name))
        (tmp_path / "own.yaml").write_text(f"imports: {imports}\nnr: [{nr.replace('CONTRAST', name)}]\n")
        return load_reward_config(tmp_path / "own.yaml"), name

    return write


def test_a_metric_of_ones_own_says_in_the_yaml_that_it_draws(own_reward, images):
    config, name = own_reward("CONTRAST: {draws: true, gain: 2}, piqe: {draws: false}")
    suite = MetricSuite(config.metrics)
    assert suite.drawing == {name} and suite.describe()[name]["options"] == {"gain": 2}
    assert "draws" not in suite.describe()["piqe"]
    with pytest.raises(UserError, match="'draws' must be true or false, not 'maybe'"):
        own_reward("piqe: {draws: maybe}")


@pytest.mark.parametrize("imports", ["[own.py]", "[own]"])
def test_a_metric_registered_with_pyiqa_is_imported_and_scores(own_reward, images, imports):
    config, name = own_reward("piqe, CONTRAST: {gain: 2}", imports)
    suite = MetricSuite(config.metrics, batches=Batches(2))
    before = images[1].clone()
    scores = suite.score(images[1], images[0])
    np.testing.assert_allclose(scores[name], 2 * before.std(dim=(1, 2, 3)).numpy(), atol=1e-6)
    assert torch.equal(before, images[1]) and not suite.lower_better[name]  # what it does in place stays with it
    assert len(suite.describe()[name]["code"]) == 16 and "code" not in suite.describe()["piqe"]


@pytest.mark.parametrize(
    ("nr", "problem"),
    [
        (
            "CONTRAST: {gain: -1}",
            "'contrast.*', a metric of your own, fails on image 'koala' of 64 x 64: KeyError: 'gain' .own.py, line 15",
        ),
        ("CONTRAST: {gain: 10}", "gives 1 scores for 3 images; it must return one an image"),
        (
            "CONTRAST: {gain: x}",
            "a metric of your own, cannot be built with the options .*: ValueError: could not convert.*own.py, line 11",
        ),
        ("CONTRAST-bare", "its entry in pyiqa's DEFAULT_CONFIGS must be .*'metric_mode'"),
        ("CONTRAST-lost", "its class must be registered with pyiqa's ARCH_REGISTRY"),
        ("CONTRST", "unknown metric 'CONTRST'.*docs/rewards.md"),
    ],
)
def test_a_fault_in_a_metric_of_ones_own_is_one_line(own_reward, images, nr, problem):
    config, _ = own_reward(nr)
    with pytest.raises(UserError, match=problem) as error:
        MetricSuite(config.metrics).score(images[1], image_id="koala")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("code", "problem"), [("import absent_module", "absent_module.*line 1"), ("x = (", "SyntaxError")])
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, code, problem):
    (tmp_path / "own.py").write_text(code)
    (tmp_path / "own.yaml").write_text("imports: [own.py]\nnr: [piqe]\n")
    with pytest.raises(UserError, match=f"own.py, which the reward config imports, fails: .*{problem}.*mend it"):
        MetricSuite(load_reward_config(tmp_path / "own.yaml").metrics)
    (tmp_path / "own.yaml").write_text("imports: [no_such_module_anywhere]\nnr: [piqe]\n")
    with pytest.raises(UserError, match="no_such_module_anywhere, which the reward config imports, fails: ModuleNotFoundError"):
        MetricSuite(load_reward_config(tmp_path / "own.yaml").metrics)


def test_spearman_against_scipy():
    from scipy.stats import spearmanr

    from dp2osr.rewards.ordering import spearman

    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 4, 6), rng.normal(size=6)
        if len(set(first)) > 1:
            assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert spearman(np.arange(5), np.ones(5)) == 0


def test_validation_names_the_metric_that_fails():
    """Entropy pays for noise: the check must see it; GMSD must pass."""
    from dp2osr.rewards.ordering import format_table, validate_reward

    rng = np.random.default_rng(0)
    crops = []
    for _ in range(2):
        coarse = torch.tensor(rng.random((1, 3, 12, 12)), dtype=torch.float32)
        smooth = torch.nn.functional.interpolate(coarse, (96, 96), mode="bicubic")[0].clamp(0, 1)
        crops.append((smooth.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    results = validate_reward(MetricSuite([MetricSpec("gmsd"), MetricSpec("entropy")]), crops)
    assert results["gmsd"].failures == [] and "noise" in results["entropy"].failures
    assert "FAILS: entropy on noise" in format_table(results)


def test_a_rank_metric_that_has_no_finite_loss_is_not_written(tmp_path):
    from dp2osr.rewards.rank_metric import train_rank_metric

    args = SimpleNamespace(
        train_dir=ROOT / "preset/train/gt", val_dir=ROOT / "preset/test/gt", output=tmp_path / "rank.safetensors",
        max_train_steps=20, train_batch_size=2, crop_size=32, learning_rate=1e36, seed=0,
    )  # fmt: skip
    with pytest.raises(UserError, match="no finite loss in three steps in a row"):
        train_rank_metric(args)
    assert not args.output.exists()
