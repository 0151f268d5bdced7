"""Random training crops of a folder of photographs, as a function of (seed, step) alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dp2osr.data.images import read_image
from dp2osr.data.inputs import list_images
from dp2osr.errors import UserError, listed


class CropSource:
    """Photographs kept in memory as uint8; crops are drawn uniformly over photographs, then over positions.

    Args:
        folder: images, any size of at least `crop_size`.
        crop_size: side of a crop, pixels.
        seed: with the step number it decides which crops a batch holds, so a resumed run sees the same batches.
        at_least: side that every image must have, if some crops are larger.

    Raises:
        UserError: images that cannot be read, or are smaller than a crop; all are named.
    """

    def __init__(self, folder: str | Path, crop_size: int, seed: int, at_least: int = 0) -> None:
        self.paths = list_images(folder)
        self.images, problems, least = [], [], max(crop_size, at_least)
        for path in self.paths:
            try:
                image = np.asarray(read_image(path))
                if min(image.shape[:2]) < least:
                    raise UserError(f"{path.name} is {image.shape[1]} x {image.shape[0]}, smaller than a crop of {least}")
                self.images.append(image)
            except UserError as error:
                problems.append(str(error))
        if problems:
            told = f"{len(problems)} of {len(self.paths)} photographs cannot be used: {listed(problems)}"
            raise UserError(f"{folder}: {told}; leave them out, or take smaller crops")
        self.stems = [Path(path).stem for path in self.paths]
        self.crop_size, self.seed = crop_size, seed

    def draw(self, step: int, batch_size: int, crop_size: int | None = None) -> list[tuple[str, np.ndarray]]:
        """One batch: list of `batch_size` pairs (stem, (s, s, 3) uint8 crop), flipped and transposed at random."""
        rng = np.random.default_rng((self.seed, step))
        size = crop_size or self.crop_size
        batch = []
        for _ in range(batch_size):
            index = rng.integers(len(self.images))
            height, width, _ = self.images[index].shape
            top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
            crop = self.images[index][top : top + size, left : left + size]
            crop = crop[:, ::-1] if rng.random() < 0.5 else crop
            crop = crop.transpose(1, 0, 2) if rng.random() < 0.5 else crop
            batch.append((self.stems[index], np.ascontiguousarray(crop)))
        return batch


def to_tensor(crops: Sequence[np.ndarray]) -> torch.Tensor:
    """List of (H, W, 3) uint8 → (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(255)
