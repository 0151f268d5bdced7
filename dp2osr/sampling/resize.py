"""From an LR image to the control image, and from a decoded image back to the size that was asked for."""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from dp2osr.errors import UserError


def image_sizes(size_lr, upscale, native_size, multiple):
    """The sizes that an LR image of `size_lr` goes through, (width, height) each.

    Returns:
        what is asked for: `upscale` times the size; the content that is worked on: if a side is below `native_size`, enlarged until it
        is not (the authors' test code); the content with its padding at the right and bottom, a multiple of `multiple`.

    Raises:
        UserError: no pixel would be left.
    """
    asked = tuple(round(side * upscale) for side in size_lr)
    if min(asked) < 1:
        raise UserError(f"--upscale {upscale}: an image of {size_lr[0]} × {size_lr[1]} would have no pixel left")
    enlarge = max(1.0, native_size / min(asked))
    content = tuple(round(side * enlarge) for side in asked)
    return asked, content, tuple(side + -side % multiple for side in content)


def control_image(lr, upscale, native_size, multiple):
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


def restore_size(images, content, asked):
    """Cut the padding off (B, 3, H, W) decoded images and bring them to the size asked for (bicubic, antialiased)."""
    images = images[..., : content[1], : content[0]]
    if content != asked:
        images = F.interpolate(images, size=asked[::-1], mode="bicubic", antialias=True).clamp(0, 1)
    return images


def round_to_8_bits(images):
    """Values that an 8-bit file would hold: the image that a user gets is the image that is scored."""
    return torch.clamp(images, 0, 1).mul_(255).round_().div_(255)
