"""How much memory the restoration of an image takes at its peak, by arithmetic; and how much is free."""

import math
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dp2osr.backbones.base import Backbone
from dp2osr.backbones.footprint import decoder_numbers, encoder_numbers
from dp2osr.backbones.tiles import samples_together
from dp2osr.backbones.trajectory import trajectories
from dp2osr.device import KEPT_BYTES, free_device_bytes, has_own_memory
from dp2osr.sampling.decode import decoded_together
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.resize import image_sizes

FLOAT = 4  # bytes


RGB = 3 * FLOAT  # bytes of a pixel as float32


PIL_PIXEL = 4  # bytes of an RGB pixel in Pillow


CONTROL_GROUPS = {  # name of the hierarchy, empty for version 2: files of the limit and of what is taken, and the cache of files therein
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


CPU_CONVOLUTION = 1.5  # oneDNN lays inputs and outputs of a convolution out anew: memory over that of the tensors


CPU_COLOUR = 64  # bytes a pixel: the wavelet's convolution of three channels is laid out for sixteen


HEAP = 1.6  # memory over that of what is alive, where the allocator keeps all that was freed (`device.keep_freed_memory`)


NETWORK, AUTOENCODER, CONTROL, LATENTS = "network on a tile", "autoencoder on a tile", "control image", "latents"


IMAGES, COLOUR, RESULTS, FILES, INPUT = "decoded images", "colour fix, rounding", "results", "files", "input"


Parts = dict[str, float]  # bytes of each
Peaks = dict[str, Parts]  # of "device" and "host"


@dataclass(frozen=True)
class Work:
    """The sizes that one LR image takes on its way; images are (width, height), latents (C, h, w)."""

    given: tuple[int, int]
    asked: tuple[int, int]
    content: tuple[int, int]
    padded: tuple[int, int]
    latent: tuple[int, int, int]
    tile: tuple[int, int]  # (h, w) of a tile of latents
    tiles: int
    together: int  # samples that are denoised at once
    rounds: int  # of so many samples
    decode_tile: tuple[int, int]  # (h, w) of latents that are decoded at once
    decode_tiles: int
    decoded: int  # samples that are decoded at once

    def is_enlarged_far(self, native_size: int) -> bool:
        """Whether far more is worked on than was asked for: a side is below the model's, and the other is long."""
        return 4 * math.prod(self.asked) <= math.prod(self.content) > 4 * native_size**2


def work_of(backbone: Backbone, settings: LoopSettings, size_lr: Sequence[int], upscale: float, count: int, batch_size: int) -> Work:
    """The `Work` of `count` samples of an LR image of `size_lr`, with the arithmetic of sampling and decoding themselves.

    Raises:
        UserError: no pixel would be left.
    """
    asked, content, padded = image_sizes(size_lr, upscale, backbone.native_size, backbone.size_multiple)
    latent = backbone.latent_channels, padded[1] // backbone.vae_scale, padded[0] // backbone.vae_scale
    (tops, rows), (lefts, columns) = (settings.tiling.cut(side) for side in latent[1:])
    together = min(count, samples_together(backbone, settings.tiling, batch_size, latent))
    (decode_tops, height), (decode_lefts, width) = (backbone.vae_tiling.cut(side) for side in latent[1:])
    return Work(
        given=(size_lr[0], size_lr[1]), asked=asked, content=content, padded=padded, latent=latent,
        tile=(rows, columns), tiles=len(tops) * len(lefts), together=together, rounds=-(-count // together),
        decode_tile=(height, width), decode_tiles=len(decode_tops) * len(decode_lefts),
        decoded=min(count, decoded_together(backbone, content)),
    )  # fmt: skip


def passes(backbone: Backbone, settings: LoopSettings, size_lr: Sequence[int], upscale: float, count: int, batch_size: int) -> int:
    """How often sampling `count` samples of an LR image of `size_lr` (width, height) calls its `progress`."""
    work = work_of(backbone, settings, size_lr, upscale, count, batch_size)
    trunk, own = trajectories(backbone, settings, work.latent)
    return work.tiles * (len(trunk) + work.rounds * len(own))


def peak_bytes(
    backbone: Backbone, settings: LoopSettings, size_lr: Sequence[int], upscale: float, count: int, batch_size: int,
    save_images: bool = True, controlnet: torch.nn.Module | None = None, align_method: str = "wavelet",
) -> Peaks:  # fmt: skip
    """What is held when most is held, beside the models: {"device": {part: bytes}, "host": {part: bytes}}; on a CPU all on the host.

    Args:
        save_images: whether the samples are decoded at all.
        controlnet: the one that steers; by default one as `new_controlnet` makes it.
    """
    work = work_of(backbone, settings, size_lr, upscale, count, batch_size)
    separate = has_own_memory(backbone.device)
    moments: list[Callable[..., Any]] = [sampling_moment]
    if save_images:
        moments += [decoding_moment, colour_moment, writing_moment]
    if backbone.encodes_control:
        moments.insert(0, encoding_moment)
    peaks: Peaks = {"device": {}, "host": {}}
    for moment in moments:
        device, host = moment(work, backbone, settings, count, separate, controlnet=controlnet, align_method=align_method)
        if not separate:
            kept = HEAP if work.decoded * RGB * math.prod(work.padded) < KEPT_BYTES else 1
            host, device = {part: kept * size for part, size in (Counter(host) + Counter(device)).items()}, {}
        for place, parts in (("device", device), ("host", host)):
            if total(parts) > total(peaks[place]):
                peaks[place] = dict(parts)
    return peaks


def total(parts: Mapping[str, float]) -> float:
    """Bytes of all parts."""
    return sum(parts.values())


def encoding_moment(work: Work, backbone: Backbone, settings: LoopSettings, count: int, separate: bool, **_: object) -> tuple[Parts, Parts]:
    """The control image is encoded: ({part: bytes} on the device, {part: bytes} on the host)."""
    pixels = math.prod(work.padded)
    tile = math.prod(work.decode_tile) * backbone.vae_scale**2
    copies = 2 if separate else 1  # of the image, on the device and scaled
    autoencoder = tile * encoder_numbers(backbone.vae.config) * FLOAT * (1 if separate else CPU_CONVOLUTION)
    return {CONTROL: copies * RGB * pixels, AUTOENCODER: autoencoder}, {CONTROL: RGB * pixels}


def sampling_moment(
    work: Work,
    backbone: Backbone,
    settings: LoopSettings,
    count: int,
    separate: bool,
    controlnet: torch.nn.Module | None = None,
    **_: object,
) -> tuple[Parts, Parts]:
    """A pass of the network; as in `encoding_moment`."""
    pixels, numbers = math.prod(work.padded), math.prod(work.latent)
    width = backbone.dtype.itemsize
    batch = work.together * backbone.passes_a_step(settings.guidance_scale)
    held = 8 * FLOAT * numbers * work.together  # noisy ones, predictions, their sum over tiles, what a scheduler makes of them
    control = 3 * width * pixels if not backbone.encodes_control and (separate or width != FLOAT) else 0
    controlnet = controlnet or published_controlnet()
    network = backbone.pass_bytes(controlnet, *work.tile, batch, settings.taylorseer_interval > 1) * (1 if separate else CPU_CONVOLUTION)
    host: Parts = {CONTROL: RGB * pixels, LATENTS: 2 * 2 * numbers * count}  # float16, twice while they are joined
    return {CONTROL: control, LATENTS: held, NETWORK: network}, host


def decoding_moment(work: Work, backbone: Backbone, settings: LoopSettings, count: int, separate: bool, **_: object) -> tuple[Parts, Parts]:
    """The autoencoder on a tile; as in `encoding_moment`."""
    pixels = math.prod(work.padded)
    tile = math.prod(work.decode_tile) * backbone.vae_scale**2
    autoencoder = work.decoded * tile * decoder_numbers(backbone.vae.config) * FLOAT * (1 if separate else CPU_CONVOLUTION)
    images = work.decoded * RGB * pixels + FLOAT * pixels  # and a weight a pixel
    device = {IMAGES: images, AUTOENCODER: autoencoder, **({CONTROL: RGB * pixels} if separate else {})}
    return device, {CONTROL: RGB * pixels, **earlier_results(work, count)}


def colour_moment(
    work: Work, backbone: Backbone, settings: LoopSettings, count: int, separate: bool, align_method: str = "wavelet", **_: object
) -> tuple[Parts, Parts]:
    """The colour fix of decoded images; as in `encoding_moment`."""
    pixels, asked = math.prod(work.padded), math.prod(work.asked)
    uncut = pixels if work.content == work.asked else asked  # a cut image keeps its padding in memory
    copies = {"wavelet": 3, "adain": 1, "nofix": 1}[align_method]
    colour = copies * RGB + (CPU_COLOUR if align_method == "wavelet" and not separate else 0)
    device = {IMAGES: work.decoded * RGB * uncut, COLOUR: work.decoded * colour * asked}
    return {**device, **({CONTROL: RGB * uncut} if separate else {})}, {CONTROL: RGB * uncut, **earlier_results(work, count)}


def writing_moment(work: Work, backbone: Backbone, settings: LoopSettings, count: int, separate: bool, **_: object) -> tuple[Parts, Parts]:
    """A result becomes a file; as in `encoding_moment`."""
    asked = math.prod(work.asked)
    return {}, {**results(work, count), FILES: (2 * RGB + 3 + PIL_PIXEL) * asked}


def results(work: Work, count: int) -> Parts:
    """All samples as images, latents and the input."""
    images = {RESULTS: count * RGB * math.prod(work.asked)}
    return {**images, LATENTS: 2 * math.prod(work.latent) * count, INPUT: 2 * PIL_PIXEL * math.prod(work.given)}


def earlier_results(work: Work, count: int) -> Parts:
    """`results` while the samples are decoded part by part; where all are one part there are none yet."""
    return results(work, count if count > work.decoded else 0)


def published_controlnet() -> SimpleNamespace:
    """What `pass_bytes` asks of a ControlNet, as the published ones have it."""
    return SimpleNamespace(config=SimpleNamespace(conditioning_embedding_out_channels=(16,), num_layers=4, num_single_layers=0))


def free_bytes(device: str | torch.device, root: str | Path = "/") -> int:
    """Bytes that a program may still take on a device; on a CPU the least of the machine's, its control groups' and the process's own.

    Args:
        root: where `/proc` and `/sys` are.
    """
    if has_own_memory(device):
        return free_device_bytes(device)
    import psutil

    free = [psutil.virtual_memory().available, *control_group_bytes(root)]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        free.append(most - psutil.Process().memory_info().vms)
    return max(0, min(free))


def control_group_bytes(root: str | Path = "/") -> Iterator[int]:
    """What is free by each memory limit of the control groups that this process is in, version 1 or 2."""
    for line in read_lines(Path(root, "proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in CONTROL_GROUPS:
            continue
        limit, usage, cache = CONTROL_GROUPS[kind]
        top = Path(root, "sys/fs/cgroup", kind)
        inner = top / path.lstrip("/")
        for folder in (each for each in (inner, *inner.parents) if each == top or top in each.parents):
            most, used = ("".join(read_lines(folder / name)) for name in (limit, usage))
            if most.isdigit() and used.isdigit():
                kept = dict(entry.split() for entry in read_lines(folder / "memory.stat")).get(cache, 0)
                yield int(most) - int(used) + int(kept)  # the cache of files is given back when memory is short


def read_lines(path: Path) -> list[str]:
    """Lines of a small file, none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
