"""How a result is written: its format, and what is kept of the file that it was made of: EXIF, colour profile, transparency."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageCms
from tqdm import tqdm

from dp2osr.data.images import is_srgb, on_white, with_alpha

Format = Literal["png", "jpg", "webp"]
LONGEST_SIDE = {"png": 2**31 - 1, "jpg": 65535, "webp": 16383}  # pixels
LONGEST_EXIF = 65533  # bytes, of a JPEG
JPG_QUALITY = 95

# Tags of the first directory that tell of the picture; orientation, thumbnails and the layout of the old file's pixels are not among them.
DESCRIBING = (
    0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298,
    0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F,
)  # fmt: skip
CAMERA, GPS, WIDTH, HEIGHT, INTEROPERABILITY, MAKER_NOTE = 0x8769, 0x8825, 0xA002, 0xA003, 0xA005, 0x927C


@dataclass(frozen=True)
class Kept:
    """What a result keeps of its input's file.

    Attributes:
        exif: {directory (0: the first): {tag: value}}; profile: the ICC profile, bytes; alpha: opacity, an "L" image of the input's size.
    """

    exif: Mapping[int, Mapping[int, Any]]
    profile: bytes | None
    alpha: Image.Image | None = None


def read_kept(path: str | Path, alpha: Image.Image | None = None) -> Kept:
    """The `Kept` of an image's file; a profile that is not of RGB pixels is not kept, nor is EXIF that cannot be read (it is said)."""
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")  # Pillow's, of odd EXIF
        profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P", "PA") else None
        try:
            exif = image.getexif()
            found = {0: {tag: exif[tag] for tag in DESCRIBING if tag in exif}}
            found |= {folder: dict(exif.get_ifd(folder)) for folder in (CAMERA, GPS)}
            encoded(found, image.size, 2**31)
        except Exception as error:  # of a broken one Pillow raises what it comes upon
            found = {}
            _say(f"note: {path}: its EXIF cannot be kept ({' '.join(str(error).split())[:100] or type(error).__name__})")
    return Kept(found, profile, alpha)


def encoded(exif: Mapping[int, Mapping[int, Any]], size: tuple[int, int], limit: int = LONGEST_EXIF) -> bytes | None:
    """EXIF of a picture of `size` as bytes, without its maker's note where it is longer than `limit`; None where there is none."""
    for left_out in ((INTEROPERABILITY,), (INTEROPERABILITY, MAKER_NOTE)):
        made = Image.Exif()
        for tag, value in exif.get(0, {}).items():
            made[tag] = value
        for folder in (CAMERA, GPS):
            content = {tag: value for tag, value in exif.get(folder, {}).items() if tag not in left_out}
            if folder == CAMERA:
                content |= {tag: side for tag, side in zip((WIDTH, HEIGHT), size) if tag in content}
            if content:
                made.get_ifd(folder).update(content)
        if not any(exif.values()):
            return None
        content_bytes = made.tobytes()
        if len(content_bytes) <= limit:
            return content_bytes
    return None


def in_profile(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """(an sRGB image in the colours of an ICC profile, that profile); the image itself and None where it has none that pixels go into."""
    if not profile:
        return image, None
    try:
        target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if is_srgb(target):
            return image, profile
        if target.profile.xcolor_space.strip() != "RGB":
            return image, None
        moved = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # broken, or a scanner's, which says how to read alone
        return image, None
    return (moved, profile) if moved else (image, None)


def options_of(kind: Format, quality: int | None) -> dict[str, Any]:
    """What Pillow's `save` is told for a format; without a quality PNG and WebP are lossless, JPEG has 95, and full colour in any case."""
    if kind == "png":
        return {"format": "PNG"}
    if kind == "jpg":
        return {"format": "JPEG", "quality": quality or JPG_QUALITY, "subsampling": 0}
    return {"format": "WEBP", **({"quality": quality} if quality else {"lossless": True, "exact": True})}


def save_result(image: Image.Image, path: Path, name: str, kept: Kept, kind: Format = "png", quality: int | None = None) -> None:
    """Write an RGB result in sRGB to `path`, with what is `kept` of its input; transparency goes onto white where a format has none.

    `name` is what a note calls it.
    """
    image, profile = in_profile(image, kept.profile)
    image = with_alpha(image, kept.alpha)
    if kept.alpha is not None and kind == "jpg":
        image = on_white(image)
        _say(f"note: {name}: transparency is put on white, since JPEG has none")
    exif = encoded(kept.exif, image.size)
    told: dict[str, Any] = {key: value for key, value in {"exif": exif, "icc_profile": profile}.items() if value}
    image.save(path, **options_of(kind, quality), **told)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
