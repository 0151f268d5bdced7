"""An endless stream of training pairs: sample i is a function of (seed, i) and the photographs alone.

So a training goes on at any sample, exactly, with any number of loading processes. Sample i is one of `crops_per_photograph` crops of
draw i // crops_per_photograph; every epoch draws each photograph once. Crop, flips, window, degradation and prompt follow from (seed, i).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from dp2osr.data.collection import Collection, Unusable
from dp2osr.data.degradation import degrade, image_rng
from dp2osr.data.degradation_settings import DegradationConfig
from dp2osr.device import keep_freed_memory
from dp2osr.errors import UserError, end_with_parent, listed

TRIES = 64  # photographs drawn in place of one that cannot be used
EMPTY, NEGATIVE, FIRST = 0, 1, 2  # numbers of prompts: none, the negative one, the collection's first


@dataclass(frozen=True)
class StreamSettings:
    """What decides the samples beside the photographs.

    Attributes:
        degradation: how LR is made of GT.
        resolution: side of a degraded crop, pixels; a window is cut from it, so that a small window has LR statistics of a whole image.
        grid: windows lie on multiples of it, pixels: those of a latent.
        crops_per_photograph: samples in a row from one decoded photograph.
        drop_share: of samples with an empty prompt; negative_share: of those that learn the degraded image under the negative prompt.
    """

    degradation: DegradationConfig
    resolution: int
    grid: int
    seed: int
    crops_per_photograph: int = 1
    drop_share: float = 0.0
    negative_share: float = 0.0


class PairStream(torch.utils.data.Dataset):
    """Samples by request (first number, count, side of the window in pixels), all of one draw; returns a dictionary:

    "pixels": (2, count, w, w, 3) uint8, GT and upsampled LR; "prompts": their numbers; "problems": [(place, reason)] of photographs that
    could not be used, in whose place others were drawn; "failed" where none of `TRIES` could be.
    """

    def __init__(self, collection: Collection, settings: StreamSettings) -> None:
        self.collection, self.settings = collection, settings

    def __getitem__(self, request: tuple[int, int, int]) -> dict[str, Any]:
        first, count, window = request
        index, image, problems = self.photograph(first // self.settings.crops_per_photograph)
        if image is None:
            return {"failed": True, "problems": problems}
        made = [self.sample(number, index, image, window) for number in range(first, first + count)]
        pixels = np.stack([np.stack([sample[side] for sample in made]) for side in (0, 1)])
        return {"pixels": pixels, "prompts": [sample[2] for sample in made], "problems": problems}

    def photograph(self, draw: int) -> tuple[int, Image.Image | None, list[tuple[str, str]]]:
        """(number, RGB `PIL.Image`, problems) of a draw; where it cannot be used another is drawn, by a rule that repeats itself."""
        settings, count = self.settings, len(self.collection)
        problems: list[tuple[str, str]] = []
        epoch, place = divmod(draw, count)
        index = int(epoch_order(settings.seed, epoch, count)[place])
        for attempt in range(TRIES):
            try:
                return index, self.collection.decode(index, settings.resolution), problems
            except Unusable as error:
                problems.append((error.place, error.reason))
            index = int(np.random.default_rng((settings.seed, draw, attempt)).integers(count))
        return index, None, problems

    def sample(self, number: int, index: int, image: Image.Image, window: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(GT, upsampled LR, number of the prompt) of sample `number`: (w, w, 3) uint8 windows of a crop of the photograph `image`."""
        settings, side = self.settings, self.settings.resolution
        rng = image_rng(settings.seed, f"sample/{number}")
        left, top = int(rng.integers(image.width - side + 1)), int(rng.integers(image.height - side + 1))
        gt = np.asarray(image.crop((left, top, left + side, top + side)))
        gt = gt[:, ::-1] if rng.random() < 0.5 else gt
        gt = gt.transpose(1, 0, 2) if rng.random() < 0.5 else gt
        top, left = settings.grid * rng.integers((side - window) // settings.grid + 1, size=2)
        kind = rng.random()
        gt = np.ascontiguousarray(gt)
        control = upsample(degrade(gt.astype(np.float32) / 255, settings.degradation, rng), side)
        gt, control = (whole[top : top + window, left : left + window] for whole in (gt, control))
        if kind < settings.negative_share:  # so that guidance away from the negative prompt means something
            return control, control, NEGATIVE
        dropped = kind < settings.negative_share + settings.drop_share
        caption = self.collection.prompt_of[index]
        return gt, control, EMPTY if dropped or caption < 0 else FIRST + int(caption)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch draws `count` photographs."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def upsample(lr: np.ndarray, side: int) -> np.ndarray:
    """(h, w, 3) float LR in [0, 1] → (side, side, 3) uint8, bicubic."""
    image = Image.fromarray((lr * 255).round().astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class BatchPlan:
    """Which samples are whose: position is arithmetic, so any split of a step's samples over processes and micro-batches is the same step.

    Attributes:
        micro_batch: samples in a process's micro-batch of small windows; accumulation: micro-batches a step; processes: how many.
        window, whole: sides of a training window and of a whole crop, pixels.
        steps: of the training; small_steps: those at its start that train on small windows, the rest on whole crops, the same pixels.
    """

    micro_batch: int
    accumulation: int
    processes: int
    window: int
    whole: int
    steps: int
    small_steps: int

    def of_pool(self, size: int, together: int = 16) -> BatchPlan:
        """The plan by which the processes share the first `size` whole crops, `together` at a time."""
        return BatchPlan(together, 1, self.processes, self.whole, self.whole, -(-size // (together * self.processes)), 0)

    def micro_batch_of(self, step: int) -> int:
        """Samples in a process's micro-batch."""
        return self.micro_batch if step < self.small_steps else max(1, self.micro_batch * self.window**2 // self.whole**2)

    def window_of(self, step: int) -> int:
        return self.window if step < self.small_steps else self.whole

    def step_size(self, step: int) -> int:
        """Samples of a step, over all processes."""
        return self.micro_batch_of(step) * self.accumulation * self.processes

    def first_sample(self, step: int) -> int:
        """Number of a step's first sample."""
        small = min(step, self.small_steps)
        return small * self.step_size(0) + (step - small) * self.step_size(self.small_steps)

    def samples(self, step: int, micro: int, rank: int) -> range:
        """Numbers of the samples of a process's micro-batch, a range."""
        size = self.micro_batch_of(step)
        first = self.first_sample(step) + (micro * self.processes + rank) * size
        return range(first, first + size)


class Requests:
    """What a process asks of a `PairStream` from step `first` on: (first number, count, window), a draw each."""

    def __init__(self, plan: BatchPlan, rank: int, first: int, crops_per_photograph: int) -> None:
        self.plan, self.rank, self.first, self.crops = plan, rank, first, crops_per_photograph

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for step in range(self.first, self.plan.steps):
            for micro in range(self.plan.accumulation):
                numbers, window = self.plan.samples(step, micro, self.rank), self.plan.window_of(step)
                start = numbers.start
                while start < numbers.stop:
                    stop = min(numbers.stop, (start // self.crops + 1) * self.crops)
                    yield start, stop - start, window
                    start = stop


def start_worker(_: int) -> None:
    """A loading process leaves signals to the training and ends with it, however that ends; one thread is all it takes."""
    import cv2

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    cv2.setNumThreads(0)
    end_with_parent(os.getppid())  # a killed training's would wait for ever for somebody to take what they have made
    keep_freed_memory()  # a decoded photograph is 48 MB that the next one takes again


def pair_batches(
    stream: PairStream, plan: BatchPlan, rank: int, first: int, workers: int = 0, prefetch: int = 2
) -> Iterator[tuple[range, torch.Tensor, list[int], list[tuple[str, str]]]]:
    """Yield this process's micro-batches from step `first` on: (numbers, pixels (2, B, w, w, 3) uint8 tensor, prompts, problems).

    Args:
        workers: processes that decode and degrade, a photograph each at a time; 0: this one.
        prefetch: batches that they prepare ahead.

    Raises:
        UserError: no photograph out of `TRIES` could be used.
    """
    crops = stream.settings.crops_per_photograph
    ahead = max(2, -(-prefetch * plan.micro_batch // (crops * workers))) if workers else None
    loader = torch.utils.data.DataLoader(
        stream,
        batch_size=None,
        sampler=Requests(plan, rank, first, crops),
        collate_fn=lambda item: item,  # arrays, not tensors: these would keep a file open each
        num_workers=workers,
        prefetch_factor=ahead,
        worker_init_fn=start_worker,
    )
    items = iter(loader)
    for step in range(first, plan.steps):
        for micro in range(plan.accumulation):
            numbers, pixels, problems = plan.samples(step, micro, rank), [], []
            prompts: list[int] = []
            while len(prompts) < len(numbers):
                item = next(items)
                problems += item["problems"]
                if item.get("failed"):
                    told = listed([f"{place}: {reason}" for place, reason in problems[-3:]])
                    raise UserError(f"{stream.collection.where}: {TRIES} photographs in a row cannot be used, among them {told}; mend them")
                pixels.append(item["pixels"])
                prompts += item["prompts"]
            yield numbers, torch.from_numpy(np.concatenate(pixels, axis=1)), prompts, problems
