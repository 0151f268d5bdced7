"""pyiqa's networks with repeated work taken out, against pyiqa on one image at a time: the same random weights on both sides."""

import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.random_metrics import random_weights
from dp2osr import device as devices
from dp2osr.errors import UserError
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.building import quiet_imports
from dp2osr.rewards.config import MetricSpec, load_reward_config
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.reuse import for_groups

SIDE = {"maniqa-pipal": 225}  # the smallest that gives different crops
# MANIQA as deep as it is, with 64 channels instead of 768, of which a crop is a quarter of a TFLOP.
NARROW_VIT = {"vit_base_patch8_224": {"embed_dim": 64, "num_heads": 4}}
OPTIONS = {"maniqa-pipal": {"test_sample": 2, "embed_dim": 64, "dim_mlp": 64}}
NAMES = ["lpips", "lpips-vgg", "dists", "topiq_fr", "afine_fr", "maniqa-pipal", "musiq", "clipiqa+", "topiq_nr", "afine_nr", "afine_all"]


@pytest.fixture(scope="module", autouse=True)
def networks():
    """All of them are built from random weights here, the same ones at every call; MANIQA is narrow. Yields what makes its ViT else."""
    import timm

    with random_weights(), quiet_imports(), pytest.MonkeyPatch.context() as patch:
        create = timm.create_model
        patch.setattr(timm, "create_model", lambda name, **options: create(name, **options, **NARROW_VIT.get(name, {})))
        yield create


def test_the_shipped_configs_are_covered():
    """Every metric of `default` and of `paper` is built and compared below, and Q-Align in test_metric_weights.py."""
    names = {spec.name for config in ("default", "paper") for spec in load_reward_config(config).metrics} - {"qalign"}
    assert names <= set(NAMES)


def draw(side, count=3, seed=0):
    """(GT (3, s, s), candidates (count, 3, s, s))."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, side // 8, side // 8, generator=generator)
    gt = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    noise = torch.randn(count, 3, side, side, generator=generator) * torch.linspace(0.02, 0.2, count).view(-1, 1, 1, 1)
    return gt[0], (gt + noise).clamp(0, 1)


def build(names, **options):
    return MetricSuite([MetricSpec(name, OPTIONS.get(name, {})) for name in names], **options)


def each_alone(metric, gt, images):
    """pyiqa's score of each image by itself; of clones, because A-FINE overwrites what it is given."""
    with torch.no_grad():
        pairs = [(image[None].clone(), gt[None].clone()) if metric.metric_mode == "FR" else (image[None].clone(),) for image in images]
        return np.array([metric(*pair).item() for pair in pairs])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_pyiqas_of_each_image_alone(name):
    """In batches, for one GT after another and back, and without touching the images."""
    import pyiqa

    suite = build([name], batches=Batches(2))
    plain = pyiqa.create_metric(name, device=torch.device("cpu"), **OPTIONS.get(name, {}))
    for seed in (0, 1, 0):
        gt, images = draw(SIDE.get(name, 64), seed=seed)
        before = images.clone(), gt.clone()
        scores = suite.score(images, gt)[name]
        assert torch.equal(images, before[0]) and torch.equal(gt, before[1])
        expected = each_alone(plain, gt, images)
        assert expected.std() > 1e-6  # the random network does tell them apart
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_afine_is_given_one_image_at_a_time(monkeypatch):
    """Here a score depends on all images of its batch, and the images are overwritten; each has the score that it has alone."""
    import pyiqa
    from pyiqa.archs.afine_arch import AFINE

    def forward(self, images, gt=None):
        score = images.sum().reshape(1) - (0 if gt is None else 2 * gt.sum())
        images.zero_()
        return score

    gt, images = draw(64, count=5)
    for name in ("afine_fr", "afine_nr", "afine_all"):
        with monkeypatch.context() as patched:
            patched.setattr(AFINE, "forward", forward)
            found = build([name], batches=Batches(3)).score(images, gt)[name]
            expected = each_alone(pyiqa.create_metric(name, device=torch.device("cpu")), gt, images)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert len(set(found.tolist())) == 5


