"""`dp2o_lr_psnr`: whether a result, made small again, is the GT made small; texture drawn anew costs nothing, another colour or shape does.

The measure is the LR-PSNR of the challenges on learning the super-resolution space (Lugmayr et al., NTIRE 2021), against the clean LR image
that the GT gives. The LR image of real-world super-resolution has blur, noise and JPEG blocks, and a result is not to keep them.
"""

import torch
from torch import nn
from torch.nn import functional as F

EPSILON = 1e-8  # of the mean squared error, as pyiqa's PSNR has it: equal images have 80 dB


class LrPsnr(nn.Module):
    """PSNR, dB, of two images that are reduced (bicubic, antialiased); higher is better, 80 for equal ones.

    Args:
        scale: how many times smaller each side becomes, above 1; the super-resolution's own factor.
    """

    def __init__(self, scale: float = 4) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) and (B or 1, 3, H, W) in [0, 1] → (B,)."""
        error = (self.reduced(images) - self.reduced(gt)).square().mean((1, 2, 3))
        return -10 * torch.log10(error + EPSILON)

    def reduced(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) → (B, 3, H / scale, W / scale), at least one pixel a side."""
        size = [max(1, round(side / self.scale)) for side in images.shape[-2:]]
        return F.interpolate(images, size=size, mode="bicubic", antialias=True)
