"""The candidate store: one folder a group, complete or absent.

    <candidates_dir>/settings.json
    <candidates_dir>/groups/<image_id>/latents.safetensors   "latents": (M, C, h, w) fp16, scaled
                                       prompt.safetensors    the prompt's embedding, so that training needs no text encoder
                                       group.json            image id, prompt, seeds, upscale
                                       lr.png                the LR image
                                       000.png ...           candidates, if asked for

The latents are the record: training reads them, and decoding is deterministic.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dp2osr.data.images import read_image
from dp2osr.errors import UserError, listed
from dp2osr.files import (
    as_json,
    check_same_program,
    clear_parts,
    differences,
    put_back,
    read_json,
    replace_folder,
    save_tensors,
    write_json,
)


@dataclass
class CandidateGroup:
    """The M candidates of one LR image."""

    image_id: str
    latents: torch.Tensor  # (M, C, h, w) float16, scaled
    prompt: str
    lr: Image.Image  # RGB
    seeds: list[int]
    upscale: float
    embedding: dict[str, torch.Tensor] = field(default_factory=dict)  # of the prompt, as the backbone gives it for one


class CandidateStore:
    """A folder of candidate groups.

    Args:
        folder: an existing candidate folder, or with `settings` a new or matching one.
        settings: what decides the candidates, `num_candidates` among it.
        not_compared: keys of the settings that are written and not compared.
        also: {key: a function that gives another value for the same}; see `files.differences`.
        begin: whether the settings are written at once; else nothing is written before `begin` is called.

    Raises:
        UserError: not a candidate folder, or one whose groups were made with other settings or of more candidates.
    """

    def __init__(self, folder, settings=None, not_compared=(), also=None, begin=True):
        self.folder = Path(folder)
        self.groups, self.record = self.folder / "groups", self.folder / "settings.json"
        there = read_json(self.record) if self.record.is_file() else None
        if settings is None:
            if there is None:
                raise UserError(f"{self.folder}: is not a candidate folder (no settings.json); make one with gen_candidates.py")
            self.settings = there
            return
        self.settings = as_json(settings)
        self._check_folder(there, not_compared, also)
        if begin:
            self.begin()

    def _check_folder(self, there, not_compared, also):
        """Raise `UserError` unless the folder is new, or a candidate folder with these settings; `there` are those that it has."""
        if there is None:
            names = self._entries()
            if names:
                raise UserError(
                    f"{self.groups}: holds {listed(names)} without a settings.json beside it, and is not of this program; "
                    "give another --output_dir"
                )
            return
        if "num_candidates" in self.settings and "num_candidates" not in there:
            raise UserError(f"{self.record}: is not of this program; nothing of that folder is touched, give another --output_dir")
        check_same_program(self.record, there, self.settings)
        if self._entries():
            self._check_settings(there, not_compared, also)

    def _check_settings(self, there, not_compared, also):
        asked, found = self.settings.get("num_candidates", 0), there.get("num_candidates", 0)
        differing = differences(there, self.settings, (*not_compared, "num_candidates"), also)
        if differing:
            raise UserError(f"{self.folder}: was made with other settings ({'; '.join(differing)}); use them, or give another --output_dir")
        if asked < found:
            raise UserError(
                f"{self.folder}: has {found} candidates an image, --num_candidates {asked} are asked for; go on with --num_candidates "
                f"{found} (training takes the first {asked} by its own --num_candidates), or give another --output_dir"
            )
        self.settings = {**there, **({"num_candidates": asked} if asked else {})}

    def begin(self):
        """Write the settings: from now on the folder is theirs."""
        self.groups.mkdir(parents=True, exist_ok=True)
        clear_parts(self.groups)
        if not self.record.is_file() or read_json(self.record) != self.settings:
            write_json(self.record, self.settings)

    def survey(self, files, prompts=None, adopt=False, pictures=False):
        """{image id: how many of its candidates are there, made of the same image}; 0: none, or of another one. Nothing is changed.

        Args:
            files: {image id: `ImageFile`}.
            prompts: {image id: the prompt that it must have been sampled with}; an id that is not named may have any.
            adopt: take groups from before inputs were recorded whose LR image is the same.
            pictures: a group without its PNGs is not there.

        Raises:
            UserError: groups that this program did not write, from before inputs were recorded, or sampled with other prompts.
        """
        have, foreign, unrecorded, other = {}, [], [], []
        for image_id, file in files.items():
            folder = self.groups / image_id
            put_back(folder)
            about = self._about(folder)
            have[image_id] = 0
            if not folder.exists() and not folder.is_symlink():
                continue
            if about is None:
                foreign.append(image_id)
            elif "input" not in about and not adopt:
                unrecorded.append(image_id)
            elif (prompts or {}).get(image_id, about["prompt"]) != about["prompt"]:
                other.append(image_id)
            elif self._is_of(folder, about, file) and (not pictures or (folder / f"{len(about['seeds']) - 1:03d}.png").is_file()):
                have[image_id] = len(about["seeds"])
        where = self.groups
        if foreign:
            raise UserError(f"{where}: {listed(foreign, 30)}: there and no candidate groups of this program; move them away")
        if unrecorded:
            raise UserError(
                f"{where}: {len(unrecorded)} groups are from before inputs were recorded ({listed(unrecorded)}); --adopt takes those "
                "of the same LR images, or give another --output_dir"
            )
        if other:
            raise UserError(f"{where}: {len(other)} groups were sampled with other prompts ({listed(other)}); give another --output_dir")
        return have

    def _about(self, folder):
        """What group.json says, or None where there is no group of this program."""
        try:
            about = read_json(folder / "group.json")
        except UserError:
            return None
        whole = isinstance(about, dict) and {"image_id", "prompt", "seeds"} <= about.keys() and (folder / "latents.safetensors").is_file()
        return about if whole else None

    def _is_of(self, folder, about, file):
        """Whether a group was made of the image in a file."""
        if "input" in about:
            return about["input"]["image"] == file.content
        return np.array_equal(np.asarray(read_image(folder / "lr.png")), np.asarray(read_image(file.path)))

    def _entries(self):
        """Names of what lies in `groups/`, sorted, without hidden files."""
        return sorted(path.name for path in self.groups.iterdir() if not path.name.startswith(".")) if self.groups.is_dir() else []

    def ids(self):
        """Image ids of the whole groups, sorted.

        Raises:
            UserError: a folder among them that is no group.
        """
        names = [name for name in self._entries() if (self.groups / name).is_dir()]
        strange = [name for name in names if not (self.groups / name / "group.json").is_file()]
        if strange:
            raise UserError(f"{self.groups}: {listed(strange, 30)}: no candidate groups (no group.json); move them away")
        return names

    def has(self, image_id):
        return (self.groups / image_id).is_dir()

    def has_prompt(self, image_id):
        """Whether the embedding of the group's prompt is there."""
        return (self.groups / image_id / "prompt.safetensors").is_file()

    def write(self, group, images=None, made_of=None):
        """Store a group, with its (M, 3, H, W) `images` as PNGs if given, in place of an earlier one; visible only when whole.

        `made_of` says what its input is: {"image": SHA-256 of the LR image's file}.
        """
        from dp2osr.data.images import tensor_to_pil

        about = {"image_id": group.image_id, "prompt": group.prompt, "seeds": group.seeds, "upscale": group.upscale}

        def fill(folder):
            save_tensors({"latents": group.latents.to(torch.float16)}, folder / "latents.safetensors")
            if group.embedding:
                save_tensors(group.embedding, folder / "prompt.safetensors")
            group.lr.save(folder / "lr.png")
            write_json(folder / "group.json", about | ({"input": made_of} if made_of else {}))
            for index, image in enumerate(images if images is not None else []):
                tensor_to_pil(image).save(folder / f"{index:03d}.png")

        replace_folder(self.groups / group.image_id, fill)

    def read(self, image_id):
        """The stored group, but for the prompt's embedding.

        Raises:
            UserError: unknown id or a broken file.
        """
        folder = self.groups / image_id
        if not folder.is_dir():
            raise UserError(f"{self.folder}: has no group '{image_id}'")
        latents = self.read_tensors(image_id, "latents")["latents"]
        about = read_json(folder / "group.json")
        return CandidateGroup(image_id, latents, about["prompt"], read_image(folder / "lr.png"), about["seeds"], about["upscale"])

    def read_tensors(self, image_id, name):
        """The tensors of a group's `latents` or `prompt` file; UserError if it is missing or broken."""
        from safetensors.torch import load_file

        path = self.groups / image_id / f"{name}.safetensors"
        try:
            return load_file(path)
        except Exception as error:  # SafetensorError, FileNotFoundError, OSError
            raise UserError(f"{path}: not readable ({error}); delete the folder {path.parent} and run gen_candidates.py again") from None
