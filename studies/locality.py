"""Where a policy changed the base's images: same seeds before and after, against what else is known of each place (paper, Fig. 6).

Maps are (H, W) of one image, averaged over seeds; they are compared by Spearman's correlation over blocks of `BLOCK` × `BLOCK` pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import spearmanr
from torch.nn import functional as F

from dp2osr import stats
from dp2osr.rewards.maps import gmsd_map, ssim_map

BLOCK = 4  # pixels; single pixels are mostly the noise of the seed
WINDOW = 7  # side of the neighbourhood of which the local detail is the standard deviation, pixels
FILTER = 9  # side of the linear filter that a change is explained by, pixels
PERIOD = 16  # pixels: a pattern of a model's patches (FLUX: 2 × 2 latents of 8 pixels) repeats with it, or with a part of it


@dataclass(frozen=True)
class ImageChange:
    """One image: pictures of the first seed, (3, H, W) in [0, 1]; maps by name, (H, W) float64; `change` is one of them.

    `moments` are of `filter_moments`, `pattern` of `repeated`.
    """

    image_id: str
    lr: object
    base: torch.Tensor
    policy: torch.Tensor
    gt: torch.Tensor
    maps: dict
    moments: tuple
    pattern: tuple


def image_change(image_id, lr, base, policy, gt):
    """The `ImageChange` of the same seeds before and after.

    Args:
        base, policy: (K, 3, H, W) in [0, 1], the same seeds; gt: (3, H, W).
    """
    maps = {
        "change": (policy - base).abs().mean(dim=(0, 1)),
        "GT detail": torch.from_numpy(local_detail(luma(gt[None])[0].numpy())),
        "base spread over seeds": base.std(dim=0).mean(dim=0),
        "base error": (base - gt).abs().mean(dim=(0, 1)),
        "base GMSD map": full_size(gmsd_map(base, gt[None]), gt).mean(dim=0),
        "base SSIM map": full_size(ssim_map(base, gt[None]), gt).mean(dim=0),
    }
    after = {
        "error": (policy - gt).abs().mean(dim=(0, 1)),
        "GMSD map": full_size(gmsd_map(policy, gt[None]), gt).mean(dim=0),
        "SSIM map": full_size(ssim_map(policy, gt[None]), gt).mean(dim=0),
    }
    maps |= {f"{name} fell": maps[f"base {name}"] - values for name, values in after.items()}
    arrays = {name: values.double().numpy() for name, values in maps.items()}
    difference = luma(policy - base)
    return ImageChange(image_id, lr, base[0], policy[0], gt, arrays, filter_moments(luma(base), difference), repeated(difference))


def luma(images):
    """(B, 3, H, W) → (B, H, W), ITU-R BT.601 weights."""
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1)


def local_detail(image):
    """Standard deviation of each pixel's neighbourhood: (H, W) → (H, W) float64."""
    image = image.astype(np.float64)
    return np.sqrt(np.maximum(0, uniform_filter(image**2, WINDOW) - uniform_filter(image, WINDOW) ** 2))


def full_size(values, image):
    """A map (B, h, w) at the image's size."""
    return F.interpolate(values[:, None].float(), image.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def blocks(values):
    """(H, W) → means of its whole blocks, flat."""
    height, width = (side - side % BLOCK for side in values.shape)
    return values[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean(axis=(1, 3)).ravel()


def correlations(changes, weights):
    """{map: `Estimate`} of Spearman's correlation with the change, averaged over images; interval over photographs."""
    found = {}
    for name in changes[0].maps:
        if name != "change":
            values = np.array([spearmanr(blocks(image.maps["change"]), blocks(image.maps[name])).statistic for image in changes])
            found[name] = stats.ratio_of_means(np.nan_to_num(values), np.ones(len(values)), weights)
    return found


def concentration(changes, weights, share=0.1):
    """`Estimate` of the part of the squared change that lies in the `share` of pixels that change most; spread evenly it is `share`."""
    parts = []
    for image in changes:
        squares = np.sort(image.maps["change"].ravel() ** 2)[::-1]
        parts.append(squares[: max(1, round(share * len(squares)))].sum() / max(squares.sum(), 1e-300))
    return stats.ratio_of_means(np.array(parts), np.ones(len(parts)), weights)


# ---------------------------------------------------------------- how much of it is a pattern that knows no image


def repeated(difference):
    """(Σ of squares of what repeats every `PERIOD` pixels over the whole image, Σ of squares) of (K, H, W), its means left out."""
    rows, columns = (side // PERIOD for side in difference.shape[-2:])
    whole = difference[..., : rows * PERIOD, : columns * PERIOD].double()
    whole = whole - whole.mean(dim=(-2, -1), keepdim=True)
    tile = whole.reshape(-1, rows, PERIOD, columns, PERIOD).mean(dim=(1, 3))
    return float(rows * columns * tile.square().sum()), float(whole.square().sum())


def repetition(changes, weights):
    """`Estimate` of the part of the squared change that repeats every `PERIOD` pixels; by chance it is `PERIOD`² / (H W)."""
    parts, power = (np.array(values) for values in zip(*(image.pattern for image in changes), strict=True))
    return stats.ratio_of_means(parts, power, weights)


# ---------------------------------------------------------------- how much of it is one filter for all


def filter_moments(base, difference):
    """(XᵀX, Xᵀy, yᵀy) of the regression of the luma's change on the base's `FILTER` × `FILTER` neighbourhoods; (K, H, W) twice."""
    patches = F.unfold(base[:, None].double(), FILTER).transpose(1, 2)  # (K, pixels, FILTER²)
    edge = FILTER // 2
    target = difference[:, edge:-edge, edge:-edge].double().reshape(len(base), -1)
    flat, values = patches.reshape(-1, FILTER**2), target.reshape(-1)
    flat = torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], dim=1)
    return (flat.T @ flat).numpy(), (flat.T @ values).numpy(), float(values @ values)


def explained_by_filters(changes, photographs, weights):
    """How much of the squared change linear filters of the base explain: ({what: `Estimate`}).

    "one filter for all" is fitted on the other photographs, "a filter of its own" on the image itself: the most that a single filter can
    explain of it. What is left depends on the place.
    """
    names = np.unique(photographs)
    total = {name: _sum([image.moments for image, owner in zip(changes, photographs) if owner == name]) for name in names}
    everything = _sum(list(total.values()))
    common, own, power = [], [], []
    for image, owner in zip(changes, photographs):
        others = tuple(all_ - part for all_, part in zip(everything, total[owner]))
        power.append(image.moments[2])
        common.append(_explained(image.moments, _fit(others)))
        own.append(_explained(image.moments, _fit(image.moments)))
    power = np.array(power)
    found = {"a filter of its own": stats.ratio_of_means(np.array(own), power, weights)}
    if len(names) > 1:
        found = {"one filter for all": stats.ratio_of_means(np.array(common), power, weights)} | found
    return found


def _sum(moments):
    return tuple(sum(parts) for parts in zip(*moments, strict=True))


def _fit(moments):
    gram, cross, _ = moments
    ridge = 1e-6 * np.trace(gram) / len(gram)
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), cross)


def _explained(moments, coefficients):
    """Σ y² − Σ (y − Xb)²."""
    gram, cross, _ = moments
    return float(2 * coefficients @ cross - coefficients @ gram @ coefficients)
