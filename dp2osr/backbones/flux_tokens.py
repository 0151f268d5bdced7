"""FLUX's tokens: 2 × 2 latent pixels each, and their rotary positions."""

import torch


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) → (B, h/2 · w/2, 4C): 2 × 2 latent pixels a token, channels first within it."""
    count, channels, height, width = latents.shape
    blocks = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, height * width // 4, 4 * channels)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `pack`, for latents of `height` × `width`."""
    count, _, channels = tokens.shape
    blocks = tokens.reshape(count, height // 2, width // 2, channels // 4, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(count, channels // 4, height, width)


def image_ids(rows: int, columns: int, device: str | torch.device = "cpu") -> torch.Tensor:
    """(rows · columns, 3) rotary position ids of the image tokens: 0, row, column."""
    row, column = (torch.arange(count, device=device, dtype=torch.float32) for count in (rows, columns))
    grid = torch.meshgrid(row, column, indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).reshape(-1, 3)
