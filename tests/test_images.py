"""Reading pictures of every kind: what a person sees is what the model gets."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, UnidentifiedImageError

from dp2osr.data.images import read_image, read_image_and_alpha, why_unreadable
from dp2osr.errors import UserError

PHOTO = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def wide_gamut_profile():
    """A minimal ICC v2 matrix profile, gamma 2, whose primaries are sRGB's in another order: its red is sRGB's green, and so on."""
    srgb = {"r": (0.4361, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7141)}  # D50

    def fixed(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 512) + b"\0\0"  # gamma 2.0 as u8.8
    tags = {b"desc": description, b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"cprt": b"text\0\0\0\0test\0\0\0\0"}
    tags |= {b"rXYZ": xyz(srgb["g"]), b"gXYZ": xyz(srgb["b"]), b"bXYZ": xyz(srgb["r"]), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + struct.pack(
        ">6H", 2026, 1, 1, 0, 0, 0
    )
    header += b"acsp" + bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return header + bytes(128 - len(header)) + table + body


def test_an_icc_profile_is_applied(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png", icc_profile=wide_gamut_profile())
    linear = (PHOTO / 255.0) ** 2
    linear = np.stack([linear[..., 2], linear[..., 0], linear[..., 1]], -1)  # back to sRGB's order
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(np.asarray(read_image(tmp_path / "a.png")) - expected).max() <= 2


def test_a_profile_of_srgb_and_a_broken_one_change_nothing(tmp_path):
    for name, profile in (("srgb", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()), ("broken", b"no profile")):
        Image.fromarray(PHOTO).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), PHOTO)


@pytest.mark.parametrize(("orientation", "turn"), [(3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)])
def test_pictures_stand_upright(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), turn(PHOTO))


def test_grey_palette_cmyk_and_16_bits(tmp_path):
    grey = PHOTO[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey", "deep"):
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), np.repeat(grey[..., None], 3, -1))
    palette = Image.fromarray(PHOTO).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), palette.convert("RGB"))
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(tmp_path / "cyan.tif")
    assert read_image(tmp_path / "cyan.tif").getpixel((1, 1)) == (0, 255, 255)


def test_pixels_whose_white_is_not_known_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 128, np.int32)).save(tmp_path / "int.tif")
    for name in ("float", "int"):
        with pytest.raises(UserError, match="white is not known"):
            read_image(tmp_path / f"{name}.tif")


def test_alpha_is_kept_apart_or_put_on_white(tmp_path):
    alpha = np.full(PHOTO.shape[:2], 255, np.uint8)
    alpha[:, :4] = 0
    Image.fromarray(np.dstack([PHOTO, alpha])).save(tmp_path / "a.png")
    picture, opacity = read_image_and_alpha(tmp_path / "a.png")
    assert np.array_equal(picture, PHOTO) and np.array_equal(opacity, alpha)
    on_white = np.asarray(read_image(tmp_path / "a.png"))
    assert (on_white[:, :4] == 255).all() and np.array_equal(on_white[:, 4:], PHOTO[:, 4:])
    Image.fromarray(PHOTO).save(tmp_path / "b.png")
    assert read_image_and_alpha(tmp_path / "b.png")[1] is None


def test_what_cannot_be_read_is_said_without_the_address_of_a_stream():
    from io import BytesIO

    with pytest.raises(UnidentifiedImageError) as error:
        Image.open(BytesIO(b"no image"))
    assert "BytesIO" in str(error.value) and why_unreadable(error.value) == "cannot identify image file"
    assert why_unreadable(ValueError("two\nlines")) == "two lines"
