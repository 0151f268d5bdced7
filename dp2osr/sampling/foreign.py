"""Candidates as others have them on disk: folders of images, or of latents; what is there, what is wrong with it, and reading it."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from dp2osr.backbones.base import Backbone
from dp2osr.data.images import read_image
from dp2osr.data.inputs import EXTENSIONS, SHOWN, ImageFile, examine
from dp2osr.errors import UserError, listed
from dp2osr.sampling.decode import decoded_together
from dp2osr.sampling.resize import control_image, image_sizes

LATENTS = (".safetensors", ".pt", ".npy")


class PictureFolder:
    """`<image_id>/NNN.png`, `<image_id>_NN.png`, or both.

    Args:
        first: the number of the first candidate.
        upscale: size of a candidate over size of its LR image.

    Attributes:
        kind: "images".
        paths: {image id: its candidates' files, by number}.
        problems: {image id: what is wrong with it}.

    Raises:
        UserError: no such folder.
    """

    kind = "images"

    def __init__(self, folder: str | Path, files: Sequence[ImageFile], first: int, upscale: float) -> None:
        self.folder, self.problems = _existing(folder, "--images"), {}
        found, strange = self._found({file.id for file in files})
        self.paths: dict[str, list[Path]] = {}
        for file in files:
            of_image = found.get(file.id, {})
            self.paths[file.id] = [of_image[number] for number in sorted(of_image)]
            twice = strange.get(file.id, [])
            gaps = sorted(set(range(first, first + len(of_image))) - set(of_image))
            if twice:
                self.problems[file.id] = f"not named by a number of its own: {listed(twice)}"
            elif not of_image:
                self.problems[file.id] = "no candidates"
            elif gaps:
                self.problems[file.id] = f"has no {listed([*map(str, gaps)])}, of numbers that begin with {first}"
        self._check_pictures({file.id: _asked(file, upscale) for file in files})

    def _found(self, ids: set[str]) -> tuple[dict[str, dict[int, Path]], dict[str, list[str]]]:
        """({image id: {number: file}}, {image id: names that are no number, or one that another file has})."""
        found: dict[str, dict[int, Path]] = defaultdict(dict)
        strange: dict[str, list[str]] = defaultdict(list)
        for entry in sorted(self.folder.iterdir()):
            if entry.is_dir() and entry.name in ids:
                named = [(entry.name, path.stem, path) for path in sorted(entry.iterdir())]
            else:
                image_id, _, number = entry.stem.rpartition("_")
                named = [(image_id, number, entry)] if image_id in ids and number.isdecimal() else []
            for image_id, number, path in named:
                if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
                    continue
                if not re.fullmatch("[0-9]+", number) or int(number) in found[image_id]:
                    strange[image_id].append(path.name)
                else:
                    found[image_id][int(number)] = path
        return found, strange

    def _check_pictures(self, asked: Mapping[str, tuple[int, int]]) -> None:
        """Note images that cannot be read, or are of another size."""
        every = [(image_id, path) for image_id, paths in self.paths.items() for path in paths]
        for (image_id, path), about in zip(every, examine([path for _, path in every], show=True), strict=True):
            size = tuple(about["size"])
            problem = about["problem"] or (f"is {_size(size)}, not {_size(asked[image_id])}" if size != asked[image_id] else None)
            if problem:
                self.problems.setdefault(image_id, f"{path.name} {problem}")

    def count(self, image_id: str) -> int:
        return len(self.paths[image_id])

    def read(self, image_id: str, backbone: Backbone) -> torch.Tensor:
        """(M, C, h, w) latents: the images as the autoencoder encodes them, padded as the model's own results are."""
        latents = []
        for path in self.paths[image_id]:
            pixels, content, _ = control_image(read_image(path), 1, backbone.native_size, backbone.size_multiple)
            latents.append(pixels)
        together = decoded_together(backbone, content)
        parts = [torch.cat(latents[start : start + together]) for start in range(0, len(latents), together)]
        return torch.cat([backbone.encode_images(part.to(backbone.device)).float().cpu() for part in parts])


class LatentFolder:
    """`<image_id>.safetensors`, `.pt` or `.npy` of (M, C, h, w) each; arguments, attributes and errors as of `PictureFolder`."""

    kind = "latents"

    def __init__(self, folder: str | Path, files: Sequence[ImageFile], upscale: float, backbone: Backbone) -> None:
        self.folder, self.problems, self.counts = _existing(folder, "--latents"), {}, {}
        self.paths: dict[str, list[Path]] = {}
        for file in files:
            there = [path for ending in LATENTS if (path := self.folder / f"{file.id}{ending}").is_file()]
            self.paths[file.id] = there
            try:
                if len(there) != 1:
                    raise ValueError("no latents" if not there else f"several files ({listed([path.name for path in there])})")
                shape = tuple(read_latents(there[0]).shape)
                padded = image_sizes(file.size, upscale, backbone.native_size, backbone.size_multiple)[2]
                right = (backbone.latent_channels, padded[1] // backbone.vae_scale, padded[0] // backbone.vae_scale)
                if len(shape) != 4 or shape[1:] != right:
                    raise ValueError(f"{there[0].name} is of shape {_size(shape)}, not M x {_size(right)}")
                self.counts[file.id] = shape[0]
            except ValueError as error:
                self.problems[file.id] = str(error)

    def count(self, image_id: str) -> int:
        return self.counts.get(image_id, 0)

    def read(self, image_id: str, backbone: Backbone) -> torch.Tensor:
        return read_latents(self.paths[image_id][0]).float()


def read_latents(path: Path) -> torch.Tensor:
    """The tensor "latents" of a safetensors file, or the one tensor of a .pt or .npy file; ValueError where there is none."""
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            content = load_file(path)
    except Exception as error:  # torch, NumPy and safetensors raise what comes on a broken file
        raise ValueError(f"{path.name} is not readable ({' '.join(str(error).split())[:120]})") from None
    found = content.get("latents") if isinstance(content, dict) else content
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"{path.name} has no tensor 'latents'")
    return found


def check_foreign(source: PictureFolder | LatentFolder, ids: Sequence[str]) -> int:
    """M, the number of candidates of each image.

    Raises:
        UserError: images without candidates, of which some are unusable, or of another number than the others: all are named.
    """
    counts = {image_id: source.count(image_id) for image_id in ids if image_id not in source.problems}
    most = max(set(counts.values()), key=list(counts.values()).count, default=0)
    problems = dict(source.problems) | {image_id: f"has {count} of {most}" for image_id, count in counts.items() if count != most}
    if problems:
        what = listed([f"{image_id}: {problem}" for image_id, problem in sorted(problems.items())], SHOWN)
        raise UserError(
            f"{source.folder}: the candidates of {len(problems)} of {len(ids)} images cannot be imported: {what}; "
            "mend them, or take their LR images out of --image_path"
        )
    return most


def _existing(folder: str | Path, flag: str) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"{flag} {folder}: no such folder")
    return Path(folder)


def _asked(file: ImageFile, upscale: float) -> tuple[int, int]:
    return round(file.size[0] * upscale), round(file.size[1] * upscale)


def _size(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
