"""The four distortions that a metric must be able to order: blur, noise, JPEG, down-sampling; 8-bit images in and out."""

from collections.abc import Callable

import cv2
import numpy as np

# Five strengths of each at the working resolution, weakest first; the unit is each function's.
LEVELS = {
    "blur": (0.6, 1.0, 1.6, 2.4, 3.5),
    "noise": (4.0, 8.0, 16.0, 28.0, 45.0),
    "jpeg": (75.0, 45.0, 28.0, 16.0, 8.0),
    "downsampling": (1.5, 2.0, 3.0, 4.0, 6.0),
}
MIN_CONTRAST = 10.0  # a crop of almost one colour (8-bit standard deviation) shows no distortion


def blur(image: np.ndarray, sigma: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Gaussian blur, `sigma` in pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def sharpen(image: np.ndarray, amount: float) -> np.ndarray:
    """The unsharp mask of a (H, W, 3) uint8 image, of a width of 1.5 pixels."""
    coarse = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.5, borderType=cv2.BORDER_REFLECT_101)
    return to_8_bits(image + amount * (image - coarse))


def noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise in each channel, `sigma` in 8-bit steps."""
    return to_8_bits(image + sigma * rng.standard_normal(image.shape, dtype=np.float32))


def jpeg(image: np.ndarray, quality: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """JPEG at libjpeg's `quality`; a lower quality is the stronger distortion."""
    code = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(quality)])[1]
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))[..., ::-1]


def downsampling(image: np.ndarray, factor: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Area down-sampling by `factor`, bicubic back to the size."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, round(width / factor)), max(1, round(height / factor))), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


DISTORTIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "blur": blur,
    "noise": noise,
    "jpeg": jpeg,
    "downsampling": downsampling,
}


def to_8_bits(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def distort(image: np.ndarray, kind: str, strength: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 RGB → the same, distorted; `rng` (numpy Generator) is drawn from by noise alone."""
    return np.ascontiguousarray(DISTORTIONS[kind](image, strength, rng))
