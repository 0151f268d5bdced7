"""Where an image's prompt comes from: RAM's tags of the LR image, a file of tags, one text for all, or nowhere."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image

from dp2osr.data.images import pil_to_tensor
from dp2osr.data.inputs import EXTENSIONS, OPTIONAL
from dp2osr.errors import UserError, listed
from dp2osr.files import read_json
from dp2osr.prompts.ram import Tagger, load_tagger
from dp2osr.provenance import weights_hash

FLAGS = {"ram": "ram_path", "file": "prompt_file", "text": "prompt"}  # what each source reads


class PromptSource:
    """Called with an image id and its RGB LR image, which only RAM looks at, gives the image's tags; each image is tagged once.

    `kind` is "ram", "file", "text" or "none"; `fingerprint` stands for all that decides the tags.

    Args:
        args: `SamplingSettings`; without `prompt_source`, the one whose path is given, or none.
        device: where RAM runs.

    Raises:
        UserError: a source without its file, a broken file, or paths that leave the source open.
    """

    def __init__(self, args: Any, device: str | torch.device = "cpu") -> None:
        ram_path, dape_path = args.ram_path, args.dape_path
        given = [kind for kind, flag in FLAGS.items() if getattr(args, flag) is not None and (kind == "text" or getattr(args, flag))]
        if not args.prompt_source and len(given) > 1:
            flags = " and ".join(f"--{FLAGS[kind]}" for kind in given)
            raise UserError(
                f"{flags}: {'both' if len(given) == 2 else 'all'} name prompts; say which with --prompt_source {' or '.join(given)}"
            )
        if dape_path and not ram_path:
            raise UserError("--dape_path is an update of RAM and needs --ram_path")
        self.kind = args.prompt_source or next(iter(given), "none")
        for kind in given:
            if kind != self.kind:
                raise UserError(f"--{FLAGS[kind]}: would not be read with --prompt_source {self.kind}; leave one of them out")
        self.text = ""
        self.tags: dict[str, str] = {}
        self.tagger: Tagger | None = None
        self.fingerprint: str | None = None
        if self.kind == "file":
            self.tags = read_tags(args.prompt_file)
            self.fingerprint = short_hash(self.tags)
        if self.kind == "text":
            if args.prompt is None:
                raise UserError("--prompt_source text needs --prompt")
            self.text = self.fingerprint = args.prompt
        if self.kind == "ram":
            if not ram_path:
                raise UserError("--prompt_source ram needs --ram_path")
            self.tagger = load_tagger(ram_path, dape_path, device)
            update = dape_path if not self.tagger.merged_before else None
            classes = short_hash([self.tagger.tags, self.tagger.thresholds.tolist()])
            self.fingerprint = "+".join([classes, *(weights_hash(path) for path in (ram_path, update) if path)])

    def check(self, image_ids: Sequence[str], where: str | None) -> str | None:
        """A line about images that the prompt file does not name, or None.

        Raises:
            UserError: it names none of them.
        """
        absent = [image_id for image_id in image_ids if image_id not in self.tags]
        if self.kind != "file" or not absent:
            return None
        if len(absent) == len(image_ids):
            there = listed(sorted(self.tags), 5) or "nothing"
            raise UserError(f"{where}: names none of the {len(absent)} images ({listed(absent, 5)}); it has {there}")
        return f"{where}: names no prompt for {len(absent)} of {len(image_ids)} images, which get an empty one: {listed(absent, 30)}"

    def fixed(self, image_ids: Iterable[str]) -> dict[str, str]:
        """{image id: its prompt} where a file says it, whose results go by it; {} otherwise."""
        return {image_id: self.tags.get(image_id, "") for image_id in image_ids} if self.kind == "file" else {}

    def __call__(self, image_id: str, lr: Image.Image | None) -> str:
        if self.tagger and lr and image_id not in self.tags:
            self.tags[image_id] = self.tagger.tag(pil_to_tensor(lr))
        return self.tags.get(image_id, self.text)


def short_hash(content: object) -> str:
    """Of anything that JSON holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_tags(path: str | Path | None) -> dict[str, str]:
    """{image id: tags} of a JSON file.

    Raises:
        UserError: no path, or not such a mapping.
    """
    if not path:
        raise UserError("--prompt_source file needs --prompt_file, a JSON {image id: tags}")
    tags = read_json(path)
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise UserError(f"{path}: must map image ids to strings of tags")
    return {_without_extension(name): words for name, words in tags.items()}


def _without_extension(name: str) -> str:
    """An image's name as its id: `sub/photo.png` is `sub__photo`."""
    path = PurePosixPath(name)
    return (path.with_suffix("").as_posix() if path.suffix.lower() in EXTENSIONS | OPTIONAL else name).replace("/", "__")
