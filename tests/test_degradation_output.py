"""Degradation: degradation output."""

import hashlib

import cv2
import numpy as np
import pytest
from degrading import NAMES, photograph
from scipy import ndimage

from dp2osr.data import degradation as module
from dp2osr.data.degradation import degrade, image_rng
from dp2osr.data.degradation_settings import load_degradation


def test_filter_reflects_the_border():
    image, kernel = photograph(20, 25), module.gaussian_kernel(7, 2.0, 0.6, 0.5)
    expected = np.stack([ndimage.correlate(image[..., channel], kernel, mode="mirror") for channel in range(3)], axis=-1)
    np.testing.assert_allclose(module.filter_image(image, kernel), expected, atol=1e-5)


@pytest.mark.parametrize("gray", [False, True])
def test_noise_has_the_stated_deviation(gray):
    rng, image = np.random.default_rng(0), np.full((300, 300, 3), 128 / 255, np.float32)
    image[:, :150] = 64 / 255
    noise = module.gaussian_noise(image, 20, gray, rng)
    assert noise.shape[2] == (1 if gray else 3)
    assert noise.std() * 255 == pytest.approx(20, rel=0.02)
    noise = module.poisson_noise(image, 3.0, gray, rng)  # two levels in use: two photons at white
    assert noise.shape[2] == (1 if gray else 3)
    for half, level in ((noise[:, :150], 64 / 255), (noise[:, 150:], 128 / 255)):
        assert half.std() == pytest.approx(3.0 * np.sqrt(level / 2), rel=0.03)
        assert half.mean() == pytest.approx(0, abs=0.05)


def test_jpeg_keeps_the_order_of_channels_and_loses_more_at_lower_quality():
    image = photograph(64, 64) * np.float32([1, 0.5, 0.2])
    errors = [np.abs(module.jpeg_image(image, quality) - image).mean() for quality in (95, 60, 30)]
    assert errors[0] < 0.02 and errors[0] < errors[1] < errors[2] < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_lr_has_the_stated_size_range_and_rounding_and_gt_is_untouched(name):
    config, gt = load_degradation(name), photograph(36, 128)
    before, errors = gt.copy(), []
    for seed in range(60):
        lr = degrade(gt, config, image_rng(seed, "x"))
        assert lr.shape == (9, 32, 3) and lr.dtype == np.float32 and lr.min() >= 0 and lr.max() <= 1
        np.testing.assert_array_equal(lr, np.rint(lr * 255).astype(np.uint8).astype(np.float32) / 255)
        errors.append(np.abs(lr - gt.reshape(9, 4, 32, 4, 3).mean((1, 3))).mean())
    np.testing.assert_array_equal(gt, before)
    assert 0.01 < np.median(errors) < 0.12  # worse than the area average, yet the same picture


def test_bicubic_is_a_reduction_alone_and_noisy_is_noisier_than_resshift():
    gt = photograph(64, 64)
    errors = {}
    for name in ("bicubic", "resshift", "resshift_noisy"):
        config = load_degradation(name)
        lrs = [degrade(gt, config, image_rng(seed, "x")) for seed in range(40)]
        errors[name] = np.median([np.abs(lr - gt.reshape(16, 4, 16, 4, 3).mean((1, 3))).mean() for lr in lrs])
        assert (name == "bicubic") == all(np.array_equal(lr, lrs[0]) for lr in lrs)
    reduced = cv2.resize(gt, (16, 16), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(degrade(gt, load_degradation("bicubic"), image_rng(0, "x")), reduced.clip(0, 1), atol=0.5 / 255 + 1e-6)
    assert errors["resshift_noisy"] > 1.2 * errors["resshift"]


def test_wrong_arrays_are_refused():
    config = load_degradation("resshift")
    for image in (photograph(32, 32).astype(np.float64), photograph(32, 32)[..., 0], photograph(30, 32), photograph(32, 32)[:0]):
        with pytest.raises(ValueError):
            degrade(image, config, np.random.default_rng(0))


def test_image_rng_depends_on_seed_and_id_alone():
    digest = hashlib.sha256(b"7\x00photo_03").digest()
    expected = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little"))).random(4)
    np.testing.assert_array_equal(image_rng(7, "photo_03").random(4), expected)
    assert len({image_rng(seed, name).random() for seed in range(3) for name in ("a", "b", "0")}) == 9