def test_a_gpu_takes_as_many_images_of_maniqa_as_its_memory_lets(monkeypatch):
    """A CPU takes one; here it passes for a GPU, with room for three images of twenty crops."""
    from dp2osr.rewards import reuse

    passes = []

    class Metric:
        net = SimpleNamespace(test_sample=20, conv1=SimpleNamespace(in_channels=4 * 768))

        def __call__(self, images):
            passes.append(len(images))
            return images.mean((1, 2, 3))[:, None]

    images, metric = draw(64, count=4)[1], reuse.Maniqa(Metric())
    alone = metric(images)
    monkeypatch.setattr(reuse, "has_own_memory", lambda device: True)
    monkeypatch.setattr(reuse, "free_device_bytes", lambda device: 6.5 * 20 * 3 * (4 * 768) ** 2 * 4)
    assert torch.equal(metric(images), alone) and passes == [1, 1, 1, 1, 3, 1]


def test_maniqa_of_its_full_size_has_pyiqas_score(networks, monkeypatch):
    import pyiqa
    import timm

    monkeypatch.setattr(timm, "create_model", networks)
    gt, images = draw(224, count=1)
    metric = pyiqa.create_metric("maniqa-pipal", device=torch.device("cpu"), test_sample=1)
    assert metric.net.conv1.in_channels == 4 * 768
    [expected] = each_alone(metric, gt, images)
    with torch.no_grad():
        assert for_groups(metric)(images).item() == pytest.approx(expected, abs=1e-5) and expected > 1e-3


@pytest.mark.slow
def test_maniqa_scores_two_images_as_it_scores_each():
    import pyiqa

    plain = pyiqa.create_metric("maniqa-pipal", device=torch.device("cpu"), **OPTIONS["maniqa-pipal"])
    _, images = draw(225, count=2)
    with torch.no_grad():
        np.testing.assert_allclose(plain(images).flatten(), [plain(image[None]).item() for image in images], rtol=0, atol=1e-5)


def test_each_metric_sees_the_image_and_not_what_another_left_of_it():
    names = ["afine_fr", "lpips", "afine_nr", "clipiqa+"]
    gt, images = draw(64)
    together, alone = build(names).score(images, gt), {name: build([name]).score(images, gt)[name] for name in names}
    for name in names:
        np.testing.assert_allclose(together[name], alone[name], rtol=0, atol=1e-6, err_msg=name)


def count_calls(module, attribute, images_of=lambda args: len(args[0])):
    seen, run = [], getattr(module, attribute)

    def counted(*args, **kwargs):
        seen.append(images_of(args))
        return run(*args, **kwargs)

    setattr(module, attribute, counted)
    return seen


def test_the_gt_goes_through_a_network_once_a_group():
    suite = build(["lpips", "dists", "topiq_fr", "afine_fr"], batches=Batches(2))
    names = ("lpips", "dists", "topiq_fr", "afine_fr")
    passes = {name: count_calls(suite._metrics[name].remembered[0], "run") for name in names}
    gt, images = draw(64, count=5)
    suite.score(images, gt)
    assert {name: sum(seen) for name, seen in passes.items()} == dict.fromkeys(passes, 6)
    suite.score(*draw(64, count=5, seed=1)[::-1])
    assert {name: sum(seen) for name, seen in passes.items()} == dict.fromkeys(passes, 12)


def test_unread_blocks_are_not_run():
    import pyiqa

    plain = pyiqa.create_metric("maniqa-pipal", device=torch.device("cpu"), **OPTIONS["maniqa-pipal"])
    assert len(plain.net.vit.blocks) == 12
    assert len(build(["maniqa-pipal"])._metrics["maniqa-pipal"].metric.net.vit.blocks) == 10  # of the same scores, see above


