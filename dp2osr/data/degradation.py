"""Synthetic degradation of photographs: ResShift's blur → resize → noise → JPEG, all of it read from a YAML.

`load_degradation("resshift")` reads `configs/degradation/resshift.yaml`; `degrade(image, config, rng)` makes one LR image.
The order of the steps and the parameters are those of ResShift (Yue et al., NeurIPS 2023), which follow Real-ESRGAN
(Wang et al., ICCVW 2021, §3).
Only OpenCV and NumPy are used, both of which release the interpreter's lock, so threads can prepare a batch.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from scipy.special import j1

RESIZE_MODES = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


# ---------------------------------------------------------------------------------------------------------------------
# Blur kernels (Real-ESRGAN §3.1 and eq. 6): (size, size) float32, non-negative but for sinc, sum 1
# ---------------------------------------------------------------------------------------------------------------------


def _squared_distance(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """x^T Σ^-1 x on the kernel's grid, Σ = R diag(sigma_x², sigma_y²) R^T with the rotation R by `angle` (radians)."""
    axis = np.arange(size) - size // 2
    x, y = np.meshgrid(axis, axis)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0) -> np.ndarray:
    """Generalized Gaussian exp(-(x^T Σ^-1 x)^beta / 2); beta = 1 is the Gaussian. Sigmas in pixels, angle in radians."""
    return _normalised(np.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0) -> np.ndarray:
    """1 / (1 + (x^T Σ^-1 x)^beta). Sigmas in pixels, angle in radians."""
    return _normalised(1 / (1 + _squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """The circular low-pass filter ω J1(ω r) / (2π r) of cutoff ω, radians a pixel; it rings as sharpened or recompressed images do."""
    axis = np.arange(size) - size // 2
    radius = np.hypot(*np.meshgrid(axis, axis))
    radius[size // 2, size // 2] = 1  # any but 0; the limit at the centre is set below
    kernel = cutoff * j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _normalised(kernel)


def draw_kernel(config: Any, rng: np.random.Generator) -> np.ndarray:
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


def _draw(distribution: Sequence[tuple[str, float]], rng: np.random.Generator) -> str:
    """One kind of ((kind, probability), ...)."""
    kinds, probabilities = zip(*distribution, strict=True)
    return kinds[min(int(np.searchsorted(np.cumsum(probabilities), rng.random(), side="right")), len(kinds) - 1)]


def _draw_around_one(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """Half of the draws in [low, 1], half in [1, high]: kernels sharper and flatter than a Gaussian are equally frequent."""
    low, high = bounds
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


# ---------------------------------------------------------------------------------------------------------------------
# The steps: (H, W, 3) float32 RGB; values may leave [0, 1] until the noise step clips them
# ---------------------------------------------------------------------------------------------------------------------


def filter_image(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve with a kernel (all ours are point-symmetric, so OpenCV's correlation is the same); the border is reflected."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def resize_image(image: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    """Resize without antialiasing but for `area`, as ResShift does: the aliasing is part of the degradation."""
    return cv2.resize(image, (width, height), interpolation=RESIZE_MODES[mode])


def jpeg_image(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress; 4:2:0 chroma, quality in 1..100."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.float32) / 255


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[0, 1] → 0..255, rounded to nearest."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _to_gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def gaussian_noise(image: np.ndarray, sigma: float, gray: bool, rng: np.random.Generator) -> np.ndarray:
    """`sigma` of 255; gray noise is one plane for the three channels. Returns the noise, (H, W, 1 or 3)."""
    channels = 1 if gray else 3
    return rng.standard_normal((*image.shape[:2], channels), dtype=np.float32) * np.float32(sigma / 255)


def poisson_noise(image: np.ndarray, scale: float, gray: bool, rng: np.random.Generator) -> np.ndarray:
    """Shot noise, its deviation times `scale`; white has as many photons as levels are in use, up to a power of two (Real-ESRGAN)."""
    levels = to_uint8(_to_gray(image) if gray else image)
    photons = 2 ** math.ceil(math.log2(np.count_nonzero(np.bincount(levels.ravel(), minlength=256))))
    clean = levels.astype(np.float32) / 255
    return (rng.poisson(clean * photons).astype(np.float32) / photons - clean) * np.float32(scale)


def _blur(image: np.ndarray, config: Any, rng: np.random.Generator) -> np.ndarray:
    return filter_image(image, draw_kernel(config, rng)) if rng.random() < config.prob else image


def _resize(image: np.ndarray, base_height: int, base_width: int, config: Any, rng: np.random.Generator) -> np.ndarray:
    direction = _draw(config.probs, rng)
    low, high = config.range
    factor = {"up": rng.uniform(1, high), "down": rng.uniform(low, 1), "keep": 1.0}[direction]
    mode = config.modes[rng.integers(len(config.modes))]
    return resize_image(image, max(1, int(base_height * factor)), max(1, int(base_width * factor)), mode)


def _noise(image: np.ndarray, config: Any, rng: np.random.Generator) -> np.ndarray:
    gray = rng.random() < config.gray_prob
    if rng.random() < config.gaussian_prob:
        noise = gaussian_noise(image, rng.uniform(*config.gaussian_sigma), gray, rng)
    else:
        noise = poisson_noise(image, rng.uniform(*config.poisson_scale), gray, rng)
    return np.clip(image + noise, 0, 1)


def _jpeg(image: np.ndarray, config: Any, rng: np.random.Generator) -> np.ndarray:
    return jpeg_image(image, round(rng.uniform(*config.quality)))


def _final_resize(image: np.ndarray, height: int, width: int, config: Any, rng: np.random.Generator) -> np.ndarray:
    image = resize_image(image, height, width, config.resize_modes[rng.integers(len(config.resize_modes))])
    if config.sinc is not None and rng.random() < config.sinc.prob:
        size, cutoff = int(rng.choice(config.sinc.kernel_sizes)), math.pi * rng.uniform(*config.sinc.cutoff)
        image = filter_image(image, sinc_kernel(size, cutoff))
    return image


def degrade(image: np.ndarray, config: Any, rng: np.random.Generator) -> np.ndarray:
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


def image_rng(seed: int, image_id: str) -> np.random.Generator:
    """A generator that depends on (seed, image_id) alone: not on the order of images, the worker or the Python process."""
    digest = hashlib.sha256(f"{seed}\0{image_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
