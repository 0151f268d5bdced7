"""Synthetic degradation of photographs: ResShift's blur → resize → noise → JPEG, all of it read from a YAML.

`load_degradation("resshift")` reads `configs/degradation/resshift.yaml`; `degrade(image, config, rng)` makes one LR image.
The order of the steps and the parameters are those of ResShift (Yue et al., NeurIPS 2023), which follow Real-ESRGAN
(Wang et al., ICCVW 2021, §3).
Only OpenCV and NumPy are used, both of which release the interpreter's lock, so threads can prepare a batch.
"""

import difflib
import hashlib
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import cv2
import numpy as np
from scipy.special import j1

from dp2osr.errors import UserError
from dp2osr.files import read_yaml
from dp2osr.places import CONFIGS

CONFIG_DIR = CONFIGS / "degradation"
KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
RESIZE_DIRECTIONS = ("up", "down", "keep")
RESIZE_MODES = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


# ---------------------------------------------------------------------------------------------------------------------
# Settings: each field carries the check of its YAML value; a check returns the value or raises ValueError
# ---------------------------------------------------------------------------------------------------------------------


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"must be a number, not {value!r}")
    return float(value)


def _probability(value):
    if not 0 <= _number(value) <= 1:
        raise ValueError(f"must be a probability in [0, 1], not {value!r}")
    return float(value)


def _whole(value, least):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"must be a whole number of at least {least}, not {value!r}")
    return value


def _range(least, most, around=None):
    """A check for `[low, high]` within [least, most]; if `around` is given, low ≤ around ≤ high."""

    def check(value):
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"must be [low, high], not {value!r}")
        low, high = map(_number, value)
        if not least <= low <= high <= most:
            raise ValueError(f"must be [low, high] with {least:g} <= low <= high <= {most:g}, not {value!r}")
        if around is not None and not low <= around <= high:
            raise ValueError(f"must contain {around:g}, not {value!r}")
        return low, high

    return check


def _choices(allowed):
    """A check for a list out of `allowed`, drawn from with equal probability."""

    def check(value):
        if not isinstance(value, list) or not value:
            raise ValueError(f"must be a list out of {', '.join(allowed)}, not {value!r}")
        for entry in value:
            if entry not in allowed:
                raise ValueError(f"has the unknown entry {entry!r}{_nearest(entry, allowed)}")
        return tuple(value)

    return check


def _distribution(allowed):
    """A check for a mapping `kind: probability` over `allowed` with sum 1; a kind left out has probability 0."""

    def check(value):
        if not isinstance(value, dict) or not value:
            raise ValueError(f"must map {', '.join(allowed)} to probabilities, not {value!r}")
        for kind in value:
            if kind not in allowed:
                raise ValueError(f"has the unknown entry {kind!r}{_nearest(kind, allowed)}")
        pairs = tuple((kind, _probability(value[kind])) for kind in allowed if kind in value)
        if abs(sum(probability for _, probability in pairs) - 1) > 1e-6:
            raise ValueError(f"must sum to 1, not {sum(probability for _, probability in pairs):g}")
        return pairs

    return check


def _odd_sizes(value):
    if not isinstance(value, list) or not value or any(_whole(size, 3) % 2 == 0 for size in value):
        raise ValueError(f"must be a list of odd kernel sizes of at least 3, not {value!r}")
    return tuple(value)


def _value(check):
    return field(metadata={"check": check})


def _section(kind, optional=False):
    return field(metadata={"section": kind, "optional": optional})


@dataclass(frozen=True)
class BlurConfig:
    """One blur: with `sinc_prob` a sinc kernel, else one of `kernel_probs`."""

    prob: float = _value(_probability)
    kernel_sizes: tuple = _value(_odd_sizes)
    kernel_probs: tuple = _value(_distribution(KERNEL_KINDS))
    sigma: tuple = _value(_range(1e-3, 100))  # pixels, each axis
    rotation: tuple = _value(_range(-360, 360))  # degrees, anisotropic kernels
    betag: tuple = _value(_range(1e-2, 20, around=1))  # shape of the generalized Gaussian; half of the draws lie below 1
    betap: tuple = _value(_range(1e-2, 20, around=1))  # shape of the plateau kernel
    sinc_prob: float = _value(_probability)
    sinc_large_from: int = _value(lambda value: _whole(value, 3))  # kernel size from which `sinc_cutoff_large` holds
    sinc_cutoff_small: tuple = _value(_range(1e-2, 1))  # units of pi
    sinc_cutoff_large: tuple = _value(_range(1e-2, 1))


