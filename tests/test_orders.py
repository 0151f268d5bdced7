"""Orders that a blur-loving metric gets wrong: what is compared, and how the shares are counted."""

import json

import numpy as np
import pytest
from conftest import ROOT, assert_one_clear_line, run_program
from PIL import Image

from dp2osr.errors import UserError
from dp2osr.rewards.orders import (
    NOISE,
    OVER_SHARPENED,
    draw_texture,
    gradient,
    make_series,
    make_texture_series,
    psnr,
    read_series,
    shift,
    shift_texture,
    validate_orders,
)

GT = ROOT / "preset/test/gt"


@pytest.fixture(scope="module")
def crop():
    return np.asarray(Image.open(GT / "astronaut_00.png").convert("RGB"))


def test_shifted_images_are_the_image_elsewhere(crop):
    moved = shift(crop, (2, 0))
    np.testing.assert_array_equal(moved[2:], crop[:-2])
    np.testing.assert_array_equal(shift(crop, (0, -2))[:, :-2], crop[:, 2:])
    textured = shift_texture(crop, (2, 0)).astype(float)
    assert np.abs(textured.mean((0, 1)) - crop.mean((0, 1))).max() < 1
    assert gradient(textured) == pytest.approx(gradient(crop), rel=0.1)  # as much texture, elsewhere


def test_the_images_are_what_their_orders_say(crop):
    sample = shift_texture(crop, (1, 1))
    series = make_series(crop, sample)
    images, orders = series.images, series.orders
    for name in ("texture", "shift"):
        ((gt, moved, blurred),) = orders[name]
        assert gt == 0 and psnr(images[moved], crop) == pytest.approx(psnr(images[blurred], crop), abs=0.1)
        assert gradient(images[blurred]) < 0.7 * gradient(images[moved])
    ((_, moved, bare),) = orders["lost"]
    assert psnr(images[bare], crop) > psnr(images[moved], crop)  # so that PSNR gets it wrong
    ((_, first, over),) = orders["sharpening"]
    assert (images[first] == sample).all() and gradient(images[over]) == pytest.approx(OVER_SHARPENED * gradient(crop), rel=0.02)
    for name in ("noise_gt", "noise_sample", "noise_blur"):
        found = [np.std(images[noisy] - images[clean].astype(float)) for clean, noisy in orders[name]]
        assert found == pytest.approx(list(NOISE), rel=0.2)
    assert "sharpening" not in make_series(crop).orders


def test_a_texture_drawn_anew_has_the_spectrum_of_the_first(crop):
    series = make_texture_series(crop)
    first, second = series.images[:2].astype(float)
    assert psnr(first, second) < 20 and gradient(first) == pytest.approx(gradient(second), rel=0.05)
    assert np.abs(first.mean((0, 1)) - crop.mean((0, 1))).max() < 3
    spectra = [np.abs(np.fft.fft2(image[..., 1] - image[..., 1].mean())) for image in (first, second)]
    assert np.corrcoef(spectra[0].ravel(), spectra[1].ravel())[0, 1] > 0.95
    flat = draw_texture(np.full((16, 16, 3), 90, np.uint8), np.random.default_rng(0))
    assert (flat == 90).all()


class OneMetric:
    """A suite of one metric that is a function of (images, gt)."""

    def __init__(self, badness):
        self.specs, self.lower_better, self.badness = {"mine": None}, {"mine": True}, badness

    def score(self, images, gt, image_id):
        return {"mine": self.badness(images.numpy().transpose(0, 2, 3, 1) * 255, gt.numpy().transpose(1, 2, 0) * 255)}


def test_metrics_that_love_distance_sharpness_and_blur_fail_where_they_should(crop):
    crops = [make_series(crop, shift_texture(crop, (2, 2))), make_texture_series(crop)]
    distance = validate_orders(OneMetric(lambda images, gt: ((images - gt) ** 2).mean((1, 2, 3))), crops)["mine"]
    assert distance["lost"] == distance["redrawn"] == 0 and distance["noise_gt"] == 1
    sharpness = validate_orders(OneMetric(lambda images, gt: np.array([-gradient(image) for image in images])), crops)["mine"]
    assert sharpness["sharpening"] == sharpness["noise_sample"] == sharpness["noise_blur"] == 0
    blurriness = validate_orders(OneMetric(lambda images, gt: np.array([gradient(image) for image in images])), crops)["mine"]
    assert blurriness["texture"] == blurriness["lost"] == 0 and blurriness["noise_blur"] == 1
    constant = validate_orders(OneMetric(lambda images, gt: np.zeros(len(images))), crops)["mine"]
    assert set(constant.values()) == {0.0}


def write_folder(folder, names, size=(40, 40)):
    folder.mkdir()
    for index, name in enumerate(names):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / name)


def test_a_sample_that_is_missing_or_of_another_size_is_named(tmp_path):
    write_folder(tmp_path / "gt", ["a.png", "b.png"])
    write_folder(tmp_path / "sr", ["a.png"])
    with pytest.raises(UserError, match="sr: no sample of 1 of 2 GT images: b;"):
        read_series(tmp_path / "gt", tmp_path / "sr")
    write_folder(tmp_path / "larger", ["a.png", "b.png"], (44, 40))
    with pytest.raises(UserError, match="a.png: 44 x 40 pixels, and its GT .*a.png has 40 x 40"):
        read_series(tmp_path / "gt", tmp_path / "larger")


def test_the_program_prints_a_table_and_writes_it(tmp_path):
    write_folder(tmp_path / "gt", ["a.png", "b.png"])
    (tmp_path / "reward.yaml").write_text("fr: [psnr]\nnr: []\n")
    words = ["scripts/validate_orders.py", tmp_path / "reward.yaml", "--gt_path", tmp_path / "gt"]
    done = run_program(*words, "--output", tmp_path / "out.json")
    assert "| metric | texture | lost | shift | noise_gt | noise_blur | redrawn |" in done.stdout and "| `psnr` |" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["psnr"]["noise_gt"] == 1
    assert_one_clear_line(run_program(*words, "--sr_path", tmp_path / "none", check=False), "none")
