"""Folders of SR images that several tests compare."""

import csv

import pytest
from conftest import ROOT
from PIL import Image, ImageFilter

SIDE = 96


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """`gt`, `sharp` and `soft`: twenty crops of held-out photographs, and two methods' idea of them; `soft` has two samples."""
    folder = tmp_path_factory.mktemp("sr")
    for name in ("gt", "sharp", "soft"):
        (folder / name).mkdir()
    for index, path in enumerate(sorted((ROOT / "preset/test/gt").glob("*.png"))[:20]):
        image = Image.open(path).convert("RGB").crop((0, 0, SIDE, SIDE))
        image.save(folder / "gt" / f"image{index}.png")
        image.filter(ImageFilter.UnsharpMask(2, 120)).save(folder / "sharp" / f"image{index}.png")
        for sample in range(2):
            image.filter(ImageFilter.GaussianBlur(1 + sample)).save(folder / "soft" / f"image{index}_{sample:02d}.png")
    return folder


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    path = tmp_path_factory.mktemp("protocol") / "quick.yaml"
    path.write_text("fr: [psnr: {test_y_channel: true, crop_border: 0}, ssim, gmsd, fsim]\nnr: [piqe]\n", encoding="utf-8")
    return path


def rows_of(path):
    """Rows of a CSV."""
    return list(csv.DictReader(path.open(encoding="utf-8")))