@dataclass(frozen=True)
class ResizeConfig:
    """One random resize; the factor is drawn from [1, high] when up, [low, 1] when down."""

    probs: tuple = _value(_distribution(RESIZE_DIRECTIONS))
    range: tuple = _value(_range(1e-2, 10, around=1))
    modes: tuple = _value(_choices(RESIZE_MODES))


@dataclass(frozen=True)
class NoiseConfig:
    """Gaussian noise with `gaussian_prob`, else Poisson noise; one noise for the three channels with `gray_prob`."""

    gaussian_prob: float = _value(_probability)
    gaussian_sigma: tuple = _value(_range(0, 255))  # of 255
    poisson_scale: tuple = _value(_range(0, 100))
    gray_prob: float = _value(_probability)


@dataclass(frozen=True)
class JpegConfig:
    quality: tuple = _value(_range(1, 100))


@dataclass(frozen=True)
class FirstPassConfig:
    blur: BlurConfig = _section(BlurConfig)
    resize: ResizeConfig = _section(ResizeConfig)
    noise: NoiseConfig = _section(NoiseConfig)
    jpeg: JpegConfig | None = _section(JpegConfig, optional=True)


@dataclass(frozen=True)
class SecondPassConfig:
    """No JPEG: the final one closes the second pass. Resize factors are relative to the LR size."""

    blur: BlurConfig = _section(BlurConfig)
    resize: ResizeConfig = _section(ResizeConfig)
    noise: NoiseConfig = _section(NoiseConfig)


@dataclass(frozen=True)
class FinalSincConfig:
    prob: float = _value(_probability)
    kernel_sizes: tuple = _value(_odd_sizes)
    cutoff: tuple = _value(_range(1e-2, 1))


@dataclass(frozen=True)
class FinalJpegConfig:
    quality: tuple = _value(_range(1, 100))
    resize_first_prob: float = _value(_probability)  # resize to LR, then JPEG; else JPEG, then resize


@dataclass(frozen=True)
class FinalConfig:
    """The resize to LR size with its sinc filter, and a last JPEG before or after it."""

    resize_modes: tuple = _value(_choices(RESIZE_MODES))
    sinc: FinalSincConfig | None = _section(FinalSincConfig, optional=True)
    jpeg: FinalJpegConfig | None = _section(FinalJpegConfig, optional=True)


@dataclass(frozen=True)
class DegradationConfig:
    scale: int = _value(lambda value: _whole(value, 1))
    first: FirstPassConfig = _section(FirstPassConfig)
    second_order_prob: float = _value(_probability)
    second: SecondPassConfig | None = _section(SecondPassConfig, optional=True)
    final: FinalConfig = _section(FinalConfig)


def load_degradation(name_or_path):
    """Read a degradation by name (`configs/degradation/<name>.yaml`) or from a YAML file.

    Raises:
        UserError: no such degradation; a key that is unknown, missing or out of range (named, with the nearest known key).
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIG_DIR / f"{name_or_path}.yaml"
        known = sorted(entry.stem for entry in CONFIG_DIR.glob("*.yaml"))
        if str(name_or_path) not in known:
            raise UserError(f"degradation '{name_or_path}': not one of {', '.join(known)}; give one of these or a .yaml file")
    settings = read_yaml(path, "valid YAML")
    config = _build(DegradationConfig, settings, path, "")
    if config.second_order_prob > 0 and config.second is None:
        raise UserError(f"{path}: 'second_order_prob' needs the section 'second'")
    if config.second_order_prob == 0 and config.second is not None:
        raise UserError(f"{path}: 'second_order_prob' is 0, so the section 'second' would never be read; set it to null")
    return config


def _build(kind, settings, path, prefix):
    """The dataclass `kind` from a YAML mapping whose keys are exactly its fields."""
    if not isinstance(settings, dict):
        raise UserError(f"{path}: {f'{prefix[:-1]!r}' if prefix else 'the file'} must map keys to values")
    known = [entry.name for entry in fields(kind)]
    for key in settings:
        if key not in known:
            raise UserError(f"{path}: unknown key '{prefix}{key}'{_nearest(key, known)}")
    values = {}
    for entry in fields(kind):
        name = prefix + entry.name
        if entry.name not in settings:
            way_out = "; give it, or null to leave the step out" if entry.metadata.get("optional") else "; give it"
            raise UserError(f"{path}: missing key '{name}'{way_out}")
        value = settings[entry.name]
        if "section" in entry.metadata:
            absent = value is None and entry.metadata["optional"]
            values[entry.name] = None if absent else _build(entry.metadata["section"], value, path, f"{name}.")
            continue
        try:
            values[entry.name] = entry.metadata["check"](value)
        except ValueError as error:
            raise UserError(f"{path}: '{name}' {error}") from None
    return kind(**values)


def _nearest(key, known):
    match = difflib.get_close_matches(str(key), [str(entry) for entry in known], n=1, cutoff=0)
    return f"; the nearest known is '{match[0]}'"


# ---------------------------------------------------------------------------------------------------------------------
# Blur kernels (Real-ESRGAN §3.1 and eq. 6): (size, size) float32, non-negative but for sinc, sum 1
# ---------------------------------------------------------------------------------------------------------------------


def _squared_distance(size, sigma_x, sigma_y, angle):
    """x^T Σ^-1 x on the kernel's grid, Σ = R diag(sigma_x², sigma_y²) R^T with the rotation R by `angle` (radians)."""
    axis = np.arange(size) - size // 2
    x, y = np.meshgrid(axis, axis)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _normalised(kernel):
    return (kernel / kernel.sum()).astype(np.float32)


