"""Orders that a metric which loves blur, sharpness or noise gets wrong.

`validation.py` asks whether a metric orders four known distortions; blur-loving metrics do. Here each crop is put beside images whose
order for an eye is known, and a metric is asked for the share of the crops that it puts in that order:

- texture: GT > its texture shifted by two pixels > a blur with the same PSNR as the shifted one;
- shift: the same with the whole crop shifted;
- lost: GT > its texture shifted > its texture taken away, which has the better PSNR;
- redrawn: a texture > another draw of the same texture > the first one, blurred; textures are the crop's detail with random phases;
- sharpening: GT > a model's sample > that sample over-sharpened;
- noise_gt, noise_sample, noise_blur: an image > that image with white noise; three strengths, each added to the clean one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from dp2osr.data.crops import to_tensor
from dp2osr.data.images import read_image
from dp2osr.data.inputs import list_images
from dp2osr.errors import UserError, listed
from dp2osr.markdown import table
from dp2osr.rewards.config import MetricSpec, RewardConfig
from dp2osr.rewards.distortions import blur, noise, sharpen, to_8_bits
from dp2osr.rewards.metrics import MetricSuite, check_modes

SHIFT = 2  # pixels
DETAIL_SIGMA = 3.0  # pixels; what a Gaussian of this width takes away gives the textures of `redrawn` their spectrum
DETAIL_SPREAD = 25.0  # 8-bit steps, of these textures
TEXTURE_SIGMA = 2.0  # what a Gaussian of this width (pixels) takes away is the texture
OVER_SHARPENED = 1.5  # gradients of an over-sharpened image over those of its GT
NOISE = (5.0, 10.0, 20.0)  # 8-bit steps
BLUR_SIGMA = 1.5  # pixels, of the blur to which noise is added


@dataclass(frozen=True)
class Series:
    """A crop's images and what is known of them.

    Attributes:
        images: (K, H, W, 3) uint8, the GT first.
        orders: order → list of chains of indices into `images`, best first.
    """

    images: np.ndarray
    orders: dict


def make_series(gt: np.ndarray, sample: np.ndarray | None = None, seed: int = 0) -> Series:
    """`Series` of a (H, W, 3) uint8 GT and, for the orders that need one, a model's sample of it."""
    rng = np.random.default_rng(seed)
    offset = [(SHIFT, 0), (0, SHIFT), (-SHIFT, 0), (0, -SHIFT)][rng.integers(4)]
    images, orders = [gt], {}

    def add(*more: np.ndarray) -> list[int]:
        images.extend(more)
        return list(range(len(images) - len(more), len(images)))

    moved = shift_texture(gt, offset)
    first, blurred, bare = add(moved, blur_of_psnr(gt, psnr(moved, gt)), blur(gt, TEXTURE_SIGMA))
    orders["texture"], orders["lost"] = [[0, first, blurred]], [[0, first, bare]]
    moved = shift(gt, offset)
    orders["shift"] = [[0, *add(moved, blur_of_psnr(gt, psnr(moved, gt)))]]
    orders["noise_gt"] = [[0, noisy] for noisy in add(*(noise(gt, sigma, rng) for sigma in NOISE))]
    if sample is not None:
        first, over = add(sample, over_sharpen(sample, gt))
        orders["sharpening"] = [[0, first, over]]
        orders["noise_sample"] = [[first, noisy] for noisy in add(*(noise(sample, sigma, rng) for sigma in NOISE))]
    soft = blur(gt, BLUR_SIGMA)
    (first,) = add(soft)
    orders["noise_blur"] = [[first, noisy] for noisy in add(*(noise(soft, sigma, rng) for sigma in NOISE))]
    return Series(np.stack(images), orders)


def make_texture_series(gt: np.ndarray, seed: int = 0) -> Series:
    """`Series` of the order `redrawn`: two draws of the texture of a (H, W, 3) uint8 crop, and the first one blurred."""
    first, second = (draw_texture(gt, np.random.default_rng((seed, draw))) for draw in range(2))
    return Series(np.stack([first, second, blur(first, BLUR_SIGMA)]), {"redrawn": [[0, 1, 2]]})


