"""From an LR image to the control image, and from a decoded image back to the size that was asked for."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from dp2osr.errors import UserError

Size = tuple[int, int]  # (width, height)


def image_sizes(size_lr: Sequence[int], upscale: float, native_size: int, multiple: int) -> tuple[Size, Size, Size]:
    """The sizes that an LR image of `size_lr` goes through, (width, height) each.

    Returns:
        what is asked for: `upscale` times the size; the content that is worked on: if a side is below `native_size`, enlarged until it
        is not (the authors' test code); the content with its padding at the right and bottom, a multiple of `multiple`.

    Raises:
        UserError: no pixel would be left.
    """
    asked = round(size_lr[0] * upscale), round(size_lr[1] * upscale)
    if min(asked) < 1:
        raise UserError(f"--upscale {upscale}: an image of {size_lr[0]} × {size_lr[1]} would have no pixel left")
    enlarge = max(1.0, native_size / min(asked))
    content = round(asked[0] * enlarge), round(asked[1] * enlarge)
    return asked, content, (content[0] + -content[0] % multiple, content[1] + -content[1] % multiple)


def control_image(lr: Image.Image, upscale: float, native_size: int, multiple: int) -> tuple[torch.Tensor, Size, Size]:
    """The upsampled LR as the models see it.

    Bicubic to `upscale` times the size; if a side is then below `native_size`, enlarged until it is not (the authors' test code);
    replicated at the right and bottom to a multiple of `multiple`.

    Returns:
        (1, 3, H, W) in [0, 1]; the (width, height) of its content; the (width, height) of the result asked for.
    """
    asked, content, padded = image_sizes(lr.size, upscale, native_size, multiple)
    pixels = np.array(lr.resize(content, Image.Resampling.BICUBIC))
    if padded != content:  # in 8 bits, which take a quarter of the memory
        pixels = np.pad(pixels, ((0, padded[1] - content[1]), (0, padded[0] - content[0]), (0, 0)), mode="edge")
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return image.to(torch.float32, memory_format=torch.contiguous_format).div_(255), content, asked


def restore_size(images: torch.Tensor, content: Size, asked: Size) -> torch.Tensor:
    """Cut the padding off (B, 3, H, W) decoded images and bring them to the size asked for (bicubic, antialiased)."""
    images = images[..., : content[1], : content[0]]
    if content != asked:
        images = F.interpolate(images, size=asked[::-1], mode="bicubic", antialias=True).clamp(0, 1)
    return images


def round_to_8_bits(images: torch.Tensor) -> torch.Tensor:
    """Values that an 8-bit file would hold: the image that a user gets is the image that is scored."""
    return torch.clamp(images, 0, 1).mul_(255).round_().div_(255)
