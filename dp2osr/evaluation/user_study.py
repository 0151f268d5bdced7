"""A blind user study: one page that needs nothing but itself, its key, and what the votes say (the paper's user study, Sec. 5)."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dp2osr.data.images import read_image
from dp2osr.data.inputs import check_images, list_images
from dp2osr.errors import UserError
from dp2osr.evaluation.image_folders import ImageMethod, pair_images
from dp2osr.evaluation.report import png_data, render
from dp2osr.evaluation.tables import markdown
from dp2osr.files import read_json, write_json, write_text
from dp2osr.outputs import check_output
from dp2osr.results import check_own_files, own_files
from dp2osr.stats import Estimate

MOST_METHODS = 9  # number keys


def make_study(
    folders: Mapping[str, Iterable[Path]],
    lr_path: str | Path,
    output: str | Path,
    num_images: int | None = None,
    seed: int = 0,
    title: str = "Which is the best restoration of the input?",
) -> None:
    """Write a study's page, and beside it its key, which tells what the page does not: which candidate is whose.

    Args:
        folders: {method: [folders of SR images]}; the first sample of each image is shown.
        lr_path: folder of the LR images, named as the SR images.
        output: the page, .html; the key is `<stem>.key.json`.
        num_images: images shown, drawn at random with `seed`; None for all.
        title: the question.

    Raises:
        UserError: names that do not match, a method too few or too many, images of one name that differ in size.
    """
    if not 2 <= len(folders) <= MOST_METHODS:
        raise UserError(f"--images: {len(folders)} methods; a study compares 2 to {MOST_METHODS}")
    check_output(output, "--output", is_file=True)
    page, key_path = Path(output), Path(output).with_suffix(".key.json")
    files = [page.name, key_path.name]
    check_own_files(page.parent, files, "--output")
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {output}: is a page, its name must end in .html")
    methods, _ = pair_images(folders, lr_path=lr_path)
    lr = {path.stem: path for path in list_images(lr_path)}
    check_images([*lr.values(), *(method.samples[image_id][0] for method in methods for image_id in method.samples)], "--images")
    image_ids = sorted(lr)
    if num_images is not None:
        if num_images > len(image_ids):
            raise UserError(f"--num_images {num_images}: there are {len(image_ids)}")
        image_ids = sorted(np.random.default_rng(seed).permutation(image_ids)[:num_images].tolist())
    pictures = {image_id: _pictures(image_id, methods, lr) for image_id in image_ids}
    secret = hashlib.sha256(json.dumps([seed, pictures]).encode()).hexdigest()

    def token(*words: str) -> str:
        """A name that tells nothing, of this study alone."""
        return hashlib.sha256("\0".join([secret, *words]).encode()).hexdigest()[:10]

    trials, key = [], {}
    for image_id, (low, restored) in pictures.items():
        owners = {token(image_id, name): name for name in restored}
        candidates = [{"id": name, "data": restored[owners[name]]} for name in sorted(owners)]  # by hash: not in the methods' order
        trials.append({"id": token(image_id), "lr": low, "candidates": candidates})
        key[token(image_id)] = {"image": image_id, "candidates": owners}
    study = {"id": token("study"), "title": title, "trials": trials}
    page.parent.mkdir(parents=True, exist_ok=True)
    with own_files(page.parent, files, "--output"):
        write_text(page, render("user_study", study=study))
        write_json(key_path, {"study": study["id"], "methods": [method.name for method in methods], "trials": key})


def _pictures(image_id: str, methods: Sequence[ImageMethod], lr: Mapping[str, Path]) -> tuple[str, dict[str, str]]:
    """(the LR image, bicubic at the methods' size; {method: its first sample}), as data URIs."""
    images = {method.name: read_image(method.samples[image_id][0]) for method in methods}
    sizes = {image.size for image in images.values()}
    if len(sizes) > 1:
        raise UserError(f"'{image_id}': the methods' images have different sizes ({sorted(sizes)}); a size would tell them apart")
    low = read_image(lr[image_id]).resize(sizes.pop(), Image.Resampling.BICUBIC)
    return png_data(low), {name: png_data(image) for name, image in images.items()}


# ---------------------------------------------------------------- votes


@dataclass(frozen=True)
class Votes:
    """One participant's votes: `choices[trial id]` is the method that was chosen, `places[trial id]` where it stood, from 0."""

    participant: str
    choices: dict[str, str]
    places: dict[str, int]


def read_votes(paths: Iterable[str | Path], key_path: str | Path) -> tuple[list[str], list[Votes]]:
    """(methods, list of `Votes`).

    Raises:
        UserError: no file; a file that is no JSON of a study's page, of another study, or of a participant who is there already.
    """
    key = read_json(key_path)
    if not _is_key(key):
        raise UserError(f"{key_path}: not the key of a study; scripts/user_study.py writes it beside the page")
    everyone: list[Votes] = []
    origin: dict[str, str | Path] = {}
    for path in paths:
        found = read_json(path)
        try:
            participant, choices, places = str(found["participant"]), {}, {}
            if found["study"] != key["study"]:
                raise UserError(f"{path}: votes of another study than {key_path}")
            for vote in found["votes"]:
                owners = key["trials"][vote["trial"]]["candidates"]
                if sorted(vote["shown"]) != sorted(owners) or vote["trial"] in choices:
                    raise ValueError(f"{vote['trial']} shows other candidates than the key has, or is there twice")
                choices[vote["trial"]] = owners[vote["choice"]]
                places[vote["trial"]] = vote["shown"].index(vote["choice"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: not the votes of this study's page ({type(error).__name__}: {error}); ask for the file again"
            ) from None
        if participant in origin:
            raise UserError(f"{path}: its participant's votes are in {origin[participant]} already; leave one out")
        if not choices:
            raise UserError(f"{path}: holds no vote; leave it out")
        origin[participant] = path
        everyone.append(Votes(participant, choices, places))
    if not everyone:
        raise UserError(f"no votes: name the files that participants sent behind --key {key_path}")
    return key["methods"], everyone


def _is_key(key: object) -> bool:
    kinds = {"study": str, "methods": list, "trials": dict}
    if not isinstance(key, dict) or not all(isinstance(key.get(name), kind) for name, kind in kinds.items()):
        return False
    return all(isinstance(trial, dict) and isinstance(trial.get("candidates"), dict) for trial in key["trials"].values())


def shares(methods: Sequence[str], everyone: Sequence[Votes], resamples: int = 2000, seed: int = 0) -> dict[str, Estimate]:
    """{method: `Estimate` of its share of all votes}; 95 % intervals draw participants and images; one alone has none."""
    images = sorted({trial for votes in everyone for trial in votes.choices})
    cast = np.array([[trial in votes.choices for trial in images] for votes in everyone], float)
    rng = np.random.default_rng(seed)
    of_people = rng.multinomial(len(everyone), np.full(len(everyone), 1 / len(everyone)), size=resamples)
    of_images = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), size=resamples)
    result = {}
    for method in methods:
        won = np.array([[votes.choices.get(trial) == method for trial in images] for votes in everyone], float)
        value = float(won.sum() / cast.sum())
        below = np.einsum("bp,pi,bi->b", of_people, cast, of_images)
        drawn = np.einsum("bp,pi,bi->b", of_people, won, of_images)[below > 0] / below[below > 0]
        several = len(images) > 1 and len(everyone) > 1
        bounds = np.percentile(drawn, [2.5, 97.5]) if several else (float("nan"),) * 2
        result[method] = Estimate(value, float(bounds[0]), float(bounds[1]))
    return result


def votes_table(methods: Sequence[str], everyone: Sequence[Votes], resamples: int = 2000) -> str:
    """Markdown: the percentages with their intervals, and how often each place on the page was chosen."""
    total = sum(len(votes.choices) for votes in everyone)
    images = len({trial for votes in everyone for trial in votes.choices})
    rows = []
    for method, share in sorted(shares(methods, everyone, resamples).items(), key=lambda item: -item[1].value):
        bounds = "" if np.isnan(share.low) else f"{share.low:.1%} to {share.high:.1%}"
        rows.append({"method": method, "chosen": f"{share.value:.1%}", "95 % interval": bounds})
    places = np.bincount([place for votes in everyone for place in votes.places.values()], minlength=len(methods)) / total
    blocks = [
        f"{total} votes of {len(everyone)} participants on {images} images",
        markdown(pd.DataFrame(rows)),
        "By place on the page, left to right: " + ", ".join(f"{share:.0%}" for share in places) + f" (chance {1 / len(methods):.0%})",
    ]
    return "\n\n".join(blocks)
