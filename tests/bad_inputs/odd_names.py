"""Cases: metrics and names 2."""

import functools
import os

import numpy as np
from PIL import Image

from bad_inputs.common import FOLDERS, GEN, LABEL, PAIRS, TEST, case, command, result
from bad_inputs.metrics_and_names import PSNR, RED, is_image, odd_image
from bad_inputs.outcomes import done, refused
from bad_inputs.place import Place, noise


def reddish(size=(8, 8)):
    return Image.fromarray(
        np.clip(np.asarray(noise(size, "red", -20, 20) if False else noise(size, "red", 0, 40), int) + RED - np.array(20), 0, 255).astype(
            np.uint8
        )
    )


def _save_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    reddish((8, 4)).save(path, exif=exif)


odd_image("a grey image", lambda path: reddish().convert("L").save(path), near=(104, 104, 104))
odd_image("a CMYK JPEG", lambda path: reddish().convert("CMYK").save(path, quality=95), near=RED, name="a.jpg")
odd_image(
    "16 bits, grey",
    lambda path: Image.fromarray(np.full((8, 8), 30_000, np.uint16) + np.arange(8, dtype=np.uint16) * 500).save(path),
    near=(123,) * 3,
)
odd_image("a palette", lambda path: reddish().convert("P").save(path), near=RED)
odd_image("a palette with a transparent colour", lambda path: reddish().convert("P").save(path, transparency=0), mode="RGBA")
odd_image("grey with opacity", lambda path: reddish().convert("LA").save(path), mode="RGBA")
odd_image("colour with opacity", lambda path: reddish().convert("RGBA").save(path), mode="RGBA", near=RED)
odd_image("black and white, 1 bit", lambda path: reddish().convert("1").save(path))
odd_image("a photograph that its EXIF data turns", _save_rotated, size=(8, 16), near=RED, name="a.jpg")
odd_image("an image of 1 × 1", lambda path: reddish((1, 1)).save(path), size=(2, 2))
odd_image("an image of 1 × 7", lambda path: reddish((1, 7)).save(path), size=(2, 14))
odd_image("one colour", lambda path: Image.new("RGB", (8, 8), RED).save(path), near=RED)
odd_image("black", lambda path: Image.new("RGB", (8, 8)).save(path), near=(0, 0, 0))


@case(10, "a TIFF of floating-point pixels", FOLDERS, refused("a.tif"))
def _(place):
    Image.fromarray(np.random.default_rng(0).random((16, 16)).astype(np.float32)).save(place.path("in/a.tif"))
    return command(place)


@case(
    10,
    "grey, 16-bit, palette and CMYK photographs",
    PAIRS,
    done(check=lambda folder: _pairs_are_right(folder), note="right"),
    process=PAIRS,
)
def _(place):
    red = reddish((16, 16))
    red.convert("L").save(place.path("in/grey.png"))
    red.convert("P").save(place.path("in/palette.png"))
    red.convert("CMYK").save(place.path("in/cmyk.jpg"), quality=95)
    Image.fromarray(np.full((16, 16), 30_000, np.uint16)).save(place.path("in/deep.png"))
    return command(place)


def _pairs_are_right(folder):
    wanted = {"grey": (104,) * 3, "palette": RED, "cmyk": RED, "deep": (117,) * 3}
    checks = [
        is_image(f"out/{kind}/{name}.png", size, "RGB", near, 12)
        for name, near in wanted.items()
        for kind, size in (("gt", (16, 16)), ("lr", (4, 4)))
    ]
    return "; ".join(filter(None, (check(folder) for check in checks)))


@case(10, "an image of 1 × 1", PAIRS, refused("a.png"))
def _(place):
    place.image("in/a.png", size=(1, 1))
    return command(place)


ODD_NAMES = {
    "spaces, brackets, a per cent sign and a quote": "a [b] 100% c'd",
    "letters that are not ASCII": "größe 写真 📷",
    "a line break": "a\nb",
    "a dash at the beginning": "-a",
    "dots": "a.b.png",
    "a byte that is no UTF-8": os.fsdecode(b"a\xff"),
    "a backslash": "a\\b",
}


def _add_names():
    def build(place, stem):
        place.image(f"in/{stem}.png", size=(16, 16))
        return command(place)

    for given, stem in ODD_NAMES.items():
        for program in FOLDERS if given in ("a line break", "a byte that is no UTF-8") else (TEST, GEN):
            there = (result(program, stem),)
            case(10, f"a name with {given}", program, done(there=there), refused("name|in/"))(functools.partial(build, stem=stem))


_add_names()


@case(10, "names with spaces, a quote and Chinese, all the way to the scores", LABEL, done("2 groups", note="scored"))
def _(place):
    for stem in ("a b'c", "写真"):
        place.image(f"in/{stem}.png")
        place.image(f"gt/{stem}.png", size=(16, 16))
    place.run(*command(Place(place.folder, GEN), into="candidates"), program=GEN)
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")
    return PSNR


@case(10, "names that are `groups`, `settings` and `txt`", TEST, done(there=("out/settings.png", "out/txt.png", "out/txt/txt.txt")))
def _(place):
    place.images("in/settings.png", "in/txt.png", "in/groups.png")
    return command(place, "--save_prompts")


@case(10, "`a.png` and `a_00.png`, two samples of each", TEST, done(there=("out/a_00.png", "out/a_01.png", "out/a_00_00.png")))
def _(place):
    place.images("in/a.png", "in/a_00.png")
    return command(place, "--sample_times", "2")
