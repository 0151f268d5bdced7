"""`dp2o_lpips` and `dp2o_dists`: full-reference metrics in the forms of LPIPS and DISTS on a network that is shipped here.

They are this project's own and no pyiqa metrics: the forms are those of LPIPS (Zhang et al. 2018) and DISTS (Ding et al. 2020), the
features EfficientNet-Lite's, and no weight was fitted to opinions, for lack of the data. Lower is better, 0 for equal images. Both are
differentiable with respect to the images.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dp2osr.rewards.efficientnet import Features


class LpipsForm(nn.Module):
    """Squared distance of features that are normalised along channels, mean over positions, weighted mean over stages.

    Channels count the same (LPIPS without its linear weights), and so do the stages at strides 4 to 32. The stage at stride 2 is left out:
    alone it prefers a blur to texture that is moved by two pixels, as SSIM does (preset/metrics/README.md).

    Args:
        features: `Features`.
        weights: a weight for each of the five stages, finest first; they are divided by their sum.
    """

    def __init__(self, features: Features, weights: Sequence[float] = (0.0, 1.0, 1.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.features = features
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) and (B or 1, 3, H, W) in [0, 1] → (B,), from 0."""
        maps, of_gt = self.features(images), self.features(gt)
        distance = 0
        for weight, ours, theirs in zip(self.weights, maps, of_gt, strict=True):
            distance = distance + weight * (unit(ours) - unit(theirs)).square().sum(1).mean((1, 2))
        return zero_where_equal(distance, images, gt)


class DistsForm(nn.Module):
    """1 − weighted similarity of means (texture) and of correlations (structure) of each channel, from the image to the coarsest stage.

    Stages count the same. Texture counts five times what structure does: with more structure the form does not forgive texture drawn anew.

    Args:
        features: `Features`.
        texture, structure: a weight of each term for the image and the five stages, finest first; all are divided by their sum.
    """

    EPSILON = 1e-6

    def __init__(self, features: Features, texture: Sequence[float] = (1.0,) * 6, structure: Sequence[float] = (0.2,) * 6) -> None:
        super().__init__()
        self.features = features
        total = sum(texture) + sum(structure)
        self.texture, self.structure = ([weight / total for weight in weights] for weights in (texture, structure))

    def forward(self, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) and (B or 1, 3, H, W) in [0, 1] → (B,), from 0."""
        maps, of_gt = [images, *self.features(images)], [gt, *self.features(gt)]
        similarity = 0
        for texture, structure, ours, theirs in zip(self.texture, self.structure, maps, of_gt, strict=True):
            alike = texture_and_structure(ours, theirs, self.EPSILON)
            similarity = similarity + texture * alike[0].mean(1) + structure * alike[1].mean(1)
        return zero_where_equal(1 - similarity, images, gt)


def texture_and_structure(ours: torch.Tensor, theirs: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """DISTS's two similarities of each channel of two (B, C, h, w) maps: of the means, and the correlation; (B, C) each."""
    mean, their_mean = ours.mean((2, 3)), theirs.mean((2, 3))
    variance, their_variance = (maps.var((2, 3), correction=0) for maps in (ours, theirs))
    covariance = (ours * theirs).mean((2, 3)) - mean * their_mean
    alike = (2 * mean * their_mean + epsilon) / (mean.square() + their_mean.square() + epsilon)
    return alike, (2 * covariance + epsilon) / (variance + their_variance + epsilon)


def unit(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) divided by its length along C."""
    return maps / (maps.square().sum(1, keepdim=True) + 1e-10).sqrt()


def zero_where_equal(distance: torch.Tensor, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """(B,) distances, exactly 0 for an image that equals its GT: a network's rounding depends on the size of the batch."""
    equal = (images == gt).flatten(1).all(1)
    return torch.where(equal, torch.zeros_like(distance), distance)


def lpips_form(network: str = "efficientnet_lite0", path: str | Path | None = None) -> LpipsForm:
    """`LpipsForm` as `dp2o_lpips` (efficientnet_lite0) and `dp2o_lpips2` (efficientnet_lite2) have it; see `Features` for errors."""
    return LpipsForm(Features(network, path)).eval()


def dists_form(network: str = "efficientnet_lite0", path: str | Path | None = None) -> DistsForm:
    """`DistsForm` as `dp2o_dists` (efficientnet_lite0) and `dp2o_dists2` (efficientnet_lite2) have it; see `Features` for errors."""
    return DistsForm(Features(network, path)).eval()
