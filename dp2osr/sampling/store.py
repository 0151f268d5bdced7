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
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from dp2osr.config import read_json, settle, write_json
from dp2osr.data.images import read_image
from dp2osr.errors import UserError


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


TOLD = ("model", "model_files", "controlnet", "versions")  # settings that are written and not compared: hashes stand for them


class CandidateStore:
    """A folder of candidate groups.

    Args:
        folder: an existing candidate folder, or with `settings` a new or matching one.

    Raises:
        UserError: not a candidate folder, or one made with other settings.
    """

    def __init__(self, folder, settings=None):
        self.folder = Path(folder)
        if settings is not None:
            settle(self.folder / "settings.json", settings, told=TOLD)
        if not (self.folder / "settings.json").is_file():
            raise UserError(f"{self.folder}: is not a candidate folder (no settings.json); make one with gen_candidates.py")
        self.settings = read_json(self.folder / "settings.json")
        self.groups = self.folder / "groups"

    def ids(self):
        """Image ids of the whole groups, sorted."""
        return sorted(path.name for path in self.groups.iterdir() if not path.name.startswith(".")) if self.groups.is_dir() else []

    def has(self, image_id):
        return (self.groups / image_id).is_dir()

    def has_prompt(self, image_id):
        """Whether the embedding of the group's prompt is there."""
        return (self.groups / image_id / "prompt.safetensors").is_file()

    def write(self, group, images=None):
        """Store a group, with its (M, 3, H, W) `images` as PNGs if given; visible only when whole."""
        from safetensors.torch import save_file

        from dp2osr.data.images import tensor_to_pil

        part = self.groups / f".{group.image_id}.{os.getpid()}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            save_file({"latents": group.latents.to(torch.float16).contiguous()}, part / "latents.safetensors")
            if group.embedding:
                save_file({name: value.cpu().contiguous() for name, value in group.embedding.items()}, part / "prompt.safetensors")
            group.lr.save(part / "lr.png")
            write_json(
                part / "group.json", {"image_id": group.image_id, "prompt": group.prompt, "seeds": group.seeds, "upscale": group.upscale}
            )
            for index, image in enumerate(images if images is not None else []):
                tensor_to_pil(image).save(part / f"{index:03d}.png")
            part.rename(self.groups / group.image_id)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

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