def gaussian_kernel(size, sigma_x, sigma_y, angle=0.0, beta=1.0):
    """Generalized Gaussian exp(-(x^T Σ^-1 x)^beta / 2); beta = 1 is the Gaussian. Sigmas in pixels, angle in radians."""
    return _normalised(np.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def plateau_kernel(size, sigma_x, sigma_y, angle=0.0, beta=1.0):
    """1 / (1 + (x^T Σ^-1 x)^beta). Sigmas in pixels, angle in radians."""
    return _normalised(1 / (1 + _squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def sinc_kernel(size, cutoff):
    """The circular low-pass filter ω J1(ω r) / (2π r) of cutoff ω, radians a pixel; it rings as sharpened or recompressed images do."""
    axis = np.arange(size) - size // 2
    radius = np.hypot(*np.meshgrid(axis, axis))
    radius[size // 2, size // 2] = 1  # any but 0; the limit at the centre is set below
    kernel = cutoff * j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _normalised(kernel)


def draw_kernel(config, rng):
    """A random blur kernel of a `BlurConfig`: (size, size) float32, sum 1."""
    size = int(rng.choice(config.kernel_sizes))
    if rng.random() < config.sinc_prob:
        cutoff = config.sinc_cutoff_small if size < config.sinc_large_from else config.sinc_cutoff_large
        return sinc_kernel(size, math.pi * rng.uniform(*cutoff))
    kind = _draw(config.kernel_probs, rng)
    sigma_x = sigma_y = rng.uniform(*config.sigma)
    angle = 0.0
    if kind.endswith("aniso"):
        sigma_y, angle = rng.uniform(*config.sigma), math.radians(rng.uniform(*config.rotation))
    if kind.startswith("plateau"):
        return plateau_kernel(size, sigma_x, sigma_y, angle, _draw_around_one(config.betap, rng))
    beta = _draw_around_one(config.betag, rng) if kind.startswith("generalized") else 1.0
    return gaussian_kernel(size, sigma_x, sigma_y, angle, beta)


def _draw(distribution, rng):
    """One kind of ((kind, probability), ...)."""
    kinds, probabilities = zip(*distribution, strict=True)
    return kinds[min(int(np.searchsorted(np.cumsum(probabilities), rng.random(), side="right")), len(kinds) - 1)]


def _draw_around_one(bounds, rng):
    """Half of the draws in [low, 1], half in [1, high]: kernels sharper and flatter than a Gaussian are equally frequent."""
    low, high = bounds
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


# ---------------------------------------------------------------------------------------------------------------------
# The steps: (H, W, 3) float32 RGB; values may leave [0, 1] until the noise step clips them
# ---------------------------------------------------------------------------------------------------------------------


def filter_image(image, kernel):
    """Convolve with a kernel (all ours are point-symmetric, so OpenCV's correlation is the same); the border is reflected."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def resize_image(image, height, width, mode):
    """Resize without antialiasing but for `area`, as ResShift does: the aliasing is part of the degradation."""
    return cv2.resize(image, (width, height), interpolation=RESIZE_MODES[mode])


def jpeg_image(image, quality):
    """Compress and decompress; 4:2:0 chroma, quality in 1..100."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.float32) / 255


def to_uint8(image):
    """[0, 1] → 0..255, rounded to nearest."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _to_gray(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def gaussian_noise(image, sigma, gray, rng):
    """`sigma` of 255; gray noise is one plane for the three channels. Returns the noise, (H, W, 1 or 3)."""
    channels = 1 if gray else 3
    return rng.standard_normal((*image.shape[:2], channels), dtype=np.float32) * np.float32(sigma / 255)


def poisson_noise(image, scale, gray, rng):
    """Shot noise, its deviation times `scale`; white has as many photons as levels are in use, up to a power of two (Real-ESRGAN)."""
    levels = to_uint8(_to_gray(image) if gray else image)
    photons = 2 ** math.ceil(math.log2(np.count_nonzero(np.bincount(levels.ravel(), minlength=256))))
    clean = levels.astype(np.float32) / 255
    return (rng.poisson(clean * photons).astype(np.float32) / photons - clean) * np.float32(scale)


def _blur(image, config, rng):
    return filter_image(image, draw_kernel(config, rng)) if rng.random() < config.prob else image


def _resize(image, base_height, base_width, config, rng):
    direction = _draw(config.probs, rng)
    low, high = config.range
    factor = {"up": rng.uniform(1, high), "down": rng.uniform(low, 1), "keep": 1.0}[direction]
    mode = config.modes[rng.integers(len(config.modes))]
    return resize_image(image, max(1, int(base_height * factor)), max(1, int(base_width * factor)), mode)


def _noise(image, config, rng):
    gray = rng.random() < config.gray_prob
    if rng.random() < config.gaussian_prob:
        noise = gaussian_noise(image, rng.uniform(*config.gaussian_sigma), gray, rng)
    else:
        noise = poisson_noise(image, rng.uniform(*config.poisson_scale), gray, rng)
    return np.clip(image + noise, 0, 1)


def _jpeg(image, config, rng):
    return jpeg_image(image, round(rng.uniform(*config.quality)))


def _final_resize(image, height, width, config, rng):
    image = resize_image(image, height, width, config.resize_modes[rng.integers(len(config.resize_modes))])
    if config.sinc is not None and rng.random() < config.sinc.prob:
        size, cutoff = int(rng.choice(config.sinc.kernel_sizes)), math.pi * rng.uniform(*config.sinc.cutoff)
        image = filter_image(image, sinc_kernel(size, cutoff))
    return image


def degrade(image, config, rng):
    """Make the LR image of a GT image; the GT itself is left as it is, never sharpened.

    Args:
        image: (H, W, 3) float32 RGB in [0, 1]; H and W multiples of `config.scale`.
        config: `DegradationConfig`.
        rng: source of all randomness; the same state gives the same LR image.

    Returns:
        (H / scale, W / scale, 3) float32 RGB in [0, 1], rounded to 8 bits: a PNG keeps it exactly.

    Raises:
        ValueError: not an (H, W, 3) float32 array, or a side that is no multiple of the scale.
    """
    if image.dtype != np.float32 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an (H, W, 3) float32 image is needed, not {image.shape} {image.dtype}")
    height, width = image.shape[0] // config.scale, image.shape[1] // config.scale
    if image.shape[:2] != (height * config.scale, width * config.scale) or min(height, width) < 1:
        raise ValueError(f"sides {image.shape[:2]} are no multiples of the scale {config.scale}")

    first = config.first
    image = _blur(image, first.blur, rng)
    image = _resize(image, image.shape[0], image.shape[1], first.resize, rng)
    image = _noise(image, first.noise, rng)
    if first.jpeg is not None:
        image = _jpeg(image, first.jpeg, rng)

    if rng.random() < config.second_order_prob:
        image = _blur(image, config.second.blur, rng)
        image = _resize(image, height, width, config.second.resize, rng)
        image = _noise(image, config.second.noise, rng)

    final = config.final
    resize_first = final.jpeg is not None and rng.random() < final.jpeg.resize_first_prob
    if resize_first:
        image = _final_resize(image, height, width, final, rng)
    if final.jpeg is not None:
        image = _jpeg(image, final.jpeg, rng)
    if not resize_first:
        image = _final_resize(image, height, width, final, rng)
    return to_uint8(image).astype(np.float32) / 255


def image_rng(seed, image_id):
    """A generator that depends on (seed, image_id) alone: not on the order of images, the worker or the Python process."""
    digest = hashlib.sha256(f"{seed}\0{image_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
