"""What sampling will take, before its first step: passes of the network, memory, time.

Memory is arithmetic: the images' and latents' own sizes, how often the code holds them at once, and what a network holds in a pass by
`dp2osr/backbones/footprint.py`. Time is measured, by one pass over one tile. Nothing of an image's size is allocated here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from dp2osr.backbones.base import Backbone
from dp2osr.backbones.trajectory import trajectories, work_of_steps
from dp2osr.errors import UserError, listed
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.levers import check_tiles
from dp2osr.sampling.memory import AUTOENCODER, LATENTS, NETWORK, RESULTS, Peaks, Work, free_bytes, peak_bytes, total, work_of
from dp2osr.sampling.speed import in_words, measure_speed

if TYPE_CHECKING:
    import torch

LONG = 600  # seconds from which on a warning is due

Sides = tuple[int, ...]  # width, height


def check_cost(
    sizes: Mapping[str, Sequence[int]], backbone: Backbone, controlnet: torch.nn.Module, settings: LoopSettings, upscale: float, count: int,
    batch_size: int, align_method: str = "wavelet", save_images: bool = True, processes: int = 1, beside: int = 1,
    free: Mapping[str, int] | None = None,
) -> list[str]:  # fmt: skip
    """The lines to print before the first step: what it will take, and what should be known of it.

    Args:
        sizes: {image name: (width, height)} of the LR images.
        processes: that share the work; beside: that share this machine's memory.
        free: {"device": bytes, "host": bytes}; by default `free_bytes`.

    Raises:
        UserError: memory does not suffice; all images for which it does not are named, with what to lower.
    """
    if not sizes:
        return []
    free = free or free_memory(backbone, beside)
    return cost_of(sizes, backbone, controlnet, settings, upscale, count, batch_size, align_method, save_images, processes, free)[1]


def cost_of(
    sizes: Mapping[str, Sequence[int]], backbone: Backbone, controlnet: torch.nn.Module, settings: LoopSettings, upscale: float, count: int,
    batch_size: int, align_method: str, save_images: bool = True, processes: int = 1, free: Mapping[str, int] | None = None,
) -> tuple[float, list[str]]:  # fmt: skip
    """(seconds, the lines of `check_cost`); arguments and errors as there."""
    free = free or free_memory(backbone)
    works, need = check_memory(sizes, backbone, controlnet, settings, upscale, count, batch_size, align_method, save_images, free)
    slowest = max(works.values(), key=lambda work: work.tiles * work.rounds * math.prod(work.tile))
    speed = measure_speed(backbone, controlnet, settings, slowest, align_method)
    seconds = 0.0
    for size, images in Counter(map(tuple, sizes.values())).items():
        dearest = backbone.passes_a_step(settings.guidance_scale)
        trunk, own = (
            work_of_steps(steps, dearest, speed.reused, speed.forecast) for steps in trajectories(backbone, settings, works[size].latent)
        )
        seconds += images * speed.seconds(works[size], trunk + count * own, count, backbone.encodes_control, save_images)
    seconds /= processes
    lines = [f"{summary(sizes, seconds, processes)}, {memory_line(need.values(), free)}"]
    lines += warnings_of(sizes, works, backbone.native_size)
    if seconds > LONG:
        lines.append(f"warning: this takes about {in_words(seconds)}; fewer --num_inference_steps or a lower --upscale take less")
    return seconds, lines


def free_memory(backbone: Backbone, beside: int = 1) -> dict[str, int]:
    """{"host": bytes, "device": bytes} that each of `beside` processes on this machine may still take."""
    return {"host": free_bytes("cpu") // beside, "device": free_bytes(backbone.device)}


def check_memory(
    sizes: Mapping[str, Sequence[int]], backbone: Backbone, controlnet: torch.nn.Module, settings: LoopSettings, upscale: float, count: int,
    batch_size: int, align_method: str, save_images: bool = True, free: Mapping[str, int] | None = None,
) -> tuple[dict[Sides, Work], dict[Sides, Peaks]]:  # fmt: skip
    """({size of an LR image: `Work`}, {the same: `Peaks`}); arguments and errors as `check_cost`. No network runs."""
    free = free or free_memory(backbone)
    options: dict[str, Any] = {"save_images": save_images, "controlnet": controlnet, "align_method": align_method}
    need = {size: peak_bytes(backbone, settings, size, upscale, count, batch_size, **options) for size in set(map(tuple, sizes.values()))}
    works = {size: work_of(backbone, settings, size, upscale, count, batch_size) for size in need}
    check_tiles(settings, [name for name, size in sizes.items() if works[tuple(size)].tiles > 1])
    lacking = {size: place for size, peaks in need.items() for place, parts in peaks.items() if total(parts) > free[place]}
    if lacking:

        def fits(some: Iterable[Sides], scale: float) -> bool:
            peaks = (peak_bytes(backbone, settings, size, scale, count, batch_size, **options) for size in some)
            return all(total(parts) <= free[place] for each in peaks for place, parts in each.items())

        raise UserError(refusal(sizes, works, need, lacking, free, backbone.native_size, upscale, fits))
    return works, need


def summary(sizes: Mapping[str, Sequence[int]], seconds: float, processes: int = 1) -> str:
    """`26 images: about 3 min 20 s on this machine`, or `with 8 processes as fast as this one`."""
    where = "on this machine" if processes == 1 else f"with {processes} processes as fast as this one"
    return f"{len(sizes):,} image{'s' if len(sizes) > 1 else ''}: about {in_words(seconds)} {where}"


def memory_line(needs: Collection[Peaks], free: Mapping[str, int]) -> str:
    """`1.2 GB of 15 GB free`, and the same of a GPU."""
    most = {place: max(total(peaks[place]) for peaks in needs) for place in free}
    named = {"host": "free", "device": "free on the GPU"}
    return ", ".join(f"{gigabytes(most[place])} of {gigabytes(free[place])} {named[place]}" for place in named if most[place])


def gigabytes(size: float) -> str:
    """`1.2 GB`, `340 GB`."""
    return f"{size / 1e9:.{0 if size >= 1e10 else 1 if size >= 1e8 else 2}f} GB"


def by_size(size: Sequence[int]) -> str:
    """`600 × 400`."""
    return f"{size[0]:,} × {size[1]:,}"


def refusal(
    sizes: Mapping[str, Sequence[int]], works: Mapping[Sides, Work], need: Mapping[Sides, Peaks], lacking: Mapping[Sides, str],
    free: Mapping[str, int], native_size: int, upscale: float, fits: Callable[[Iterable[Sides], float], bool],
) -> str:  # fmt: skip
    """One line that names all images for which memory does not suffice, and what to lower."""
    names: list[str] = []
    ways: dict[str, list[Sides]] = {}
    for name, size in sizes.items():
        size = tuple(size)
        if size not in lacking:
            continue
        work, place, parts = works[size], lacking[size], need[size][lacking[size]]
        names.append(f"{name} ({by_size(size)} → {by_size(work.padded)}: {gigabytes(total(parts))} of {gigabytes(free[place])} free)")
        ways.setdefault(what_to_lower(work, parts, native_size), []).append(size)
    low = {way: f"a lower {way}" for way in ways}
    if "--upscale" in ways and (scale := largest(partial(fits, set(ways["--upscale"])), upscale, ways["--upscale"])):
        low["--upscale"] = f"--upscale {scale:g}"
    who = "this image" if len(names) == 1 else f"{len(names)} of {len(sizes)} images"
    place = "GPU memory" if "device" in lacking.values() else "memory"
    return f"{place} does not suffice for {who}: {listed(names, 100)}; take {' and '.join(low.values())}, or leave these images out"


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


def largest(fits: Callable[[float], bool], upscale: float, sizes: Iterable[Sides]) -> float | None:
    """The largest --upscale below `upscale` that fits images of `sizes`, by halves from 64 to 1 and by tenths below; None if none."""
    steps = [number / 2 for number in range(math.ceil(2 * min(upscale, 64)) - 1, 1, -1)] + [number / 10 for number in range(9, 0, -1)]
    shortest = min(map(min, sizes))
    return next((scale for scale in steps if scale < upscale and round(scale * shortest) and fits(scale)), None)


def warnings_of(sizes: Mapping[str, Sequence[int]], works: Mapping[Sides, Work], native_size: int) -> Iterator[str]:
    """Lines on images that are worked on far larger than asked for, and on results that Pillow will not open."""
    far = [(name, works[tuple(size)]) for name, size in sizes.items() if works[tuple(size)].is_enlarged_far(native_size)]
    if far:
        shown = [f"{name} ({by_size(work.asked)} asked for, {by_size(work.padded)} worked on)" for name, work in far]
        rest = f"{listed(shown)}; a lower --process_size takes less"
        yield f"warning: a side below the model's {native_size} pixels is enlarged to it: {rest}"
    most = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else math.inf
    big = [f"{name} ({by_size(works[tuple(size)].asked)})" for name, size in sizes.items() if math.prod(works[tuple(size)].asked) > most]
    if big:
        yield (
            f"warning: results above {most / 1e6:.0f} million pixels are written, but programs that read with Pillow's limits refuse them, "
            f"scripts/evaluate.py among them: {listed(big)}"
        )
