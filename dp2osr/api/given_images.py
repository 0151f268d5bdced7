"""An image as somebody has it in Python: a path, a PIL image or an array. All are treated as the programs treat a file."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from dp2osr.data.images import open_image, upright_srgb, why_unreadable
from dp2osr.errors import UserError

GivenImage: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
IN_MEMORY = "image"  # the id of an image without a file
FORMS = "a path, a PIL image, or an array of uint8 of the shape (H, W, 3), (H, W, 4) or (H, W)"


def image_id_of(image: GivenImage, given: str | None = None) -> str:
    """The id from which an image's seeds follow: `given`, else the file's name without its ending, else "image"."""
    if given is None:
        return Path(image).stem if isinstance(image, (str, os.PathLike)) else IN_MEMORY
    if not isinstance(given, str) or not given:
        raise UserError(f"image_id: {given!r} is not a name")
    return given


def opened(image: GivenImage, what: str = "image") -> Image.Image:
    """A given image as `open_image` gives a file: RGB, or RGBA where it has an opacity, upright, in sRGB. The given one stays as it is.

    Args:
        what: how an error calls it.

    Raises:
        UserError: no such file, a folder, an unreadable image, or something that is none.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if path.is_dir():
            raise UserError(f"{what}: {path} is a folder; give one image, or restore the folder by dp2osr.restore")
        if not path.exists():
            raise UserError(f"{what}: {path}: no such file")
        return open_image(path)
    if isinstance(image, np.ndarray):
        return upright_srgb(_of_array(image, what))
    if not isinstance(image, Image.Image):
        raise UserError(f"{what}: is a {type(image).__name__}; give {FORMS}")
    if not all(image.size):
        raise UserError(f"{what}: has {image.size[0]} × {image.size[1]} pixels")
    try:
        return upright_srgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{what}: not a readable image ({why_unreadable(error)})") from None


def _of_array(pixels: np.ndarray, what: str) -> Image.Image:
    shape = " × ".join(map(str, pixels.shape))
    if pixels.dtype != np.uint8:
        hint = "; from floats in [0, 1]: (255 * x).round().astype('uint8')" if pixels.dtype.kind == "f" else ""
        raise UserError(f"{what}: is an array of {pixels.dtype}; give {FORMS}{hint}")
    if not pixels.size or pixels.ndim not in (2, 3) or pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        hint = "; from (C, H, W): x.transpose(1, 2, 0)" if pixels.ndim == 3 and pixels.shape[0] in (3, 4) else ""
        raise UserError(f"{what}: is an array of the shape {shape}; give {FORMS}{hint}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def several(images: GivenImage | Iterable[GivenImage]) -> list[GivenImage]:
    """A list of images: one image is a list of itself, an array of the shape (M, H, W, 3) one of M."""
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise UserError(f"images: is a {type(images).__name__}; give {FORMS}, or a list of such")
    return list(images)
