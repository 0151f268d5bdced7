"""`dp2o_grid`: whether an image has a grid, by what its spectrum has at a period above what lies around it.

A transformer that sees p × p latents as a token can draw the borders of its tokens, p f pixels apart where the decoder enlarges f times.
Preference training can make that grid stronger: metrics of sharpness take it for detail (docs/results.md).
"""

import torch
from torch import nn

AROUND = 3  # bins on each side that a frequency is compared with, but for its direct neighbours
LUMA = (0.299, 0.587, 0.114)


class Grid(nn.Module):
    """Natural logarithm of the luma's power at the period's harmonics along rows and columns, less the mean of that around them.

    About 0 for photographs, below it for smooth enlargements; lower is better.
    Images are cut at the right and bottom to a multiple of the period.

    Args:
        period: pixels, 4 or more: the side of a token times the decoder's factor; 16 for FLUX.1-dev, 8 for this repository's tiny-FLUX.
    """

    def __init__(self, period: int = 8) -> None:
        super().__init__()
        self.period = period

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] → (B,); `ValueError` for a side of less than eight periods, where the frequencies lie too close."""
        height, width = (side - side % self.period for side in images.shape[-2:])
        if min(height, width) < 8 * self.period:
            raise ValueError(f"needs sides of at least {8 * self.period} pixels, eight periods")
        luma = 255 * torch.einsum("bchw,c->bhw", images[..., :height, :width].double(), images.new_tensor(LUMA, dtype=torch.double))
        window = torch.outer(*(torch.hann_window(side, periodic=False, dtype=torch.double, device=luma.device) for side in luma.shape[1:]))
        power = torch.fft.fft2((luma - luma.mean((1, 2), keepdim=True)) * window).abs().square().add(1e-3).log()
        return torch.cat([self._peaks(power[:, :, 0]), self._peaks(power[:, 0, :])], dim=1).mean(1).to(images.dtype)

    def _peaks(self, line: torch.Tensor) -> torch.Tensor:
        """(B, N) log power of the frequencies of one direction → (B, harmonics): each above what lies around it.

        Half the period's frequency is the last one, which has no right side, and is left out.
        """
        places = torch.arange(1, self.period // 2, device=line.device) * (line.shape[1] // self.period)
        steps = torch.tensor([step for step in range(-AROUND, AROUND + 1) if abs(step) > 1], device=line.device)
        return line[:, places] - line[:, places[:, None] + steps].mean(-1)
