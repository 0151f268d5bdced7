"""What sampling will take, before its first step: passes of the network, memory, time.

Memory is arithmetic: the images' and latents' own sizes, how often the code holds them at once, and what a network holds in a pass by
`dp2osr/backbones/footprint.py`. Time is measured, by one pass over one tile. Nothing of an image's size is allocated here.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from PIL import Image

from dp2osr.backbones.base import Backbone
from dp2osr.backbones.trajectory import trajectories, work_of_steps
from dp2osr.errors import UserError, listed
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.levers import check_tiles
from dp2osr.sampling.memory import AUTOENCODER, LATENTS, NETWORK, RESULTS, Peaks, Work, free_bytes, peak_bytes, total, work_of
from dp2osr.sampling.speed import in_words, measure_speed

LONG = 600  # seconds from which on a warning is due

Sides = tuple[int, ...]  # width, height


def check_cost(
    sizes: Mapping[str, Sequence[int]], backbone: Backbone, controlnet: torch.nn.Module, settings: LoopSettings, upscale: float, count: int,
    batch_size: int, align_method: str = "wavelet", save_images: bool = True, processes: int = 1, beside: int = 1,
    free: Mapping[str, int] | None = None,
) -> list[str]:  # fmt: skip
    """The lines to print before the first step, `Estimate.lines`; arguments and errors as of `Estimate`.

    Args:
        processes: that share the work; beside: that share this machine's memory.
    """
    if not sizes:
        return []
    free = free or free_memory(backbone, beside)
    return Estimate(sizes, backbone, controlnet, settings, upscale, count, batch_size, align_method, save_images, free).lines(processes)


def free_memory(backbone: Backbone, beside: int = 1) -> dict[str, int]:
    """{"host": bytes, "device": bytes} that each of `beside` processes on this machine may still take."""
    return {"host": free_bytes("cpu") // beside, "device": free_bytes(backbone.device)}


class Estimate:
    """What the samples of some images will take. No network runs before `seconds` is asked for.

    Args:
        sizes: {image name: (width, height)} of the LR images.
        count: samples of each.
        free: {"device": bytes, "host": bytes}; by default `free_memory`.

    Attributes:
        works: {size of an LR image: `Work`}; need: {the same: `Peaks`}.

    Raises:
        UserError: memory does not suffice; all images for which it does not are named, with what to lower.
    """

    def __init__(
        self, sizes: Mapping[str, Sequence[int]], backbone: Backbone, controlnet: torch.nn.Module, settings: LoopSettings, upscale: float,
        count: int, batch_size: int, align_method: str, save_images: bool = True, free: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.sizes: dict[str, Sides] = {name: tuple(size) for name, size in sizes.items()}
        self.backbone, self.controlnet, self.settings, self.upscale = backbone, controlnet, settings, upscale
        self.count, self.batch_size, self.align_method, self.save_images = count, batch_size, align_method, save_images
        self.free = free or free_memory(backbone)
        self.need = {size: self._peaks(size, upscale) for size in set(self.sizes.values())}
        self.works = {size: work_of(backbone, settings, size, upscale, count, batch_size) for size in self.need}
        check_tiles(settings, [name for name, size in self.sizes.items() if self.works[size].tiles > 1])
        lacking = {size: place for size, peaks in self.need.items() if (place := self._lacking(peaks))}
        if lacking:
            raise UserError(self._refusal(lacking))

    def _peaks(self, size: Sides, upscale: float) -> Peaks:
        return peak_bytes(
            self.backbone, self.settings, size, upscale, self.count, self.batch_size, self.save_images, self.controlnet, self.align_method
        )

    def _lacking(self, peaks: Peaks) -> str | None:
        """Where memory does not suffice: "host", "device" or None."""
        return next((place for place in ("host", "device") if total(peaks[place]) > self.free[place]), None)

    @cached_property
    def seconds(self) -> float:
        """That one process like this takes for all, by one pass over one tile."""
        backbone, settings = self.backbone, self.settings
        slowest = max(self.works.values(), key=lambda work: work.tiles * work.rounds * math.prod(work.tile))
        speed = measure_speed(backbone, self.controlnet, settings, slowest, self.align_method)
        dearest, seconds = backbone.passes_a_step(settings.guidance_scale), 0.0
        for size, images in Counter(self.sizes.values()).items():
            work = self.works[size]
            trunk, own = (
                work_of_steps(steps, dearest, speed.reused, speed.forecast) for steps in trajectories(backbone, settings, work.latent)
            )
            seconds += images * speed.seconds(work, trunk + self.count * own, backbone.encodes_control, self.save_images)
        return seconds

    def lines(self, processes: int = 1) -> list[str]:
        """What so many processes that share the work will take, and what should be known of it."""
        seconds = self.seconds / processes
        where = "on this machine" if processes == 1 else f"with {processes} processes as fast as this one"
        lines = [f"{len(self.sizes):,} image{'s' if len(self.sizes) > 1 else ''}: about {in_words(seconds)} {where}, {self._memory()}"]
        lines += self._warnings()
        if seconds > LONG:
            lines.append(f"warning: this takes about {in_words(seconds)}; fewer --num_inference_steps or a lower --upscale take less")
        return lines

    def _memory(self) -> str:
        """`1.2 GB of 15 GB free`, and the same of a GPU."""
        most = {place: max(total(peaks[place]) for peaks in self.need.values()) for place in self.free}
        named = {"host": "free", "device": "free on the GPU"}
        return ", ".join(f"{gigabytes(most[place])} of {gigabytes(self.free[place])} {named[place]}" for place in named if most[place])

    def _warnings(self) -> Iterator[str]:
        """Lines on images that are worked on far larger than asked for, and on results that Pillow will not open."""
        works = [(name, self.works[size]) for name, size in self.sizes.items()]
        native = self.backbone.native_size
        far = [(name, work) for name, work in works if work.is_enlarged_far(native)]
        if far:
            shown = listed([f"{name} ({by_size(work.asked)} asked for, {by_size(work.padded)} worked on)" for name, work in far])
            yield f"warning: a side below the model's {native} pixels is enlarged to it: {shown}; a lower --process_size takes less"
        most = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else math.inf
        big = [f"{name} ({by_size(work.asked)})" for name, work in works if math.prod(work.asked) > most]
        if big:
            yield (
                f"warning: results above {most / 1e6:.0f} million pixels are written, but programs that read with Pillow's limits refuse "
                f"them, scripts/evaluate.py among them: {listed(big)}"
            )

    def _refusal(self, lacking: Mapping[Sides, str]) -> str:
        """One line that names all images for which memory does not suffice, and what to lower."""
        names: list[str] = []
        ways: dict[str, list[Sides]] = {}
        for name, size in self.sizes.items():
            if size not in lacking:
                continue
            work, place, parts = self.works[size], lacking[size], self.need[size][lacking[size]]
            needed = f"{gigabytes(total(parts))} of {gigabytes(self.free[place])} free"
            names.append(f"{name} ({by_size(size)} → {by_size(work.padded)}: {needed})")
            ways.setdefault(what_to_lower(work, parts, self.backbone.native_size), []).append(size)
        low = {way: f"a lower {way}" for way in ways}
        if "--upscale" in ways and (scale := self._largest_upscale(ways["--upscale"])):
            low["--upscale"] = f"--upscale {scale:g}"
        who = "this image" if len(names) == 1 else f"{len(names)} of {len(self.sizes)} images"
        place = "GPU memory" if "device" in lacking.values() else "memory"
        return f"{place} does not suffice for {who}: {listed(names, 100)}; take {' and '.join(low.values())}, or leave these images out"

    def _largest_upscale(self, sizes: Collection[Sides]) -> float | None:
        """The largest --upscale below the one asked for that fits images of `sizes`, by halves from 64 to 1 and by tenths below."""
        steps = [number / 2 for number in range(128, 1, -1)] + [number / 10 for number in range(9, 0, -1)]
        shortest = min(map(min, sizes))
        lower = (scale for scale in steps if scale < self.upscale and round(scale * shortest))
        return next((scale for scale in lower if not any(self._lacking(self._peaks(size, scale)) for size in set(sizes))), None)


def gigabytes(size: float) -> str:
    """`1.2 GB`, `340 GB`."""
    return f"{size / 1e9:.{0 if size >= 1e10 else 1 if size >= 1e8 else 2}f} GB"


def by_size(size: Sequence[int]) -> str:
    """`600 × 400`."""
    return f"{size[0]:,} × {size[1]:,}"


def what_to_lower(work: Work, parts: Mapping[str, float], native_size: int) -> str:
    """The flag that has the largest part of an image's memory in hand."""
    largest_part = max(parts, key=parts.__getitem__)
    if largest_part == NETWORK:
        return "--batch_size" if work.together > 1 else "--tile_size"
    if largest_part == AUTOENCODER:
        return "--vae_tile_size"
    if largest_part in (RESULTS, LATENTS) and work.rounds * work.together > 1:
        return "--num_candidates or --sample_times"
    return "--process_size" if work.is_enlarged_far(native_size) else "--upscale"