def draw_texture(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stationary texture: the image's mean colour, and its detail with random phases (Galerne, Gousseau, Morel 2011); uint8."""
    image = image.astype(np.float32)
    detail = image - cv2.GaussianBlur(image, (0, 0), DETAIL_SIGMA, borderType=cv2.BORDER_REFLECT_101)
    phases = np.exp(1j * np.angle(np.fft.fft2(rng.standard_normal(image.shape[:2]))))  # of a real image's, the same in all channels
    drawn = np.fft.ifft2(np.fft.fft2(detail, axes=(0, 1)) * phases[..., None], axes=(0, 1)).real
    return to_8_bits(image.mean((0, 1)) + drawn * DETAIL_SPREAD / max(drawn.std(), 1e-3))


def shift(image: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 moved by (rows, columns) pixels; what comes in is mirrored."""
    return ndimage.shift(image, (*offset, 0), order=0, mode="mirror")


def shift_texture(image: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 whose fine detail, what a Gaussian takes away, is moved by (rows, columns) pixels; the rest stays."""
    coarse = cv2.GaussianBlur(image.astype(np.float32), (0, 0), TEXTURE_SIGMA, borderType=cv2.BORDER_REFLECT_101)
    return to_8_bits(coarse + shift(image - coarse, offset))


def blur_of_psnr(image: np.ndarray, wanted: float) -> np.ndarray:
    """The Gaussian blur of an image whose PSNR with it is the wanted one, or as near as a blur can come."""
    return bisect(lambda sigma: blur(image, sigma), lambda blurred: -psnr(blurred, image), -wanted, 0.2, 20.0)


def over_sharpen(image: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """The unsharp mask of an image whose gradients are `OVER_SHARPENED` times the GT's, or the strongest tried."""
    return bisect(partial(sharpen, image), gradient, OVER_SHARPENED * gradient(gt), 0.5, 30.0)


def bisect(
    make: Callable[[float], np.ndarray], measure: Callable[[np.ndarray], float], wanted: float, low: float, high: float
) -> np.ndarray:
    """The image `make(x)`, low ≤ x ≤ high, whose `measure`, rising with x, is the wanted one."""
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(make(middle)) < wanted else (low, middle)
    return make(high)


def psnr(image: np.ndarray, gt: np.ndarray) -> float:
    error = np.square(image.astype(np.float64) - gt).mean()
    return 10 * np.log10(255**2 / error) if error else np.inf


def gradient(image: np.ndarray) -> float:
    """RMS of the differences of neighbours, 8-bit steps."""
    image = image.astype(np.float64)
    return np.sqrt((np.square(np.diff(image, axis=0)).mean() + np.square(np.diff(image, axis=1)).mean()) / 2)


def validate_orders(suite: MetricSuite, crops: Sequence[Series]) -> dict[str, dict[str, float]]:
    """Score each crop's series with every metric.

    Args:
        suite: `MetricSuite`.
        crops: list of `Series`.

    Returns:
        metric → order → share of the crops' chains in that order; ties are wrong.
    """
    right: dict[str, dict[str, list[bool]]] = {name: {} for name in suite.specs}
    for index, series in enumerate(tqdm(crops, desc="orders", unit="crop")):
        images = to_tensor(list(series.images))
        for name, values in suite.score(images, gt=images[0], image_id=f"crop {index}").items():
            badness = values if suite.lower_better[name] else -values
            for order, chains in series.orders.items():
                right[name].setdefault(order, []).extend(bool((np.diff(badness[chain]) > 0).all()) for chain in chains)
    return {name: {order: float(np.mean(found)) for order, found in shares.items()} for name, shares in right.items()}


def read_series(gt_path: str | Path, sr_path: str | Path | None = None) -> list[Series]:
    """Two `Series` of each GT of a folder, in order of their names, with the sample of the same name: its own, and of its texture.

    Args:
        gt_path: folder of GT crops.
        sr_path: folder of a model's samples of them, or None: then the orders that need one are left out.

    Raises:
        UserError: a GT without its sample, sizes that differ, or images that cannot be read.
    """
    paths = list_images(gt_path)
    samples = {path.stem: path for path in list_images(sr_path)} if sr_path else {}
    missing = [path.stem for path in paths if path.stem not in samples] if sr_path else []
    if missing:
        raise UserError(f"{sr_path}: no sample of {len(missing)} of {len(paths)} GT images: {listed(missing)}; a sample has its GT's name")
    crops = []
    for index, path in enumerate(paths):
        gt = np.asarray(read_image(path))
        sample = np.asarray(read_image(samples[path.stem])) if samples else None
        if sample is not None and sample.shape != gt.shape:
            raise UserError(f"{samples[path.stem]}: {size(sample)} pixels, and its GT {path} has {size(gt)}; a sample has its GT's size")
        crops += [make_series(gt, sample, index), make_texture_series(gt, index)]
    return crops


def size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def orders_of_config(
    config: RewardConfig, gt_path: str | Path, sr_path: str | Path | None, extra: Sequence[MetricSpec]
) -> dict[str, dict[str, float]]:
    """Build the config's suite, with `extra` metrics (`MetricSpec`s) beside it, and validate it on a folder; see `validate_orders`."""
    crops = read_series(gt_path, sr_path)
    suite = MetricSuite([*config.computed, *extra])
    check_modes(config, suite)
    with torch.inference_mode():
        return validate_orders(suite, crops)


def format_orders(results: Mapping[str, Mapping[str, float]]) -> str:
    """The shares as a Markdown table, a row a metric."""
    orders = list(next(iter(results.values())))
    return table(["metric", *orders], ([f"`{name}`", *(f"{shares[order]:.2f}" for order in orders)] for name, shares in results.items()))
