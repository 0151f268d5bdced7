"""Large images in tiles: overlapping windows whose results are blended by a Gaussian, so that no border shows.

Group norms see one tile at a time, so neighbouring tiles may differ in level; across an overlap the weights go over from one to the other,
and at a tile's own edge its weight is next to nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dp2osr.errors import UserError

EDGE = 3.2  # standard deviations from a tile's centre to its edge: with a third of overlap, 1 % of the sum there, 1/7 a latent in between


class Sizes(Protocol):
    """What of a backbone decides its tiles."""

    native_size: int
    size_multiple: int
    vae_scale: int


@dataclass(frozen=True)
class Tiling:
    """Largest side of a tile and least overlap of neighbours, in the units of what is tiled; tiles start at multiples of `multiple`."""

    size: int
    overlap: int
    multiple: int = 1

    def covers(self, height: int, width: int) -> bool:
        """Whether one tile holds the whole."""
        return max(height, width) <= self.size

    def cut(self, length: int) -> tuple[list[int], int]:
        """First positions of the tiles along a side, evenly spread, the last flush with the end; and the side of a tile.

        There are as few as `size` and `overlap` allow, and they are as small as so few may be: what is computed twice is the least.
        `length` and `size` are multiples of the grid.
        """
        assert length % self.multiple == 0
        if length <= self.size:
            return [0], length
        grid = self.multiple
        gaps = -(-(length - self.size) // ((self.size - self.overlap) // grid * grid))
        for size in range(self.size % grid + grid, self.size + 1, grid):
            stride = -(-(length - size) // (gaps * grid)) * grid
            if size - self.overlap >= stride:
                break
        last = length - size
        return sorted({round(last * index / gaps / grid) * grid for index in range(gaps)} | {last}), size


WHOLE = Tiling(2**31, 0)  # one tile, whatever the size


def default_vae_tiling(native_size: int, vae_scale: int) -> Tiling:
    """Tiles of twice the size that a model was made for, in latent pixels: what it was made for is decoded whole."""
    return Tiling(2 * native_size // vae_scale, native_size // 2 // vae_scale)


def latent_tiling(backbone: Sizes, size: int | None = None, overlap: int | None = None) -> Tiling:
    """Tiles of `size` pixels (default: 1½ times the native size) with `overlap` pixels (default: a third), in latent pixels.

    Raises:
        UserError: the tile is not larger than the overlap by the model's grid.
    """
    grid, scale = backbone.size_multiple, backbone.vae_scale
    size = (size or max(3 * backbone.native_size // 2, 3 * grid)) // grid * grid
    overlap = size // 3 if overlap is None else overlap
    if size - overlap < grid:
        raise UserError(
            f"--tile_size {size} --tile_overlap {overlap}: tiles lie on a grid of {grid} pixels, and must exceed their overlap by that"
        )
    return Tiling(size // scale, -(-overlap // scale), grid // scale)


def samples_together(backbone: Sizes, tiling: Tiling, batch_size: int, shape: Sequence[int]) -> int:
    """How many samples with latents of `shape` are denoised at once: as many pixels as `batch_size` images of the model's own size."""
    own = (backbone.native_size / backbone.vae_scale) ** 2
    (_, rows), (_, columns) = (tiling.cut(side) for side in shape[1:])
    return max(1, round(batch_size * own / (rows * columns)))


def blend_tiles(
    function: Callable[[int, int, int, int], torch.Tensor], height: int, width: int, tiling: Tiling, scale: float = 1
) -> torch.Tensor:
    """The (B, C, scale · height, scale · width) result of `function`, called on one tile after the other.

    Args:
        function: (top, left, height, width) of a tile → its (B, C, scale · height, scale · width) result.
        tiling: `Tiling` of the height × width plane.
        scale: side of the result over side of the plane, an integer or its reciprocal.
    """
    if tiling.covers(height, width):
        return function(0, 0, height, width)
    total = weights = None
    (tops, rows), (lefts, columns) = tiling.cut(height), tiling.cut(width)
    for top in tops:
        for left in lefts:
            result = function(top, left, rows, columns)
            if total is None or weights is None:
                total = result.new_zeros((*result.shape[:2], round(height * scale), round(width * scale)), dtype=torch.float32)
                weights = total.new_zeros(total.shape[2:])
                window = torch.outer(*(gaussian(side).to(total) for side in result.shape[2:]))
            where = (slice(round(top * scale), round((top + rows) * scale)), slice(round(left * scale), round((left + columns) * scale)))
            total[(..., *where)] += window * result
            weights[where] += window
    assert total is not None
    return total.div_(weights).to(result.dtype)


def gaussian(side: int) -> torch.Tensor:
    """(side,) weights, symmetric, e⁻⁵ at the ends."""
    position = (torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1
    return torch.exp(-0.5 * (EDGE * position) ** 2)


def encode_tiled(vae: torch.nn.Module, images: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] → the mode of the posterior, unscaled; `tiling` in latent pixels."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)

    def encode(top: int, left: int, height: int, width: int) -> torch.Tensor:
        part = images[..., scale * top : scale * (top + height), scale * left : scale * (left + width)]
        return vae.encode(part).latent_dist.mode()

    height, width = (side // scale for side in images.shape[2:])
    return blend_tiles(encode, height, width, tiling)


def decode_tiled(vae: torch.nn.Module, latents: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """(B, C, h, w) unscaled latents → (B, 3, s·h, s·w) images in about [-1, 1]; `tiling` as in `encode_tiled`."""

    def decode(top: int, left: int, height: int, width: int) -> torch.Tensor:
        return vae.decode(latents[..., top : top + height, left : left + width]).sample

    height, width = latents.shape[2:]
    return blend_tiles(decode, height, width, tiling, 2 ** (len(vae.config.block_out_channels) - 1))


def cut_windows(images: torch.Tensor, top: Sequence[int] | torch.Tensor, left: Sequence[int] | torch.Tensor, window: int) -> torch.Tensor:
    """(B, C, H, W) → (B, C, window, window): of image i the rows from `top[i]` on and the columns from `left[i]` on."""
    device, side = images.device, torch.arange(window, device=images.device)
    rows, columns = (torch.as_tensor(start, device=device)[:, None] + side for start in (top, left))
    images_of = torch.arange(len(images), device=device)
    return images[images_of[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
