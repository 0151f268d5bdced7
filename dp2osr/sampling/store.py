"""The candidate store: one folder a group, complete or absent.

    <candidates_dir>/settings.json
    <candidates_dir>/groups/<image_id>/latents.safetensors   "latents": (M, C, h, w) fp16, scaled
                                       prompt.safetensors    the prompt's embedding, so that training needs no text encoder
                                       group.json            image id, prompt, seeds, upscale
                                       lr.png                the LR image
                                       000.png ...           candidates, if asked for

The latents are the record: training reads them, and decoding is deterministic.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from dp2osr.data.images import read_image, tensor_to_pil
from dp2osr.data.inputs import ImageFile
from dp2osr.digests import learn_digests
from dp2osr.errors import UserError, listed
from dp2osr.files import (
    as_json,
    check_same_program,
    differences,
    put_back,
    read_json,
    replace_folder,
    save_tensors,
    short_name,
    write_json,
)
from dp2osr.locks import DOOR, Locks
from dp2osr.sampling.pruned import check_not_pruned, rows_of
from dp2osr.sharing import Launch

Also = Mapping[str, Callable[[], object]]  # as `files.differences` takes it


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

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any] | None = None,
        not_compared: Sequence[str] = (),
        also: Also | None = None,
        begin: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.groups, self.record, self.locks = self.folder / "groups", self.folder / "settings.json", Locks(self.folder)
        there = read_json(self.record) if self.record.is_file() else None
        if settings is None:
            if there is None:
                raise UserError(f"{self.folder}: is not a candidate folder (no settings.json); make one with gen_candidates.py")
            self.settings: dict[str, Any] = there
            return
        self.settings, self.compared = as_json(settings), (not_compared, also)
        self._check_folder(there, *self.compared)
        if begin:
            self.begin()

    def _check_folder(self, there: dict[str, Any] | None, not_compared: Sequence[str], also: Also | None, is_new: bool = True) -> None:
        """Raise `UserError` unless the folder is new, or a candidate folder with these settings; `there` are those that it has.

        Settings of a folder without groups count if it `is_new` to nobody: another job is about to write its first one.
        """
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
        check_not_pruned(self.folder, "give another --output_dir")
        if ("imported" in there) != ("imported" in self.settings):
            whose = "imported by scripts/import_candidates.py" if "imported" in there else "sampled by gen_candidates.py"
            raise UserError(f"{self.folder}: its candidates were {whose}, and others do not go with them; give another --output_dir")
        if self._entries() or not is_new:
            self._check_settings(there, not_compared, also)

    def _check_settings(self, there: dict[str, Any], not_compared: Sequence[str], also: Also | None) -> None:
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

    def begin(self) -> None:
        """Write the settings: from now on the folder is theirs. Another job may have written its own meanwhile: they are compared again."""
        self.groups.mkdir(parents=True, exist_ok=True)
        with ExitStack() as refused:
            refused.callback(self.locks.leave)
            with self.locks.held(DOOR, wait=True):
                there = read_json(self.record) if self.record.is_file() else None
                self._check_folder(there, *self.compared, is_new=self.locks.enter())
                if there != self.settings:
                    write_json(self.record, self.settings)
            refused.pop_all()

    def clear_parts(self, image_ids: Iterable[str]) -> None:
        """Remove what processes that are gone left half-written of these groups: those whose lock is free."""
        ids = {short_name(image_id): image_id for image_id in image_ids}
        for path in self.groups.glob(".*.part"):
            image_id = ids.get(path.name.split(".")[1])
            if image_id:
                with self.locks.held(image_id) as mine:
                    if mine:
                        shutil.rmtree(path, ignore_errors=True)

    def survey(
        self,
        files: Mapping[str, ImageFile],
        prompts: Mapping[str, str] | None = None,
        adopt: bool = False,
        pictures: bool = False,
        held: bool = False,
    ) -> dict[str, int]:
        """{image id: how many of its candidates are there, made of the same image}; 0: none, or of another one. Nothing is changed.

        Args:
            files: {image id: `ImageFile`}.
            prompts: {image id: the prompt that it must have been sampled with}; an id that is not named may have any.
            adopt: take groups from before inputs were recorded whose LR image is the same.
            pictures: a group without its PNGs is not there.
            held: their locks are: what a stop in the middle of a replacement left aside is put back.

        Raises:
            UserError: groups that this program did not write, from before inputs were recorded, or sampled with other prompts.
        """
        foreign, unrecorded, other = [], [], []
        if held:
            for image_id in files:
                put_back(self.groups / image_id)
        there = {image_id: file for image_id, file in files.items() if os.path.lexists(f"{self.groups}/{image_id}")}
        learn_digests(file.path for file in there.values())
        have = dict.fromkeys(files, 0)
        for image_id, file in there.items():
            folder = self.groups / image_id
            about = self._about(folder)
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

    def _about(self, folder: Path) -> dict[str, Any] | None:
        """What group.json says, or None where there is no group of this program."""
        try:
            about = read_json(folder / "group.json")
        except UserError:
            return None
        whole = isinstance(about, dict) and {"image_id", "prompt", "seeds"} <= about.keys() and (folder / "latents.safetensors").is_file()
        return about if whole else None

    def _is_of(self, folder: Path, about: Mapping[str, Any], file: ImageFile) -> bool:
        """Whether a group was made of the image in a file."""
        if "input" in about:
            return about["input"]["image"] == file.content
        return np.array_equal(np.asarray(read_image(folder / "lr.png")), np.asarray(read_image(file.path)))

    def _entries(self) -> list[str]:
        """Names of what lies in `groups/`, sorted, without hidden files."""
        return sorted(path.name for path in self.groups.iterdir() if not path.name.startswith(".")) if self.groups.is_dir() else []

    def ids(self) -> list[str]:
        """Image ids of the whole groups, sorted.

        Raises:
            UserError: a folder among them that is no group.
        """
        names = [name for name in self._entries() if (self.groups / name).is_dir()]
        strange = [name for name in names if not (self.groups / name / "group.json").is_file()]
        if strange:
            raise UserError(f"{self.groups}: {listed(strange, 30)}: no candidate groups (no group.json); move them away")
        return names

    def has_prompt(self, image_id: str) -> bool:
        """Whether the embedding of the group's prompt is there."""
        return (self.groups / image_id / "prompt.safetensors").is_file()

    def write(self, group: CandidateGroup, images: torch.Tensor | None = None, made_of: Mapping[str, str] | None = None) -> None:
        """Store a group, with its (M, 3, H, W) `images` as PNGs if given, in place of an earlier one; visible only when whole.

        `made_of` says what its input is: {"image": SHA-256 of the LR image's file}.
        """
        about = {"image_id": group.image_id, "prompt": group.prompt, "seeds": group.seeds, "upscale": group.upscale}

        def fill(folder: Path) -> None:
            save_tensors({"latents": group.latents.to(torch.float16)}, folder / "latents.safetensors")
            if group.embedding:
                save_tensors(group.embedding, folder / "prompt.safetensors")
            group.lr.save(folder / "lr.png")
            write_json(folder / "group.json", about | ({"input": made_of} if made_of else {}))
            for index, image in enumerate(images if images is not None else []):
                tensor_to_pil(image).save(folder / f"{index:03d}.png")

        replace_folder(self.groups / group.image_id, fill)

    def read(self, image_id: str, chosen: Sequence[int] | None = None) -> CandidateGroup:
        """The stored group, but for the prompt's embedding; with the latents of the candidates `chosen` alone, if given.

        Raises:
            UserError: unknown id, a broken file, fewer candidates than are chosen from, or some of them pruned away.
        """
        folder = self.groups / image_id
        if not folder.is_dir():
            raise UserError(f"{self.folder}: has no group '{image_id}'")
        latents = self.read_tensors(image_id, "latents", chosen)["latents"]
        about = read_json(folder / "group.json")
        return CandidateGroup(image_id, latents, about["prompt"], read_image(folder / "lr.png"), about["seeds"], about["upscale"])

    def read_tensors(self, image_id: str, name: str, rows: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        """The tensors of a group's `latents` or `prompt` file, or these `rows` of each; UserError if it is missing or broken."""
        path = self.groups / image_id / f"{name}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                rows = rows_of(path, file.metadata(), rows)
                keys = list(file.keys())
                if rows is None:
                    return {key: file.get_tensor(key) for key in keys}
                stored = {key: file.get_slice(key) for key in keys}
                return {key: torch.stack([tensor[int(row)] for row in rows]) for key, tensor in stored.items()}
        except UserError:
            raise
        except Exception as error:  # SafetensorError, FileNotFoundError, OSError, IndexError
            raise UserError(f"{path}: not readable ({error}); delete the folder {path.parent} and run gen_candidates.py again") from None


@contextmanager
def reading(folders: Iterable[str | Path], what: str) -> Iterator[None]:
    """Within, scripts/prune.py sees that this process reads these candidate folders, and removes nothing from them.

    A folder that holds no candidates is left alone, for its reader to refuse.

    Args:
        what: reads, as prune names it.
    """
    quiet = not Launch().is_first
    with ExitStack() as held:
        for folder in map(Path, folders):
            if (folder / "settings.json").is_file():
                held.enter_context(Locks(folder).reading(what, quiet))
        yield
