"""Folders of images: listing, reading with clear errors, writing."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
from PIL import Image, ImageCms, ImageOps

from dp2osr.errors import UserError
from dp2osr.files import whole

if TYPE_CHECKING:
    import torch

OF_HEIC = (".heic", ".heif", ".hif")
HEIF: tuple[str, ...] = ()  # those of them that are read: where pillow-heif is installed
with contextlib.suppress(ImportError):
    from pillow_heif import register_heif_opener

    register_heif_opener()
    HEIF = OF_HEIC


def read_image(path: str | Path | IO[bytes]) -> Image.Image:
    """An RGB `PIL.Image` as a person sees it, transparency put on white; see `open_image`."""
    return on_white(open_image(path))


def on_white(image: Image.Image) -> Image.Image:
    """An RGB or RGBA image as RGB, transparency put on white."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """The image itself where it is RGB, else a conversion."""
    return image if image.mode == "RGB" else image.convert("RGB")


def why_unreadable(error: Exception) -> str:
    """What Pillow says of a file that it cannot read, in one short line, without the address of the stream that it was given."""
    return " ".join(str(error).split()).partition(" <_io.")[0][:120]


def read_image_and_alpha(path: str | Path) -> tuple[Image.Image, Image.Image | None]:
    """(RGB `PIL.Image`, its opacity as an "L" image, or None where it has none); see `open_image`."""
    return split_alpha(open_image(path))


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(RGB `PIL.Image`, opacity as an "L" image or None) of an RGB or RGBA image."""
    return image.convert("RGB"), image.getchannel("A") if image.mode == "RGBA" else None


def with_alpha(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """The image itself, which gets an opacity of another size, where there is one."""
    if alpha is not None:
        image.putalpha(alpha.resize(image.size, Image.Resampling.BICUBIC))
    return image


def open_image(path: str | Path | IO[bytes]) -> Image.Image:
    """An RGB or RGBA `PIL.Image`, fully decoded, upright (EXIF), in sRGB (embedded ICC profile), 8 bits a channel.

    Raises:
        UserError: unreadable or truncated file.
    """
    try:
        return decode_image(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({why_unreadable(error)}); replace or remove it") from None


def decode_image(path: str | Path | IO[bytes]) -> Image.Image:
    """`open_image`, which raises what Pillow raises: of a broken file that may be anything."""
    with Image.open(path) as image:
        return upright_srgb(image, in_place=True)  # no copy: 12 megapixels are 48 MB


def upright_srgb(image: Image.Image, in_place: bool = False) -> Image.Image:
    """A `PIL.Image` of any mode as `open_image` gives it: RGB or RGBA, upright, in sRGB. With `in_place` the image itself may be turned.

    Raises:
        OSError, SyntaxError, ValueError: as Pillow does, where its pixels cannot be had; ValueError also where their white is not known.
    """
    image.load()
    profile = image.info.get("icc_profile")
    if in_place:
        ImageOps.exif_transpose(image, in_place=True)
    else:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode == "I" and np.asarray(image).max() <= 255:
        raise ValueError(f"pixels of mode {image.mode}, whose white is not known")
    if image.mode.startswith("I"):  # convert() would clip 16 bits instead of scaling them
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
        profile = None
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        opaque = to_srgb(image.convert("RGB"), profile)
        opaque.putalpha(image.getchannel("A"))
        return opaque
    return to_srgb(image, profile)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image of any mode as RGB, by its ICC `profile` (bytes) where that is another than sRGB and fits."""
    if not profile:
        return as_rgb(image)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if is_srgb(source):
            return as_rgb(image)
        if image.mode not in ("L", "RGB", "CMYK"):
            image = image.convert("RGB")
        return cast(Image.Image, ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"))
    except (ImageCms.PyCMSError, OSError):  # a broken profile, or one of another colour space: as every viewer does, without it
        return image.convert("RGB")


def is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether an ICC profile is sRGB's, by its description."""
    description = ImageCms.getProfileDescription(profile).lower()
    return "srgb" in description and "linear" not in description and "g10" not in description


def pil_to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB `PIL.Image` → (3, H, W) float32 in [0, 1]."""
    import torch  # here, so that the workers of make_lr_pairs.py start without it

    return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)


def tensor_to_pil(tensor: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] → 8-bit RGB `PIL.Image`, rounded to nearest."""
    array = tensor.detach().clamp(0, 1).mul(255).round().byte().cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a PNG; the file is whole or absent."""
    with whole(path) as part:
        image.save(part, format="PNG")
