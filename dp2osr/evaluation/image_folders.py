"""Folders of SR images of any method, paired with the GT by name."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp2osr.cli import named_folder
from dp2osr.data.inputs import examine, find_gt, list_images
from dp2osr.errors import UserError, listed
from dp2osr.results import read_image_record

SAMPLE = re.compile(r"(.+)_(\d+)")  # photo_00, photo_01: samples of photo, as the test programs name them


@dataclass(frozen=True)
class ImageMethod:
    """One method's SR images: `samples[image id]` are the paths of its samples, as many for every image."""

    name: str
    samples: dict[str, list[Path]]


def parse_folders(arguments: Iterable[str]) -> dict[str, list[Path]]:
    """`["ours=DIR", "ours=DIR2", "SeeSR=DIR"]` → {"ours": [Path, Path], "SeeSR": [Path]}: a further folder has further samples."""
    folders: dict[str, list[Path]] = {}
    for argument in arguments:
        name, folder = named_folder(argument, "--images", "SeeSR=results/seesr ours=results/ours")
        if any(folder.resolve() == known.resolve() for known in folders.get(name, [])):
            raise UserError(f"--images: {argument} is given twice; a further folder of a method has further samples")
        folders.setdefault(name, []).append(folder)
    return folders


def pair_images(
    folders: Mapping[str, Iterable[Path]],
    gt_path: str | Path | None = None,
    lr_path: str | Path | None = None,
    only: Sequence[str] | None = None,
    suffix: str = "",
) -> tuple[list[ImageMethod], dict[str, Path]]:
    """The methods' images and their GT.

    An image that a test program wrote is paired by its record. Another has the name of its GT, or that with `_` and the sample's number,
    and with `suffix` behind it. Without GT the LR images give the names, and without them
    the first method does: then every image is one of its own, and none is a sample of another.

    Args:
        folders: of `parse_folders`.
        gt_path: folder of the GT images, or None; lr_path: of the LR images, or None.
        suffix: what is behind the stem of every SR image that has no record.
        only: image ids with GT; others of the GT and of the methods are passed over.

    Returns:
        (list of `ImageMethod` with the same image ids, {image id: GT path}, empty without GT).

    Raises:
        UserError: an image without GT or a GT without image (all sides are listed), or numbers of samples that differ.
    """
    gt = {path.stem: path for path in list_images(gt_path)} if gt_path else {}
    named_by = gt_path or lr_path
    names = gt or ({path.stem: path for path in list_images(lr_path)} if lr_path else {})
    methods = []
    for name, paths in folders.items():
        samples: dict[str, list[Path]] = {}
        for folder in paths:
            for path in list_images(folder):
                samples.setdefault(_image_id(path, names, suffix), []).append(path)
        methods.append(ImageMethod(name, {key: found for key, found in samples.items() if only is None or key in only}))
    if gt_path and only is not None:
        names = gt = find_gt(gt_path, only)
    _check_names(methods, names, named_by)
    _check_samples(methods)
    return methods, gt


def _image_id(path: Path, names: Collection[str], suffix: str) -> str:
    """The image that the SR image at `path` is of: by the record of the program that wrote it, else by its name."""
    record = read_image_record(path)
    made_of = record["input"] if record else {}
    if made_of.get("id") and (not names or made_of["id"] in names):
        return made_of["id"]
    stem = path.stem.removesuffix(suffix) if suffix else path.stem
    return image_id_of(stem, names)


def image_id_of(stem: str, names: Collection[str]) -> str:
    """The one of `names` that an SR image's stem stands for; where none fits, the stem itself."""
    match = SAMPLE.fullmatch(stem)
    return match[1] if match and stem not in names and match[1] in names else stem


def _check_names(methods: Sequence[ImageMethod], names: Collection[str], named_by: str | Path | None) -> None:
    expected, where = (set(names), named_by) if names else (set(methods[0].samples), methods[0].name)
    problems = []
    for method in methods:
        there = set(method.samples)
        sides = ((there - expected, f"only in {method.name}"), (expected - there, f"only in {where}, not in {method.name}"))
        problems += [f"{words}: {listed(sorted(ids))}" for ids, words in sides if ids]
    if problems:
        raise UserError(
            f"the images do not have the same names ({'; '.join(problems)}); an SR image has its GT's name, and _00, _01 ... for samples; "
            "--suffix names what is behind"
        )


def check_sizes(paths: Collection[Sequence[Path]]) -> None:
    """Raise `UserError` unless all images can be read and are as large as the first of their list; all that are not are named.

    Args:
        paths: lists of paths, each with its GT, if there is one, in front.
    """
    found: dict[Path, dict[str, Any]] = {}
    wrong = []
    for each in paths:
        found.update(zip(each, examine(each), strict=True))
    wrong += [f"{path} ({about['problem']})" for path, about in found.items() if about["problem"]]
    for first, *others in paths:
        for path in others:
            sizes = [found[each]["size"] for each in (path, first)]
            if not found[path]["problem"] and not found[first]["problem"] and sizes[0] != sizes[1]:
                words = [f"{width} x {height}" for width, height in sizes]
                wrong.append(f"{path} (is {words[0]} pixels, {first} is {words[1]})")
    if wrong:
        raise UserError(f"{len(wrong)} images cannot be scored: {listed(wrong, 40)}; nothing is resized here, mend or replace them")


def _check_samples(methods: Sequence[ImageMethod]) -> None:
    for method in methods:
        counts = {len(paths) for paths in method.samples.values()}
        if len(counts) > 1:
            fewest = min(method.samples, key=lambda image_id: len(method.samples[image_id]))
            found = f"{len(method.samples[fewest])} samples of {fewest} and {max(counts)} of other images"
            raise UserError(f"'{method.name}' has {found}; give as many of each")