@pytest.mark.parametrize("name", ["lpips", "clipiqa+"])
def test_bf16_is_another_precision_of_the_same_score(name):
    """And the suite can go from one to the other: nothing that it keeps is of the first precision."""
    gt, images = draw(64)
    fast, suite = build([name], precision="bf16"), build([name])
    assert fast.describe()[name]["precision"] == "bf16" and "precision" not in suite.describe()[name]
    exact, rough = suite.score(images, gt)[name], fast.score(images, gt)[name]
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()
    fast.precision = "fp32"
    np.testing.assert_allclose(fast.score(images, gt)[name], exact, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("name", ["lpips", "maniqa-pipal"])
def test_a_compiled_metric_gives_the_same_score(name):
    from torch._dynamo.utils import counters

    gt, images = draw(SIDE.get(name, 64), count=2)
    exact = build([name]).score(images, gt)[name]
    counters.clear()
    suite = build([name], compiled=True)
    np.testing.assert_allclose(suite.score(images, gt)[name], exact, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0
    counters.clear()
    with torch.compiler.set_stance("force_eager"):
        np.testing.assert_array_equal(suite.score(images, gt)[name], exact)


# --- batches ---------------------------------------------------------------------------------------------------------


def work_of(size, sizes):
    """A function of a batch that needs `size` floats an image twice, and notes how many images it is given."""

    def work(part):
        sizes.append(len(part))
        return (part.flatten(1).sum(dim=1, keepdim=True) + torch.ones(len(part), size)).sum(dim=1) / size - 1

    return work


def limited(monkeypatch, limit, held, size=8):
    """`Batches` in a process that holds `held` GB, whatever this one does."""

    @contextmanager
    def peak_memory(device):
        before = devices.held_bytes(device)
        with devices.peak_memory(device) as peak:
            yield peak
        peak.bytes += held * 1e9 - before

    monkeypatch.setattr("dp2osr.rewards.batches.held_bytes", lambda device: held * 1e9)
    monkeypatch.setattr("dp2osr.rewards.batches.peak_memory", peak_memory)
    return Batches(size, memory_limit=limit)


def test_batches_are_as_large_as_the_limit_allows(monkeypatch):
    sizes, images = [], torch.arange(9.0)[:, None]
    batches = limited(monkeypatch, 1.0, 0.5)
    assert torch.equal(batches.run("work", images, work_of(2**24, sizes)), torch.arange(9.0))
    [cost] = batches.each.values()
    assert 1.9 * 2**26 <= cost < 2.4 * 2**26  # the ones and the sum
    assert sizes == [1, 3, 3, 2]  # 0.5 GB of room
    batches.run("work", images, work_of(2**24, sizes))
    assert sizes[4:] == [1, 3, 3, 2]
    with pytest.raises(UserError, match=r"--memory_limit 0\.55: work takes 0\.1\d GB for one image beside the 0\.50 GB that are held"):
        limited(monkeypatch, 0.55, 0.5).run("work", images, work_of(2**24, sizes))


def test_what_was_there_before_is_not_counted(monkeypatch):
    """A group's images, of which one is a view, and weights, of which a layer makes views."""
    layer, images = torch.nn.Linear(4000, 4000), torch.rand(4000, 4000)  # 64 MB each
    batches = limited(monkeypatch, 1.0, 0.1)
    with torch.no_grad():
        batches.run("layer", images, layer)
    assert max(batches.each.values()) < 3.2e7


def test_another_size_of_image_has_its_own_cost_and_one_image_is_enough(monkeypatch):
    sizes, batches = [], limited(monkeypatch, 1.0, 0.5)
    batches.run("work", torch.zeros(4, 8), lambda part: work_of(len(part[0]) * 2**18, sizes)(part))
    batches.run("work", torch.zeros(4, 128), lambda part: work_of(len(part[0]) * 2**18, sizes)(part))
    assert sizes == [1, 3, 1, 1, 1, 1]
    assert len(batches.run("alone", torch.zeros(1, 8), work_of(8, sizes))) == 1 and sizes[-1] == 1


def test_memory_beside_tensors_counts():
    """A metric of one's own may work on NumPy's arrays."""
    batches = Batches(8, memory_limit=100)
    batches.run("work", torch.zeros(1, 1), lambda part: part + np.ones(2**24, np.float32).sum().item())
    assert max(batches.each.values()) > 0.9 * 2**26


def test_without_a_limit_all_go_in_batches_of_the_given_size():
    sizes = []
    result = Batches(4).run("x", torch.arange(10.0), lambda part: sizes.append(len(part)) or part * 2)
    assert sizes == [4, 4, 2] and torch.equal(result, 2 * torch.arange(10.0))
