"""Degradation and LR/GT pairs: kernels against their formulas, draws against their probabilities, every setting really read."""

import copy
import dataclasses
from collections import Counter

import numpy as np
import pytest
import yaml
from degrading import NAMES, photograph
from scipy import special

from dp2osr.data import degradation as module
from dp2osr.data import degradation_settings
from dp2osr.data.degradation import degrade, image_rng
from dp2osr.data.degradation_settings import CONFIG_DIR, load_degradation
from dp2osr.errors import UserError


def settings_of(name):
    return yaml.safe_load((CONFIG_DIR / f"{name}.yaml").read_text())


def config_of(settings, folder):
    path = folder / "degradation.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_degradation(path)


def oracle(size, sigma_x, sigma_y, angle, profile):
    """`profile(x^T Σ^-1 x)` with Σ inverted as a matrix, a pixel at a time, in float64."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.diag([sigma_x**2, sigma_y**2]) @ rotation.T)
    kernel = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            point = np.array([column - size // 2, row - size // 2])
            kernel[row, column] = profile(point @ inverse @ point)
    return kernel / kernel.sum()


@pytest.mark.parametrize(
    "size, sigma_x, sigma_y, angle, beta", [(3, 0.2, 0.2, 0, 1), (7, 1.3, 1.3, 0, 0.5), (19, 3.0, 0.7, 0.6, 1), (13, 0.5, 2.5, -2.1, 3.7)]
)
def test_gaussian_and_plateau_kernels_follow_their_formulas(size, sigma_x, sigma_y, angle, beta):
    expected = oracle(size, sigma_x, sigma_y, angle, lambda distance: np.exp(-0.5 * distance**beta))
    np.testing.assert_allclose(module.gaussian_kernel(size, sigma_x, sigma_y, angle, beta), expected, atol=1e-7)
    expected = oracle(size, sigma_x, sigma_y, angle, lambda distance: 1 / (1 + distance**beta))
    np.testing.assert_allclose(module.plateau_kernel(size, sigma_x, sigma_y, angle, beta), expected, atol=1e-7)


@pytest.mark.parametrize("size, cutoff", [(7, np.pi / 3), (21, 2.2), (13, np.pi)])
def test_sinc_kernel_is_the_inverse_fourier_transform_of_a_disc(size, cutoff):
    frequency = (np.arange(4000) + 0.5) * cutoff / 4000  # midpoint rule over the disc's radius
    axis = np.arange(size) - size // 2
    radius = np.hypot(axis[:, None], axis[None])
    kernel = (special.j0(radius[..., None] * frequency) * frequency).sum(-1)
    np.testing.assert_allclose(module.sinc_kernel(size, cutoff), kernel / kernel.sum(), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_drawn_kernels_sum_to_one(name):
    config, rng = load_degradation(name).first.blur, np.random.default_rng(0)
    kernels = [module.draw_kernel(config, rng) for _ in range(500)]
    assert {kernel.shape[0] for kernel in kernels} == set(config.kernel_sizes)
    for kernel in kernels:
        assert kernel.shape[0] == kernel.shape[1] and kernel.dtype == np.float32
        assert kernel.sum() == pytest.approx(1, abs=1e-5)


def assert_frequencies(counts, probabilities):
    total = sum(counts.values())
    for kind, probability in probabilities.items():
        deviation = np.sqrt(probability * (1 - probability) / total)
        assert abs(counts[kind] / total - probability) <= 4 * deviation + 1e-9, (kind, counts[kind] / total, probability)


def test_kernels_are_drawn_with_the_probabilities_and_ranges_of_the_yaml(monkeypatch):
    blur = settings_of("resshift")["first"]["blur"]
    kinds, sigmas, betas = Counter(), [], {"generalized": [], "plateau": []}

    def record(shape):
        def kernel(size, sigma_x, sigma_y, angle, beta):
            name = "generalized" if shape == "gaussian" and beta != 1 else shape
            kinds["_".join(part for part in (name, "iso" if (sigma_x, angle) == (sigma_y, 0) else "aniso") if part != "gaussian")] += 1
            sigmas.extend((sigma_x, sigma_y))
            betas.get(name, []).append(beta)

        return kernel

    def sinc(size, cutoff):
        kinds["sinc"] += 1
        assert (1 / 3 if size < 13 else 1 / 5) <= cutoff / np.pi + 1e-6 <= 1 + 1e-6

    monkeypatch.setattr(module, "gaussian_kernel", record("gaussian"))
    monkeypatch.setattr(module, "plateau_kernel", record("plateau"))
    monkeypatch.setattr(module, "sinc_kernel", sinc)
    config, rng = load_degradation("resshift").first.blur, np.random.default_rng(1)
    for _ in range(6000):
        module.draw_kernel(config, rng)
    expected = {kind: probability * (1 - blur["sinc_prob"]) for kind, probability in blur["kernel_probs"].items()}
    assert_frequencies(kinds, {**expected, "sinc": blur["sinc_prob"]})
    assert 0.2 <= min(sigmas) < 0.21 and 2.99 < max(sigmas) <= 3.0
    assert 0.5 <= min(betas["generalized"]) < 0.51 and 3.9 < max(betas["generalized"]) <= 4
    assert np.mean(np.array(betas["generalized"]) < 1) == pytest.approx(0.5, abs=0.07)
    assert min(betas["plateau"]) == 1 and 1.9 < max(betas["plateau"]) <= 2


def test_steps_are_taken_with_the_probabilities_of_the_yaml(monkeypatch):
    """The second-order pipeline with its image operations replaced by recorders."""
    trace = []
    monkeypatch.setattr(module, "filter_image", lambda image, kernel: trace.append(("filter",)) or image)
    monkeypatch.setattr(module, "resize_image", lambda image, height, width, mode: trace.append(("resize", height, mode)) or image)
    monkeypatch.setattr(module, "gaussian_noise", lambda image, sigma, gray, rng: trace.append(("gaussian", sigma, gray)) or 0)
    monkeypatch.setattr(module, "poisson_noise", lambda image, scale, gray, rng: trace.append(("poisson", scale, gray)) or 0)
    monkeypatch.setattr(module, "jpeg_image", lambda image, quality: trace.append(("jpeg", quality)) or image)
    config, image = load_degradation("resshift_second_order"), np.zeros((400, 4, 3), np.float32)
    first, second, final = [], [], []
    for seed in range(1500):
        trace.clear()
        degrade(image, config, image_rng(0, seed))
        names = [step[0] for step in trace]
        end = names.index("jpeg") + 1  # the first pass ends with its JPEG
        noises = [index for index, name in enumerate(names) if name in ("gaussian", "poisson")]
        first.append(trace[:end])
        split = noises[1] + 1 if len(noises) == 2 else end
        second.append(trace[end:split])
        final.append(trace[split:])

    def direction(steps, keep):
        height = next(step[1] for step in steps if step[0] == "resize")
        return "keep" if height == keep else "up" if height > keep else "down"

    assert all([step[0] for step in steps][:2] == ["filter", "resize"] and len(steps) == 4 for steps in first)
    heights = [steps[1][1] for steps in first]
    assert 60 <= min(heights) < 62 and 596 < max(heights) <= 600
    assert_frequencies(Counter(direction(steps, 400) for steps in first), {"up": 0.2, "down": 0.7, "keep": 0.1})
    assert_frequencies(Counter(steps[1][2] for steps in first), dict.fromkeys(("area", "bilinear", "bicubic"), 1 / 3))
    assert_frequencies(Counter(steps[2][0] for steps in first), {"gaussian": 0.5, "poisson": 0.5})
    assert_frequencies(Counter(steps[2][2] for steps in first), {True: 0.4, False: 0.6})
    for kind, low, high in (("gaussian", 1, 30), ("poisson", 0.05, 3)):
        drawn = [steps[2][1] for steps in first if steps[2][0] == kind]
        assert low <= min(drawn) < low + 0.2 and high - 0.2 < max(drawn) <= high
    assert {steps[3][1] for steps in first} == set(range(30, 96))

    taken = [steps for steps in second if steps]
    assert_frequencies(Counter(bool(steps) for steps in second), {True: 0.5, False: 0.5})
    assert_frequencies(Counter(steps[0][0] for steps in taken), {"filter": 0.8, "resize": 0.2})
    assert_frequencies(Counter(direction(steps, 100) for steps in taken), {"up": 0.3, "down": 0.4, "keep": 0.3})

    orders = Counter(tuple(step[0] for step in steps) for steps in final)
    expected = {("resize", "filter", "jpeg"): 0.4, ("jpeg", "resize", "filter"): 0.4, ("resize", "jpeg"): 0.1, ("jpeg", "resize"): 0.1}
    assert_frequencies(orders, expected)
    assert set(orders) == set(expected)

    jpeg = dataclasses.replace(config.final.jpeg, resize_first_prob=1.0)
    config = dataclasses.replace(config, final=dataclasses.replace(config.final, jpeg=jpeg))
    for seed in range(20):
        trace.clear()
        degrade(image, config, image_rng(0, seed))
        assert trace[-1][0] == "jpeg"


def test_first_order_is_blur_resize_noise_jpeg_then_resize_to_lr(monkeypatch):
    trace = []
    for name in ("filter_image", "resize_image", "jpeg_image"):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, original=original: trace.append(name) or original(*args))
    degrade(photograph(64, 48), load_degradation("resshift"), image_rng(0, "a"))
    assert trace == ["filter_image", "resize_image", "jpeg_image", "resize_image"]


def leaves(settings, prefix=()):
    for key, value in settings.items():
        if isinstance(value, dict) and not key.endswith("probs") and key != "probs":
            yield from leaves(value, (*prefix, key))
        elif isinstance(value, dict):
            yield from ((*prefix, key, kind) for kind in value)
        elif value is not None:
            yield (*prefix, key)


def changed(settings, path):
    """A copy in which the parameter at `path` has another valid value."""
    settings = copy.deepcopy(settings)
    *parents, key = path
    table = settings
    for name in parents:
        table = table[name]
    value = table[key]
    if parents and parents[-1].endswith("probs"):
        table.update({kind: float(kind == key) for kind in table})
    elif key == "scale":
        table[key] = 2
    elif key == "sinc_large_from":
        table[key] = 3
    elif isinstance(value, (int, float)):
        table[key] = 1.0 if value < 0.5 else 0.0 if value > 0.5 else 0.9
        if key == "second_order_prob":
            table[key] = 1.0
    elif len(value) == 2 and all(isinstance(entry, (int, float)) for entry in value):
        table[key] = [1.0, 1.0] if key in ("betag", "betap", "range") else [value[0]] * 2
    else:
        table[key] = value[-1:]
    return settings


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_the_yaml_changes_the_output(name, tmp_path):
    settings, image = settings_of(name), photograph(32, 32)
    base_config, base = config_of(settings, tmp_path), {}
    for path in leaves(settings):
        if path == ("second_order_prob",) and settings["second"] is None:
            continue  # without a second pass it must be 0: see test_bad_settings
        config = config_of(changed(settings, path), tmp_path)
        for seed in range(600):
            if seed not in base:
                base[seed] = degrade(image, base_config, image_rng(seed, "image"))
            other = degrade(image, config, image_rng(seed, "image"))
            if other.shape != base[seed].shape or (other != base[seed]).any():
                break
        else:
            pytest.fail(f"{'.'.join(path)} is not read")


@pytest.mark.parametrize("name", NAMES)
def test_every_missing_or_misspelt_key_is_named(name):
    def build(mapping):
        return degradation_settings._build(degradation_settings.DegradationConfig, mapping, "x.yaml", "")

    settings = settings_of(name)
    sections = [path[:depth] for path in leaves(settings) for depth in range(1, len(path) + 1)]
    for path in sections:
        if len(path) > 1 and path[-2].endswith("probs"):
            continue  # a kind left out has probability 0
        broken = copy.deepcopy(settings)
        table = broken
        for key in path[:-1]:
            table = table[key]
        value = table.pop(path[-1])
        with pytest.raises(UserError, match=f"missing key '{'.'.join(path)}'"):
            build(broken)
        table[path[-1] + "x"] = value
        with pytest.raises(UserError, match=f"unknown key '{'.'.join(path)}x'; the nearest known is '{path[-1]}'"):
            build(broken)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("scale",), 0, "'scale' must be a whole number of at least 1"),
        (("first", "blur", "kernel_sizes"), [3, 4], "'first.blur.kernel_sizes' must be a list of odd"),
        (("first", "blur", "kernel_probs"), {"iso": 0.5}, "'first.blur.kernel_probs' must sum to 1, not 0.5"),
        (("first", "blur", "kernel_probs"), {"izo": 1.0}, "unknown entry 'izo'; the nearest known is 'iso'"),
        (("first", "blur", "sigma"), [3, 0.2], "'first.blur.sigma' must be .low, high."),
        (("first", "blur", "betag"), [2, 3], "'first.blur.betag' must contain 1"),
        (("first", "noise", "gray_prob"), 1.5, "'first.noise.gray_prob' must be a probability"),
        (("first", "noise", "gray_prob"), "often", "'first.noise.gray_prob' must be a number"),
        (("first", "resize", "modes"), ["cubic"], "unknown entry 'cubic'; the nearest known is 'bicubic'"),
        (("first", "jpeg", "quality"), [0, 95], "'first.jpeg.quality' must be"),
        (("first", "noise", "gamma"), 3, "unknown key 'first.noise.gamma'; the nearest known"),
        (("first", "noise"), 3, "'first.noise' must map keys"),
        (("second_order_prob",), 0.5, "'second_order_prob' needs the section 'second'"),
    ],
)
def test_bad_settings(path, value, message, tmp_path):
    settings = settings_of("resshift")
    table = settings
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(UserError, match=message):
        config_of(settings, tmp_path)


def test_settings_that_would_never_be_read_and_files_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UserError, match="never be read"):
        config_of({**settings_of("resshift_second_order"), "second_order_prob": 0.0}, tmp_path)
    with pytest.raises(UserError, match="not one of bicubic, light, resshift, resshift_noisy, resshift_second_order"):
        load_degradation("reshift")
    with pytest.raises(UserError, match="cannot be read"):
        load_degradation(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("scale: [4")
    with pytest.raises(UserError, match="not valid YAML"):
        load_degradation(tmp_path / "broken.yaml")
