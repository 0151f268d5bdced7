"""A training's prompts by number: embedded once, by text encoders that are then freed, unless they are trained or prompts too many."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from dp2osr.backbones.base import Backbone

TOGETHER = 16  # prompts in one pass of the encoders


class PromptBook:
    """Embeddings of `texts`, by their numbers.

    Frozen encoders embed every prompt once; the embeddings lie in the host's memory and the encoders are freed. Where they would take
    more than `limit` bytes the encoders stay, and so many are kept.

    Args:
        trained: whether the encoders are: then each batch is embedded anew, with gradient.
    """

    def __init__(self, backbone: Backbone, texts: list[str], trained: bool, limit: float, quiet: bool = False) -> None:
        self.backbone, self.texts, self.trained = backbone, texts, trained
        self.known: dict[int, dict[str, torch.Tensor]] = {}
        if trained:
            return
        self.learn([0])
        each = sum(tensor.nbytes for tensor in self.known[0].values())
        self.room = max(1, int(limit // each))
        if len(texts) <= self.room:
            for start in tqdm(range(1, len(texts), TOGETHER), desc="embed prompts", delay=3, disable=quiet):
                self.learn(range(start, min(start + TOGETHER, len(texts))))
            backbone.free_text_encoders()
        elif not quiet:
            print(
                f"note: {len(texts)} prompts take {len(texts) * each / 1e9:.1f} GB, more than --text_cache_gb {limit / 1e9:g}: the text "
                "encoders stay in memory and embed each batch",
                file=sys.stderr,
            )

    def learn(self, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        embedded = self.backbone.encode_prompts([self.texts[number] for number in numbers])
        for place, number in enumerate(numbers):
            self.known[number] = {name: tensor[place : place + 1].cpu().clone() for name, tensor in embedded.items()}

    def embed(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """The arguments that `predict` takes, {name: (len(numbers), ...)}."""
        if self.trained:
            return self.backbone.embed_prompts([self.texts[number] for number in numbers])
        lacking = [number for number in dict.fromkeys(numbers) if number not in self.known]
        if lacking:
            while self.known and len(self.known) + len(lacking) > self.room:
                del self.known[next(iter(self.known))]
            lacking = [number for number in dict.fromkeys(numbers) if number not in self.known]
            self.learn(lacking)
        found = [self.known[number] for number in numbers]
        return {name: torch.cat([one[name] for one in found]).to(self.backbone.device, non_blocking=True) for name in found[0]}
