"""How much memory the restoration of an image takes at its peak, by arithmetic; and how much is free."""

import math
import resource
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

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
CPU_CONVOLUTION = 1.5  # oneDNN lays inputs and outputs of a convolution out anew: memory over that of the tensors
CPU_COLOUR = 64  # bytes a pixel: the wavelet's convolution of three channels is laid out for sixteen
COPIES = {"wavelet": 3, "adain": 1, "nofix": 1}  # of the images, in their colour fix and rounding
HEAP = 1.6  # memory over that of what is alive, where the allocator keeps all that was freed (`device.keep_freed_memory`)
CONTROL_GROUPS = {  # name of the hierarchy, empty for version 2: files of the limit and of what is taken, and the cache of files therein
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
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
    count: int  # samples
    together: int  # of them that are denoised at once
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
        tile=(rows, columns), tiles=len(tops) * len(lefts), count=count, together=together, rounds=-(-count // together),
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
    held = Held(work, backbone)
    moments = [held.encoding()] if backbone.encodes_control else []
    moments.append(held.sampling(settings, controlnet or published_controlnet()))
    if save_images:
        moments += [held.decoding(), held.colour_fix(align_method), held.writing()]
    peaks: Peaks = {"device": {}, "host": {}}
    for device, host in moments:
        if not held.separate:
            kept = HEAP if work.decoded * held.padded < KEPT_BYTES else 1
            host, device = {part: kept * size for part, size in (Counter(host) + Counter(device)).items()}, {}
        for place, parts in (("device", device), ("host", host)):
            if total(parts) > total(peaks[place]):
                peaks[place] = dict(parts)
    return peaks


def total(parts: Mapping[str, float]) -> float:
    """Bytes of all parts."""
    return sum(parts.values())


class Held:
    """What is held in each moment of an image's work: ({part: bytes} on the device, {part: bytes} on the host).

    Attributes:
        separate: whether the device has memory of its own; convolution: memory over that of the tensors in its networks.
        asked, padded: bytes of a result, and of the image that is worked on.
    """

    def __init__(self, work: Work, backbone: Backbone) -> None:
        self.work, self.backbone, self.separate = work, backbone, has_own_memory(backbone.device)
        self.convolution = 1 if self.separate else CPU_CONVOLUTION
        self.asked, self.padded = RGB * math.prod(work.asked), RGB * math.prod(work.padded)

    def encoding(self) -> tuple[Parts, Parts]:
        """The control image is encoded."""
        copies = 2 if self.separate else 1  # of the image, on the device and scaled
        autoencoder = self._decode_tile() * encoder_numbers(self.backbone.vae.config) * FLOAT * self.convolution
        return {CONTROL: copies * self.padded, AUTOENCODER: autoencoder}, {CONTROL: self.padded}

    def sampling(self, settings: LoopSettings, controlnet: torch.nn.Module | SimpleNamespace) -> tuple[Parts, Parts]:
        """A pass of the network."""
        work, backbone, width = self.work, self.backbone, self.backbone.dtype.itemsize
        numbers = math.prod(work.latent)
        batch = work.together * backbone.passes_a_step(settings.guidance_scale)
        noisy = 8 * FLOAT * numbers * work.together  # noisy ones, predictions, their sum over tiles, what a scheduler makes of them
        copied = not backbone.encodes_control and (self.separate or width != FLOAT)
        control = 3 * width * math.prod(work.padded) if copied else 0
        network = backbone.pass_bytes(controlnet, *work.tile, batch, settings.taylorseer_interval > 1) * self.convolution
        host: Parts = {CONTROL: self.padded, LATENTS: 2 * 2 * numbers * work.count}  # float16, twice while they are joined
        return {CONTROL: control, LATENTS: noisy, NETWORK: network}, host

    def decoding(self) -> tuple[Parts, Parts]:
        """The autoencoder on a tile."""
        decoded = self.work.decoded
        autoencoder = decoded * self._decode_tile() * decoder_numbers(self.backbone.vae.config) * FLOAT * self.convolution
        images = decoded * self.padded + self.padded // 3  # and a weight a pixel
        return {IMAGES: images, AUTOENCODER: autoencoder, **self._on_device(self.padded)}, {CONTROL: self.padded, **self._earlier()}

    def colour_fix(self, align_method: str) -> tuple[Parts, Parts]:
        """The colour fix of decoded images."""
        work = self.work
        uncut = self.padded if work.content == work.asked else self.asked  # a cut image keeps its padding in memory
        laid_out = CPU_COLOUR * math.prod(work.asked) if align_method == "wavelet" and not self.separate else 0
        colour = work.decoded * (COPIES[align_method] * self.asked + laid_out)
        return {IMAGES: work.decoded * uncut, COLOUR: colour, **self._on_device(uncut)}, {CONTROL: uncut, **self._earlier()}

    def writing(self) -> tuple[Parts, Parts]:
        """A result becomes a file."""
        return {}, {**self._results(self.work.count), FILES: (2 * RGB + 3 + PIL_PIXEL) * math.prod(self.work.asked)}

    def _decode_tile(self) -> int:
        """Pixels of a tile of the autoencoder."""
        return math.prod(self.work.decode_tile) * self.backbone.vae_scale**2

    def _on_device(self, size: float) -> Parts:
        """The control image's copy, of so many bytes, on a device with memory of its own."""
        return {CONTROL: size} if self.separate else {}

    def _results(self, count: int) -> Parts:
        """So many samples as images and latents, and the input."""
        latents = 2 * math.prod(self.work.latent) * count
        return {RESULTS: count * self.asked, LATENTS: latents, INPUT: 2 * PIL_PIXEL * math.prod(self.work.given)}

    def _earlier(self) -> Parts:
        """`_results` while the samples are decoded part by part; where all are one part there are none yet."""
        return self._results(self.work.count if self.work.count > self.work.decoded else 0)


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
