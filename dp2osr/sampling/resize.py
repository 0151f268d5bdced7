"""From an LR image to the control image, and from a decoded image back to the size that was asked for."""

import torch
from PIL import Image
from torch.nn import functional as F

from dp2osr.data.images import pil_to_tensor
from dp2osr.errors import UserError


def control_image(lr, upscale, native_size, multiple):
    """The upsampled LR as the models see it.

    Bicubic to `upscale` times the size; if a side is then below `native_size`, enlarged until it is not (PAPER §4);
    replicated at the right and bottom to a multiple of `multiple`.

    Returns:
        (1, 3, H, W) in [0, 1]; the (width, height) of its content; the (width, height) of the result asked for.
    """
    asked = (round(lr.width * upscale), round(lr.height * upscale))
    if min(asked) < 1:
        raise UserError(f"--upscale {upscale}: an image of {lr.width} × {lr.height} would have no pixel left")
    enlarge = max(1.0, native_size / min(asked))
    content = (round(asked[0] * enlarge), round(asked[1] * enlarge))
    image = pil_to_tensor(lr.resize(content, Image.Resampling.BICUBIC))[None]
    padding = (0, -content[0] % multiple, 0, -content[1] % multiple)
    return F.pad(image, padding, mode="replicate"), content, asked


def restore_size(images, content, asked):
    """Cut the padding off (B, 3, H, W) decoded images and bring them to the size asked for (bicubic, antialiased)."""
    images = images[..., : content[1], : content[0]]
    if content != asked:
        images = F.interpolate(images, size=asked[::-1], mode="bicubic", antialias=True).clamp(0, 1)
    return images


def round_to_8_bits(images):
    """Values that an 8-bit file would hold: the image that a user gets is the image that is scored."""
    return torch.clamp(images, 0, 1).mul(255).round().div(255)
