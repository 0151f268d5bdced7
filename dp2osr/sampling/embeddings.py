"""Embeddings of prompts, made ahead by text encoders that are gone before the denoiser runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice

import torch

from dp2osr.backbones.base import Backbone
from dp2osr.device import free_device_bytes, give_back_cached, has_own_memory
from dp2osr.flops import weight_bytes

TOGETHER = 256  # images whose prompts are embedded in one go: of FLUX at 512 tokens 1.1 GB of the host's memory


class PromptEmbeddings:
    """Called with a prompt, gives its embedding on the device of `backbone`. Each prompt is embedded alone: no other changes its numbers.

    A prompt that is not known is embedded together with those that are said to come next; then the text encoders are freed. Which images
    a rank will get is not known beforehand, as any other rank may take the next one. So each embeds those of the next images on the list,
    whoever will sample them: with T5 that is some .05 s an image, beside minutes for an image's candidates.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.always: list[str] = []
        self.known: dict[str, dict[str, torch.Tensor]] = {}  # on the host

    def keep(self, prompts: Iterable[str]) -> None:
        """Let these prompts stay known, once they are: the negative one."""
        self.always += [prompt for prompt in prompts if prompt not in self.always]

    def __call__(self, prompt: str, coming: Iterable[str] = ()) -> dict[str, torch.Tensor]:
        if prompt not in self.known:
            self.learn(chain([prompt], coming))
        return {name: tensor.to(self.backbone.device) for name, tensor in self.known[prompt].items()}

    def learn(self, prompts: Iterable[str]) -> None:
        """Know the first `TOGETHER` of `prompts`, embed those that are not known yet, and forget all others."""
        wanted = dict.fromkeys([*self.always, *islice(prompts, TOGETHER)])
        self.known = {prompt: self.known[prompt] for prompt in wanted if prompt in self.known}
        missing = [prompt for prompt in wanted if prompt not in self.known]
        if not missing:
            return
        with text_encoders(self.backbone):
            for prompt in missing:
                embedding = self.backbone.encode_prompts([prompt])
                self.known[prompt] = {name: tensor.cpu() for name, tensor in embedding.items()}


@contextmanager
def text_encoders(backbone: Backbone) -> Iterator[None]:
    """Within, `backbone` has its text encoders. Where a device with memory of its own has too little left for them, the denoiser makes room
    and waits in the host's memory: of FLUX 23.8 GB a process, 190 GB on a node of eight.

    Encoders that are there already stay: who has loaded them frees them.
    """
    if all(hasattr(backbone, name) for name in backbone.text_parts):
        yield
        return
    # in all published models the text encoders are smaller than the denoiser: what takes one takes the others
    moves = has_own_memory(backbone.device) and free_device_bytes(backbone.device) < weight_bytes(backbone.denoiser)
    if moves:
        backbone.denoiser.to("cpu")
        give_back_cached()
    backbone.load_text_encoders()
    try:
        yield
    finally:
        backbone.free_text_encoders()
        if moves:
            give_back_cached()
            backbone.denoiser.to(backbone.device)
