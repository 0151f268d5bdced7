"""A pool of crops, degraded and encoded once, from which every window is drawn: for models whose steps take less time than their pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from dp2osr.backbones.tiles import cut_windows
from dp2osr.errors import UserError
from dp2osr.files import save_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dp2osr.backbones.base import Backbone
    from dp2osr.data.stream import BatchPlan

Batch = tuple[range, torch.Tensor, torch.Tensor, list[int]]  # a micro-batch: numbers, latents, control, numbers of the prompts


class LatentPool:
    """Encoded whole crops, in fp16 on the device.

    Attributes:
        latents: (size, C, h, w); control: (size, ...) as `prepare_control` makes it; prompts: (size,) their numbers.
    """

    def __init__(self, backbone: Backbone, seed: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.backbone, self.seed = backbone, seed
        self.latents, self.control = (tensors[name].to(backbone.device) for name in ("latents", "control"))
        self.prompts = tensors["prompts"].tolist()

    def batches(self, plan: BatchPlan, rank: int, first: int) -> Iterator[Batch]:
        """Yield a process's micro-batches of windows from step `first` on; sample i follows from (seed, i)."""
        for step in range(first, plan.steps):
            window = plan.window_of(step) * self.latents.shape[-1] // plan.whole
            for micro in range(plan.accumulation):
                numbers = plan.samples(step, micro, rank)
                yield numbers, *self.draw(numbers, window)

    def draw(self, numbers: Iterable[int], window: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """(latents (B, C, w, w), control, prompts) of the samples `numbers`, windows of `window` latent pixels."""
        side, drawn = self.latents.shape[-1], []
        for number in numbers:
            rng = np.random.default_rng((self.seed, 1, number))
            index = rng.integers(len(self.prompts))
            drawn.append((index, *(2 * rng.integers((side - window) // 2 + 1, size=2))))  # a control input may have tokens of 2 × 2 latents
        crops, top, left = torch.from_numpy(np.array(drawn)).T.to(self.latents.device)
        prompts = [self.prompts[index] for index, *_ in drawn]
        return *self.windows(crops, top, left, window), prompts

    def windows(self, crops: torch.Tensor, top: torch.Tensor, left: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(latents (B, C, w, w), control) of the (B,) `crops`, from the latent pixels (`top`, `left`) on; all int64, on the device."""
        latents = cut_windows(self.latents[crops], top, left, window)
        control = self.backbone.cut_control(self.control[crops], self.latents.shape[-1], top, left, window)
        return latents.float(), control.to(self.backbone.dtype)


def made_pool(
    path: Path, backbone: Backbone, seed: int, size: int, batches: Callable[[], Iterable[Batch]], accelerator: Accelerator
) -> LatentPool:
    """The `LatentPool` that lies at `path`; if none does, it is made, by all processes together, and written there.

    Args:
        batches: gives this process's share of whole crops, by `BatchPlan.of_pool`.

    Raises:
        UserError: a file that cannot be read, or is no pool of this size.
    """
    from accelerate.utils import broadcast_object_list

    if broadcast_object_list([path.exists()])[0]:  # all read it, or all make it
        tensors = read_pool(path, size)
    else:
        tensors = {name: part[:size] for name, part in encode_pool(batches(), accelerator).items()}
        if accelerator.is_main_process:
            save_tensors(tensors, path)
    return LatentPool(backbone, seed, tensors)


def read_pool(path: Path, size: int) -> dict[str, torch.Tensor]:
    """The tensors of a pool of `size` crops."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        if len({"latents", "control", "prompts"} & tensors.keys()) == 3 and len(tensors["prompts"]) == size:
            return tensors
        reason = f"no pool of {size} crops"
    except Exception as error:  # SafetensorError, OSError
        reason = str(error)
    raise UserError(f"{path}: not readable ({reason}); delete it, and the crops are degraded and encoded again") from None


def encode_pool(batches: Iterable[Batch], accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """All processes' shares of crops, in the order of their numbers, in the host's memory."""
    parts: dict[str, list[torch.Tensor]] = {"latents": [], "control": [], "prompts": []}
    for _, *batch in tqdm(batches, desc="degrade and encode", unit="batch", mininterval=5, disable=not accelerator.is_main_process):
        parts["latents"].append(batch[0].half())
        parts["control"].append(batch[1].half())
        parts["prompts"].append(torch.tensor(batch[2], device=batch[0].device))
    # (processes · batches, together, ...) in the processes' order → in the order of the samples' numbers
    count, shared = accelerator.num_processes, {name: accelerator.gather(torch.stack(part)) for name, part in parts.items()}
    return {name: part.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 2).cpu() for name, part in shared.items()}
