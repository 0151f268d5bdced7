"""What the test programs write beside pixels: formats, EXIF, colour profiles, transparency, prompts, parts of a folder, the last line."""

import io
import json
import re

import numpy as np
import pytest
from conftest import KINDS, save_noise
from PIL import Image, ImageCms
from test_images import wide_gamut_profile

from dp2osr.cli import parse
from dp2osr.data import image_output
from dp2osr.data.image_output import Kept, encoded, read_kept, save_result
from dp2osr.data.images import read_image
from dp2osr.errors import UserError
from dp2osr.rewards.best_of import restore_images
from dp2osr.rewards.settings import BestOfSettings

QUICK = [*KINDS["sd2"].model_flags, "--num_inference_steps", "1", "--guidance_scale", "1", "--upscale", "2"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION, MAKE, DATE, CAMERA, GPS = 0x0112, 0x010F, 0x9003, 0x8769, 0x8825


def restored(folder, *more, out="out"):
    words = [*QUICK, "--image_path", folder / "in", "--output_dir", folder / out, *more]
    restore_images(parse(BestOfSettings, words))
    return folder / out


def photograph(orientation=6):
    """EXIF as a camera writes it."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "A camera"
    exif.get_ifd(CAMERA).update({DATE: "2020:02:03 04:05:06", 0xA002: 24, 0xA003: 16})
    exif.get_ifd(GPS).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return exif


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    save_noise(tmp_path / "in/a.png", (24, 16))
    return tmp_path


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_exif_and_profile_of_the_input_are_kept_in_every_format_and_the_picture_stands_upright(folder, kind):
    pixels = Image.open(folder / "in/a.png")
    pixels.save(folder / "in/a.jpg", quality=95, exif=photograph(), icc_profile=SRGB)
    (folder / "in/a.png").unlink()
    with Image.open(restored(folder, "--format", kind) / f"a.{kind}") as image:
        assert image.size == (32, 48) and image.info["icc_profile"] == SRGB
        exif = image.getexif()
        assert exif[MAKE] == "A camera" and ORIENTATION not in exif
        assert exif.get_ifd(CAMERA) == {DATE: "2020:02:03 04:05:06", 0xA002: 32, 0xA003: 48} and exif.get_ifd(GPS)[2] == (1.0, 2.0, 3.0)


def test_formats_hold_the_same_picture(folder):
    png = np.asarray(Image.open(restored(folder) / "a.png"))
    webp, jpg = restored(folder, "--format", "webp", out="webp") / "a.webp", restored(folder, "--format", "jpg", out="jpg") / "a.jpg"
    lossy = restored(folder, "--format", "webp", "--quality", 30, out="lossy") / "a.webp"
    assert np.array_equal(np.asarray(Image.open(webp)), png)
    with Image.open(jpg) as image:
        assert all(part[1:3] == (1, 1) for part in image.layer)  # 4:4:4
        assert np.abs(np.asarray(image, dtype=int) - png).mean() < 4
    assert lossy.stat().st_size < webp.stat().st_size / 2


def test_another_format_or_quality_is_another_setting(folder, capsys):
    restored(folder, "--format", "jpg")
    restored(folder, "--format", "jpg", "--quality", 95)
    assert "0 images written, 1 already there" in capsys.readouterr().out
    with pytest.raises(UserError, match="quality is 95 there and 50 here"):
        restored(folder, "--format", "jpg", "--quality", 50)
    with pytest.raises(UserError, match="--quality: would do nothing with --format png"):
        restored(folder, "--quality", 50)
    with pytest.raises(UserError, match="--quality: must be at most 100"):
        BestOfSettings(
            pretrained_model_name_or_path="x", controlnet_model_name_or_path="x", image_path="x", output_dir="x", format="jpg", quality=101
        )


def test_results_from_before_there_were_formats_are_kept(folder, capsys):
    out = restored(folder)
    for path in [out / "settings.json", *(out / ".records").glob("*.json")]:
        content = json.loads(path.read_text())
        settings = content.get("settings", content)
        assert (settings.pop("format"), settings.pop("quality")) == ("png", None)
        path.write_text(json.dumps(content))
    restored(folder)
    assert "0 images written, 1 already there" in capsys.readouterr().out


def test_results_too_large_for_a_format_are_refused_before_anything_is_sampled(folder, monkeypatch):
    monkeypatch.setitem(image_output.LONGEST_SIDE, "webp", 47)
    with pytest.raises(UserError, match=r"--format webp: holds at most 47 pixels a side, and 1 results would have more \(a.png\)"):
        restored(folder, "--format", "webp")
    assert not (folder / "out").exists()


def test_a_wide_profile_is_kept_with_pixels_that_show_the_same_colours(folder):
    Image.open(folder / "in/a.png").save(folder / "in/b.png", icc_profile=wide_gamut_profile())
    read_image(folder / "in/b.png").save(folder / "in/c.png")  # the same colours in sRGB
    out = restored(folder)
    with Image.open(out / "b.png") as image:
        assert image.info["icc_profile"] == wide_gamut_profile()
    # Noise differs by the name of the image: the pixels of one result are looked at, in the profile and out of it.
    image = Image.open(out / "c.png").convert("RGB")
    save_result(image, folder / "wide.png", "wide.png", Kept({}, wide_gamut_profile()))
    assert np.abs(np.asarray(read_image(folder / "wide.png"), dtype=int) - np.asarray(image)).max() <= 8
    assert np.abs(np.asarray(Image.open(folder / "wide.png"), dtype=int) - np.asarray(image)).max() > 20


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_of_no_rgb_pixels_is_left_out(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "a.jpg", icc_profile=SRGB)
    assert read_kept(tmp_path / "a.jpg").profile is None
    image = Image.new("RGB", (8, 8))
    for broken in (b"no profile", None):
        assert image_output.in_profile(image, broken) == (image, None)


def test_transparency_is_put_on_white_in_a_jpeg_which_is_said_and_kept_elsewhere(folder, capsys):
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:, 8:, 3] = 255
    Image.fromarray(pixels).save(folder / "in/half.png")
    with Image.open(restored(folder, "--format", "jpg") / "half.jpg") as image:
        assert image.mode == "RGB" and np.asarray(image)[:, :4].min() > 245
    told = capsys.readouterr().err
    assert "note: half.jpg: transparency is put on white" in told and "note: a.jpg" not in told
    with Image.open(restored(folder, "--format", "webp", out="webp") / "half.webp") as image:
        assert image.getchannel("A").getextrema() == (0, 255)


def test_exif_that_is_broken_or_too_long_stops_nothing(tmp_path, capsys):
    exif = photograph()
    exif.get_ifd(CAMERA)[0x927C] = bytes(70000)  # a maker's note
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", exif=exif)
    kept = read_kept(tmp_path / "a.png")
    assert 0x927C in kept.exif[CAMERA] and len(encoded(kept.exif, (8, 8))) < 1000
    save_result(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", "a.jpg", kept, "jpg")
    assert Image.open(tmp_path / "a.jpg").getexif()[MAKE] == "A camera"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x0f")
    (tmp_path / "b.png").write_bytes(buffer.getvalue())
    kept = read_kept(tmp_path / "b.png")
    save_result(Image.new("RGB", (8, 8)), tmp_path / "b.jpg", "b.jpg", kept, "jpg")
    assert not dict(Image.open(tmp_path / "b.jpg").getexif())


def test_the_layout_of_a_tiffs_pixels_is_not_kept(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif", exif=photograph(1), compression="tiff_lzw")
    kept = read_kept(tmp_path / "a.tif")
    assert kept.exif[0] == {MAKE: "A camera"}
    save_result(Image.new("RGB", (4, 4)), tmp_path / "a.png", "a.png", kept)
    assert Image.open(tmp_path / "a.png").size == (4, 4)


def test_one_prompt_for_all_images(folder, capsys):
    save_noise(folder / "in/b.png", (16, 16), seed=1)
    out = restored(folder, "--prompt", "a cat, fur", "--save_prompts")
    assert [(out / f"txt/{name}.txt").read_text() for name in "ab"] == ["a cat, fur\n"] * 2
    record = json.loads((out / ".records/a.png.json").read_text())["settings"]
    assert (record["prompt_source"], record["prompts"]) == ("text", "a cat, fur")
    assert (restored(folder, out="none") / "a.png").read_bytes() != (out / "a.png").read_bytes()
    with pytest.raises(UserError, match="prompts is 'a cat, fur' there and 'a dog' here"):
        restored(folder, "--prompt", "a dog", "--save_prompts")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--prompt", "x", "--prompt_file", "y"],
            "--prompt_file and --prompt: both name prompts; say which with --prompt_source file or text",
        ),
        (["--prompt", "x", "--prompt_source", "none"], "--prompt: would not be read with --prompt_source none"),
        (["--prompt_source", "text"], "--prompt_source text needs --prompt"),
    ],
)
def test_a_prompt_beside_another_source_is_one_line(folder, words, told):
    with pytest.raises(UserError, match=told):
        restored(folder, *words)


def test_a_part_of_a_folder_is_restored(folder):
    for name in "bcdef":
        save_noise(folder / f"in/{name}.png", (8, 8), seed=ord(name))
    assert [path.stem for path in sorted(restored(folder, "--max_images", 2).glob("*.png"))] == ["a", "d"]
    out = restored(folder, "--max_images", 2, "--images_offset", 1)
    assert [path.stem for path in sorted(out.glob("*.png"))] == ["a", "b", "d", "e"]
    with pytest.raises(UserError, match="--images_offset: shifts the choice of --max_images"):
        restored(folder, "--images_offset", 1)


def test_the_last_line_says_what_was_done_and_how_long_it_took(folder, capsys):
    (folder / "in/broken.png").write_bytes(b"no image")
    restored(folder, "--skip_unreadable")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert re.fullmatch(r".*/out: 1 image written, 0 already there, in \d+ s; 1 input skipped: broken.png \(.*\)", last)


def test_heic_is_read_where_its_package_is_installed(folder):
    heif = pytest.importorskip("pillow_heif")
    pixels = Image.fromarray(np.full((16, 24, 3), (200, 40, 90), dtype=np.uint8))
    heif.from_pillow(pixels).save(folder / "in/b.heic", quality=95)
    out = restored(folder)
    assert Image.open(out / "b.png").size == (48, 32)
    assert np.abs(np.asarray(read_image(folder / "in/b.heic"), dtype=int) - np.asarray(pixels)).max() <= 8
