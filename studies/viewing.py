"""A study's page as pictures, for viewers who see pictures and no pages; and images made as sharp as others, as a rival in a study.

    python studies/viewing.py sharpen --images runs/base --like runs/policy --output_dir runs/sharpened
    python scripts/user_study.py make --images policy=runs/policy sharpened=runs/sharpened --lr_path lr --output runs/study/page.html
    python studies/viewing.py pictures --page runs/study/page.html --participant first --output_dir runs/study/first
    python studies/viewing.py votes --pictures_dir runs/study/first --answers answers.txt --output runs/study/votes-first.json
    python scripts/user_study.py count --key runs/study/page.key.json runs/study/votes-*.json

A picture has the input and two results, left and right. An answer is a line `3 left`: the picture's number and a side.
"""

import base64
import io
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dp2osr.cli import Settings, parse
from dp2osr.errors import UserError, run
from dp2osr.fields import Count
from dp2osr.files import read_json, write_json

SIDES = ("left", "right")
MARGIN = 12  # pixels between the images of a picture
MOST = 50.0  # the strongest unsharp mask


@dataclass(kw_only=True)
class SharpenSettings(Settings):
    """Unsharp masking (a Gaussian of one pixel), of each image as much as gives it the mean gradient of its namesake."""

    images: str
    """Folder of the images."""
    like: str
    """Folder of images of the same names that are as sharp as wanted."""
    output_dir: str


@dataclass(kw_only=True)
class PicturesSettings(Settings):
    """A picture of each trial of a page of two methods, in an order and with sides drawn for one participant."""

    page: str
    """HTML of scripts/user_study.py."""
    participant: str
    """Name; order and sides follow from it."""
    output_dir: str
    enlarge: Count = 3
    """How many times a pixel is repeated."""


@dataclass(kw_only=True)
class VotesSettings(Settings):
    """The votes of a participant, as the page gives them."""

    pictures_dir: str
    """Folder of `pictures`."""
    answers: str
    """Text, a line for each picture: its number, left or right."""
    output: str
    """JSON for scripts/user_study.py count."""


def main():
    args = parse({"sharpen": SharpenSettings, "pictures": PicturesSettings, "votes": VotesSettings}, description=__doc__)
    if isinstance(args, SharpenSettings):
        sharpen_folder(Path(args.images), Path(args.like), Path(args.output_dir))
    elif isinstance(args, PicturesSettings):
        write_pictures(Path(args.page), args.participant, Path(args.output_dir), args.enlarge)
    else:
        write_votes(Path(args.pictures_dir), Path(args.answers), Path(args.output))


def sharpen_folder(folder, like, output):
    """Write every image of `folder` made as sharp as its namesake in `like`, and print how much that took."""
    from PIL import Image

    from dp2osr.data.images import read_image
    from dp2osr.data.inputs import list_images

    paths, models = list_images(folder), {path.stem: path for path in list_images(like)}
    lacking = [path.name for path in paths if path.stem not in models]
    if lacking:
        raise UserError(f"{like}: has no image of the name {lacking[0]}, which {folder} has")
    output.mkdir(parents=True, exist_ok=True)
    amounts = []
    for path in paths:
        image, wanted = (np.asarray(read_image(file), float) for file in (path, models[path.stem]))
        sharpened, amount = sharpen(image, mean_gradient(wanted))
        Image.fromarray(sharpened.round().astype(np.uint8)).save(output / f"{path.stem}.png")
        amounts.append(amount)
    print(f"{output}: {len(amounts)} images, amount {np.mean(amounts):.2f} on the mean; as sharp before: {sum(a == 0 for a in amounts)}")


def sharpen(image, gradient):
    """(an (H, W, 3) image in 0 to 255 with that mean gradient, the amount of its unsharp mask); as it was where it has more already."""
    from scipy.ndimage import gaussian_filter
    from scipy.optimize import brentq

    detail = image - gaussian_filter(image, (1, 1, 0))

    def at(amount):
        return np.clip(image + amount * detail, 0, 255)

    if mean_gradient(image) >= gradient:
        return image, 0.0
    if mean_gradient(at(MOST)) <= gradient:  # a flat image has no detail to enhance
        return at(MOST), MOST
    amount = brentq(lambda amount: mean_gradient(at(amount)) - gradient, 0, MOST, xtol=1e-3)
    return at(amount), amount


def mean_gradient(image):
    """Mean length of the luma's gradient, levels of 255 a pixel."""
    down, right = np.gradient(image @ [0.299, 0.587, 0.114])
    return np.hypot(down, right).mean()


def write_pictures(page, participant, output, enlarge):
    """`01.png` … of the page's trials, and shown.json: what stood where."""
    from PIL import Image

    found = re.search(r"^const study = (.*);$", page.read_text(encoding="utf-8"), re.MULTILINE) if page.is_file() else None
    if not found:
        raise UserError(f"{page}: not a page of scripts/user_study.py")
    study = json.loads(found.group(1))
    if any(len(trial["candidates"]) != len(SIDES) for trial in study["trials"]):
        raise UserError(f"{page}: compares more than two methods, which have no left and right")
    rng = np.random.default_rng(zlib.crc32(f"{study['id']} {participant}".encode()))
    output.mkdir(parents=True, exist_ok=True)
    shown = []
    for number, index in enumerate(rng.permutation(len(study["trials"])), 1):
        trial = study["trials"][index]
        candidates = [trial["candidates"][place] for place in rng.permutation(len(SIDES))]
        images = [enlarged(data, enlarge) for data in (trial["lr"], *(candidate["data"] for candidate in candidates))]
        picture = Image.new("RGB", (sum(image.width + MARGIN for image in images) - MARGIN, images[0].height), "white")
        for place, image in enumerate(images):
            picture.paste(image, (place * (image.width + MARGIN), 0))
        picture.save(output / f"{number:02d}.png")
        shown.append({"trial": trial["id"], "shown": [candidate["id"] for candidate in candidates]})
    write_json(output / "shown.json", {"study": study["id"], "participant": participant, "pictures": shown})
    print(f"{output}: {len(shown)} pictures: the input, left, right. {study['title']}")


def enlarged(data, times):
    """The image of a data URI, each pixel repeated."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)


def write_votes(pictures, answers, output):
    """The page's JSON of the answers; `UserError` unless there is one for each picture."""
    shown = read_json(pictures / "shown.json")
    if not os.access(answers, os.R_OK):
        raise UserError(f"{answers}: is missing or cannot be read")
    text = answers.read_text(encoding="utf-8").lower()
    found = {int(number): side for number, side in re.findall(r"^\s*0*(\d+)\W+(left|right)\b", text, re.MULTILINE)}
    missing = [number for number in range(1, len(shown["pictures"]) + 1) if number not in found]
    if missing:
        raise UserError(f"{answers}: has no line such as '{missing[0]} left' for picture {missing[0]}")
    votes = [{**picture, "choice": picture["shown"][SIDES.index(found[number])]} for number, picture in enumerate(shown["pictures"], 1)]
    write_json(output, {"study": shown["study"], "participant": shown["participant"], "votes": votes})


if __name__ == "__main__":
    run(main)
