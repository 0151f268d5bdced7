"""Colour fix of an SR image against the upsampled LR: AdaIN, or wavelet low-pass exchange (as StableSR and SeeSR do)."""

import torch
from torch.nn import functional as F


def adain_align(images: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
    """Give each channel of (B, 3, H, W) the mean and standard deviation that it has in the (1, 3, H, W) upsampled LR."""
    mean, std = images.mean((2, 3), keepdim=True), images.var((2, 3), keepdim=True).add(1e-5).sqrt()
    lr_mean, lr_std = lr.mean((2, 3), keepdim=True), lr.var((2, 3), keepdim=True).add(1e-5).sqrt()
    return (images - mean).div_(std).mul_(lr_std).add_(lr_mean)


def low_pass(images: torch.Tensor, levels: int = 5) -> torch.Tensor:
    """The approximation of an à-trous wavelet: `levels` dilated 3 × 3 binomial blurs, borders replicated."""
    taps = images.new_tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(taps, taps).expand(images.shape[1], 1, 3, 3)
    for level in range(levels):
        radius = 2**level
        images = F.conv2d(F.pad(images, (radius,) * 4, mode="replicate"), kernel, groups=images.shape[1], dilation=radius)
    return images


def wavelet_align(images: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
    """Detail of the (B, 3, H, W) images on the low frequencies of the (1, 3, H, W) upsampled LR."""
    detail = low_pass(images).neg_().add_(images)
    return detail.add_(low_pass(lr))


ALIGN = {"adain": adain_align, "wavelet": wavelet_align, "nofix": lambda images, lr: images}
