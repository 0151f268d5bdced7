"""What the tests of degradation share: fixtures and helpers."""

import numpy as np
from scipy import ndimage


def photograph(height, width, seed=0):
    """(H, W, 3) float32 in [0, 1] with the spectrum of a photograph: smooth noise of several sizes and an edge."""
    rng = np.random.default_rng(seed)
    image = sum(sigma * ndimage.gaussian_filter(rng.standard_normal((height, width, 3)), (sigma, sigma, 0)) for sigma in (1, 3, 8))
    image[:, width // 2 :] += 1
    image = (image - image.min()) / (image.max() - image.min())
    return (np.rint(image * 255) / 255).astype(np.float32)


NAMES = ("resshift", "resshift_second_order")
