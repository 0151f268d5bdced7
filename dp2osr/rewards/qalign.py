"""Q-Align (Wu et al., 2023), pyiqa's `qalign`: where its 16 GB are, and what its classes lack here.

pyiqa 0.1.16 carries the model's classes for transformers 5. Its network is in float16 on any device, a CPU too, and takes one image.
"""

import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dp2osr.errors import UserError

HUB_ID = "q-future/one-align"
FOLDER = "qalign"  # in the folder of scripts/fetch_metrics.py
FILES = ("config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FETCHED = ["*.json", "*.model", "*.safetensors", "*.bin"]  # its repository also holds code, which nobody needs
PARAMETERS = 8.2e9
BYTES_A_PARAMETER = {"qalign": 2, "qalign_8bit": 1, "qalign_4bit": 0.5}


def weight_bytes(names: Iterable[str]) -> float:
    """Bytes of Q-Align's weights, for the names of metrics that are scored together."""
    return sum(PARAMETERS * BYTES_A_PARAMETER.get(name, 0) for name in names)


@contextmanager
def loading(folder: str | Path | None = None) -> Iterator[None]:
    """Within, pyiqa's Q-Align is read from `<folder>/qalign` where that is there, else from the hub's cache.

    Raises:
        OSError: it is in neither place, or a part of it is missing: transformers would fill in random weights.
    """
    path = list(sys.path)
    try:
        from pyiqa.archs import qalign_arch
        from pyiqa.archs.q_align import modeling_mplug_owl2 as modeling
    finally:
        sys.path[:] = path  # pyiqa's module puts its own folder, with a `constants` and a `visual_encoder`, before all others
    _supply_inverted_mask()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)
        for module, name in (
            (qalign_arch, "MPLUGOwl2LlamaForCausalLM"),
            (qalign_arch, "CLIPImageProcessor"),
            (modeling, "LlamaTokenizer"),
            (modeling, "CLIPImageProcessor"),
        ):
            stack.enter_context(mock.patch.object(module, name, _Loader(getattr(module, name), folder)))
        yield


class _Loader:
    """Stands for a class of which only `from_pretrained` is called."""

    def __init__(self, cls: Any, folder: str | Path | None) -> None:
        self.cls, self.folder = cls, Path(folder) / FOLDER if folder else None

    def from_pretrained(self, name: str, **options: Any) -> Any:
        place = str(self.folder) if self.folder and self.folder.is_dir() else name
        try:
            if not issubclass(self.cls, torch.nn.Module):
                return self.cls.from_pretrained(place, **options)
            model, found = self.cls.from_pretrained(place, output_loading_info=True, **options)
        except OSError as error:
            if place == name:
                there = f"neither in {self.folder} nor in" if self.folder else "not in"
                raise OSError(f"{name} is {there} the hub's cache") from error
            raise OSError(f"{place}: {' '.join(str(error).split())[:150]}") from error
        lacking = sorted(set(found["missing_keys"]) & {key for key, _ in model.named_parameters()})
        if lacking:
            raise OSError(f"{place}: {len(lacking)} of its weights are missing, {lacking[0]} among them")
        return model


def _supply_inverted_mask() -> None:
    """Give pyiqa's class the method that it calls and that transformers has taken out of `PreTrainedModel` (it is gone in 5.23)."""
    from pyiqa.archs.q_align.visual_encoder import MplugOwlVisualAbstractorModel

    if not hasattr(MplugOwlVisualAbstractorModel, "invert_attention_mask"):
        MplugOwlVisualAbstractorModel.invert_attention_mask = _inverted_mask


def _inverted_mask(self: torch.nn.Module, mask: torch.Tensor) -> torch.Tensor:
    """(B, K) or (B, Q, K), 1 = is seen → (B, 1, 1 or Q, K) in the model's precision, to be added to attention scores."""
    mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None]
    return (1 - mask.to(self.dtype)) * torch.finfo(self.dtype).min


def is_whole(folder: str | Path) -> bool:
    """Whether `folder` holds the configuration, the tokenizer and every file of the weights."""
    folder = Path(folder)
    if not all((folder / name).is_file() for name in FILES):
        return False
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        return False
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return all((folder / shard).is_file() for shard in shards)
    return any((folder / name).is_file() for name in WEIGHTS)


def fetch(folder: str | Path) -> None:
    """Fetch the model from the hub to `<folder>/qalign`, without building it; what is there stays. UserError if it cannot."""
    from huggingface_hub import snapshot_download

    target = Path(folder) / FOLDER
    if is_whole(target):
        return
    try:
        snapshot_download(HUB_ID, local_dir=target, allow_patterns=FETCHED)
    except Exception as error:  # the hub's own errors, and its HTTP library's
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"metric 'qalign': {HUB_ID} cannot be fetched ({reason}); run the same command again where there is a network"
        ) from None
    if not is_whole(target):
        raise UserError(f"{target}: is not the whole of {HUB_ID}; delete the folder and run scripts/fetch_metrics.py again")
