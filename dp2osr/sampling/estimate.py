"""What sampling will take, before its first step: passes of the network, memory, time.

Memory is arithmetic: the images' and latents' own sizes, how often the code holds them at once, and what a network holds in a pass by
`dp2osr/backbones/footprint.py`. Time is measured, by one pass over one tile. Nothing of an image's size is allocated here.
"""

import io
import math
import resource
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

from dp2osr.backbones.footprint import decoder_numbers, encoder_numbers
from dp2osr.backbones.tiles import samples_together
from dp2osr.data.images import tensor_to_pil
from dp2osr.device import KEPT_BYTES
from dp2osr.errors import UserError, listed
from dp2osr.sampling.colour import ALIGN
from dp2osr.sampling.decode import decoded_together
from dp2osr.sampling.resize import image_sizes, round_to_8_bits

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
LONG = 600  # seconds from which on a warning is due
NETWORK, AUTOENCODER, CONTROL, LATENTS = "network on a tile", "autoencoder on a tile", "control image", "latents"
IMAGES, COLOUR, RESULTS, FILES, INPUT = "decoded images", "colour fix, rounding", "results", "files", "input"


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

    def is_enlarged_far(self, native_size):
        """Whether far more is worked on than was asked for: a side is below the model's, and the other is long."""
        return 4 * math.prod(self.asked) <= math.prod(self.content) > 4 * native_size**2


def work_of(backbone, settings, size_lr, upscale, count, batch_size):
    """The `Work` of `count` samples of an LR image of `size_lr`, with the arithmetic of sampling and decoding themselves.

    Raises:
        UserError: no pixel would be left.
    """
    asked, content, padded = image_sizes(size_lr, upscale, backbone.native_size, backbone.size_multiple)
    latent = (backbone.latent_channels, *(side // backbone.vae_scale for side in reversed(padded)))
    (tops, rows), (lefts, columns) = (settings.tiling.cut(side) for side in latent[1:])
    together = min(count, samples_together(backbone, settings.tiling, batch_size, latent))
    (decode_tops, height), (decode_lefts, width) = (backbone.vae_tiling.cut(side) for side in latent[1:])
    return Work(
        given=tuple(size_lr), asked=asked, content=content, padded=padded, latent=latent,
        tile=(rows, columns), tiles=len(tops) * len(lefts), together=together, rounds=-(-count // together),
        decode_tile=(height, width), decode_tiles=len(decode_tops) * len(decode_lefts),
        decoded=min(count, decoded_together(backbone, content)),
    )  # fmt: skip


def passes(backbone, settings, size_lr, upscale, count, batch_size):
    """How often sampling `count` samples of an LR image of `size_lr` (width, height) calls its `progress`."""
    work = work_of(backbone, settings, size_lr, upscale, count, batch_size)
    return work.rounds * work.tiles * len(backbone.sampling_schedule(settings, work.latent).timesteps)


# -- memory --


def peak_bytes(backbone, settings, size_lr, upscale, count, batch_size, save_images=True, controlnet=None, align_method="wavelet"):
    """What is held when most is held, beside the models: {"device": {part: bytes}, "host": {part: bytes}}; on a CPU all on the host.

    Args:
        save_images: whether the samples are decoded at all.
        controlnet: the one that steers; by default one as `new_controlnet` makes it.
    """
    work = work_of(backbone, settings, size_lr, upscale, count, batch_size)
    separate = torch.device(backbone.device).type != "cpu"
    moments = [sampling_moment, *([decoding_moment, colour_moment, writing_moment] if save_images else [])]
    if backbone.encodes_control:
        moments.insert(0, encoding_moment)
    peaks = {"device": {}, "host": {}}
    for moment in moments:
        device, host = moment(work, backbone, settings, count, separate, controlnet=controlnet, align_method=align_method)
        if not separate:
            kept = HEAP if work.decoded * RGB * math.prod(work.padded) < KEPT_BYTES else 1
            host, device = {part: kept * size for part, size in (Counter(host) + Counter(device)).items()}, {}
        for place, parts in (("device", device), ("host", host)):
            if total(parts) > total(peaks[place]):
                peaks[place] = dict(parts)
    return peaks


def total(parts):
    """Bytes of all parts."""
    return sum(parts.values())


def encoding_moment(work, backbone, settings, count, separate, **_):
    """The control image is encoded: ({part: bytes} on the device, {part: bytes} on the host)."""
    pixels = math.prod(work.padded)
    tile = math.prod(work.decode_tile) * backbone.vae_scale**2
    copies = 2 if separate else 1  # of the image, on the device and scaled
    autoencoder = tile * encoder_numbers(backbone.vae.config) * FLOAT * (1 if separate else CPU_CONVOLUTION)
    return {CONTROL: copies * RGB * pixels, AUTOENCODER: autoencoder}, {CONTROL: RGB * pixels}


def sampling_moment(work, backbone, settings, count, separate, controlnet=None, **_):
    """A pass of the network; as in `encoding_moment`."""
    pixels, numbers = math.prod(work.padded), math.prod(work.latent)
    width = backbone.dtype.itemsize
    batch = work.together * backbone.passes_a_step(settings.guidance_scale)
    held = 8 * FLOAT * numbers * work.together  # noisy ones, predictions, their sum over tiles, what a scheduler makes of them
    control = 3 * width * pixels if not backbone.encodes_control and (separate or width != FLOAT) else 0
    controlnet = controlnet or published_controlnet()
    network = backbone.pass_bytes(controlnet, *work.tile, batch) * (1 if separate else CPU_CONVOLUTION)
    host = {CONTROL: RGB * pixels, LATENTS: 2 * 2 * numbers * count}  # float16, twice while they are joined
    return {CONTROL: control, LATENTS: held, NETWORK: network}, host


def decoding_moment(work, backbone, settings, count, separate, **_):
    """The autoencoder on a tile; as in `encoding_moment`."""
    pixels = math.prod(work.padded)
    tile = math.prod(work.decode_tile) * backbone.vae_scale**2
    autoencoder = work.decoded * tile * decoder_numbers(backbone.vae.config) * FLOAT * (1 if separate else CPU_CONVOLUTION)
    images = work.decoded * RGB * pixels + FLOAT * pixels  # and a weight a pixel
    device = {IMAGES: images, AUTOENCODER: autoencoder, **({CONTROL: RGB * pixels} if separate else {})}
    return device, {CONTROL: RGB * pixels, **earlier_results(work, count)}


def colour_moment(work, backbone, settings, count, separate, align_method="wavelet", **_):
    """The colour fix of decoded images; as in `encoding_moment`."""
    pixels, asked = math.prod(work.padded), math.prod(work.asked)
    uncut = pixels if work.content == work.asked else asked  # a cut image keeps its padding in memory
    copies = {"wavelet": 3, "adain": 1, "nofix": 1}[align_method]
    colour = copies * RGB + (CPU_COLOUR if align_method == "wavelet" and not separate else 0)
    device = {IMAGES: work.decoded * RGB * uncut, COLOUR: work.decoded * colour * asked}
    return {**device, **({CONTROL: RGB * uncut} if separate else {})}, {CONTROL: RGB * uncut, **earlier_results(work, count)}


def writing_moment(work, backbone, settings, count, separate, **_):
    """A result becomes a file; as in `encoding_moment`."""
    asked = math.prod(work.asked)
    return {}, {**results(work, count), FILES: (2 * RGB + 3 + PIL_PIXEL) * asked}


def results(work, count):
    """All samples as images, latents and the input."""
    images = {RESULTS: count * RGB * math.prod(work.asked)}
    return {**images, LATENTS: 2 * math.prod(work.latent) * count, INPUT: 2 * PIL_PIXEL * math.prod(work.given)}


def earlier_results(work, count):
    """`results` while the samples are decoded part by part; where all are one part there are none yet."""
    return results(work, count if count > work.decoded else 0)


def published_controlnet():
    """What `pass_bytes` asks of a ControlNet, as the published ones have it."""
    return SimpleNamespace(config=SimpleNamespace(conditioning_embedding_out_channels=(16,), num_layers=4, num_single_layers=0))


def free_bytes(device, root="/"):
    """Bytes that a program may still take on a device; on a CPU the least of the machine's, its control groups' and the process's own.

    Args:
        root: where `/proc` and `/sys` are.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    free = [psutil.virtual_memory().available, *control_group_bytes(root)]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        free.append(most - psutil.Process().memory_info().vms)
    return max(0, min(free))


def control_group_bytes(root="/"):
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


def read_lines(path):
    """Lines of a small file, none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


# -- time --


@dataclass(frozen=True)
class Speed:
    """Seconds on this machine."""

    latent_pixel: float  # a sample's, in a pass
    decoded_pixel: float
    finished_pixel: float  # colour fix and file

    def seconds(self, work, steps, count, encodes_control, save_images=True):
        """Of `count` samples of one image."""
        seconds = steps * work.tiles * math.prod(work.tile) * count * self.latent_pixel
        decoded = count if save_images else 0
        coded = (decoded + (0.6 if encodes_control else 0)) * work.decode_tiles  # an encoder takes a little more than half of a decoder
        seconds += coded * math.prod(work.decode_tile) * (math.prod(work.padded) / math.prod(work.latent[1:])) * self.decoded_pixel
        return seconds + decoded * math.prod(work.asked) * self.finished_pixel


def seconds_of(function):
    """Of one call."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def probe(small, large, ratio, patience=1.0):
    """Seconds of `large()` after `small()`, which is 1/`ratio` of it and warms up; from the latter alone where it took long already."""
    first = seconds_of(small)
    return first * ratio if first > patience else seconds_of(large)


@torch.no_grad()
def seconds_a_pass(backbone, controlnet, settings, tile, together):
    """Of one `predict` for `together` samples on a tile of (h, w) latents, after a warm-up."""
    generator = torch.Generator().manual_seed(0)
    side = [length * backbone.vae_scale for length in tile]
    prompt = backbone.encode_prompts([""])
    control = torch.rand((1, 3, *side), generator=generator)
    if backbone.encodes_control:  # the packed latents' shape is all that counts
        control = torch.rand((1, math.prod(tile) // 4, 4 * backbone.latent_channels), generator=generator)
    control = control.to(backbone.device, backbone.dtype)
    scheduled = backbone.sampling_schedule(settings, (backbone.latent_channels, *tile)).timesteps[0]
    scheduled = scheduled.to(backbone.dtype) / 1000 if backbone.encodes_control else scheduled

    def call(count):
        count *= backbone.passes_a_step(settings.guidance_scale)
        noisy = torch.randn((count, backbone.latent_channels, *tile), generator=generator).to(backbone.device, backbone.dtype)
        backbone.predict([controlnet], noisy, scheduled, prompt, control, settings.control_scale)

    return probe(partial(call, 1), partial(call, together), together)


@torch.no_grad()
def measure_speed(backbone, controlnet, settings, work, align_method):
    """The `Speed` by one pass over a tile of `work`, the decoding of a small image and its colour fix."""
    network = seconds_a_pass(backbone, controlnet, settings, work.tile, work.together)
    side = min(backbone.native_size // backbone.vae_scale, *work.decode_tile)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((1, backbone.latent_channels, side, side), generator=generator)
    half = latents[..., : max(1, side // 2), : max(1, side // 2)]
    decoding = probe(lambda: backbone.decode_latents(half), lambda: backbone.decode_latents(latents), 4)
    image = torch.rand((1, 3, 2 * side * backbone.vae_scale, 2 * side * backbone.vae_scale), generator=generator).to(backbone.device)

    def finish(image):
        image = round_to_8_bits(ALIGN[align_method](image, image)).cpu()
        tensor_to_pil(image[0]).save(io.BytesIO(), format="PNG")

    finishing = probe(lambda: finish(image[..., ::2, ::2]), lambda: finish(image), 4)
    return Speed(
        network / (work.together * math.prod(work.tile)),
        decoding / (side * backbone.vae_scale) ** 2,
        finishing / math.prod(image.shape[2:]),
    )


def in_words(seconds):
    """`12 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = max(1, round(seconds))
    units = [(seconds // 3600, "h"), (seconds % 3600 // 60, "min"), (seconds % 60, "s")]
    first = next(index for index, (number, _) in enumerate(units) if number)
    return " ".join(f"{number} {unit}" for number, unit in units[first : first + 2] if number)


# -- both, for a folder of images --


def check_cost(
    sizes, backbone, controlnet, settings, upscale, count, batch_size, align_method="wavelet", save_images=True, processes=1, free=None
):
    """The lines to print before the first step: what it will take, and what should be known of it.

    Args:
        sizes: {image name: (width, height)} of the LR images that this process will sample.
        processes: that share this machine's memory.
        free: {"device": bytes, "host": bytes}; by default `free_bytes`.

    Raises:
        UserError: memory does not suffice; all images for which it does not are named, with what to lower.
    """
    if not sizes:
        return []
    free = free or {"host": free_bytes("cpu") // processes, "device": free_bytes(backbone.device)}
    options = {"save_images": save_images, "controlnet": controlnet, "align_method": align_method}
    need = {size: peak_bytes(backbone, settings, size, upscale, count, batch_size, **options) for size in set(map(tuple, sizes.values()))}
    works = {size: work_of(backbone, settings, size, upscale, count, batch_size) for size in need}
    lacking = {size: place for size, peaks in need.items() for place, parts in peaks.items() if total(parts) > free[place]}
    if lacking:

        def fits(some, scale):
            peaks = (peak_bytes(backbone, settings, size, scale, count, batch_size, **options) for size in some)
            return all(total(parts) <= free[place] for each in peaks for place, parts in each.items())

        raise UserError(refusal(sizes, works, need, lacking, free, backbone.native_size, upscale, fits))
    slowest = max(works.values(), key=lambda work: work.tiles * work.rounds * math.prod(work.tile))
    speed = measure_speed(backbone, controlnet, settings, slowest, align_method)
    seconds = 0
    for size, images in Counter(map(tuple, sizes.values())).items():
        steps = len(backbone.sampling_schedule(settings, works[size].latent).timesteps)
        seconds += images * speed.seconds(works[size], steps, count, backbone.encodes_control, save_images)
    lines = [f"{summary(sizes, seconds)}, {memory_line(need.values(), free)}"]
    lines += warnings_of(sizes, works, backbone.native_size)
    if seconds > LONG:
        lines.append(f"warning: this takes about {in_words(seconds)}; fewer --num_inference_steps or a lower --upscale take less")
    return lines


def summary(sizes, seconds):
    """`26 images: about 3 min 20 s on this machine`."""
    return f"{len(sizes):,} image{'s' if len(sizes) > 1 else ''}: about {in_words(seconds)} on this machine"


def memory_line(needs, free):
    """`1.2 GB of 15 GB free`, and the same of a GPU."""
    most = {place: max(total(peaks[place]) for peaks in needs) for place in free}
    named = {"host": "free", "device": "free on the GPU"}
    return ", ".join(f"{gigabytes(most[place])} of {gigabytes(free[place])} {named[place]}" for place in named if most[place])


def gigabytes(size):
    """`1.2 GB`, `340 GB`."""
    return f"{size / 1e9:.{0 if size >= 1e10 else 1 if size >= 1e8 else 2}f} GB"


def by_size(size):
    """`600 × 400`."""
    return f"{size[0]:,} × {size[1]:,}"


def refusal(sizes, works, need, lacking, free, native_size, upscale, fits):
    """One line that names all images for which memory does not suffice, and what to lower."""
    names, ways = [], {}
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


def what_to_lower(work, parts, native_size):
    """The flag that has the largest part of an image's memory in hand."""
    largest_part = max(parts, key=parts.get)
    if largest_part == NETWORK:
        return "--batch_size" if work.together > 1 else "--tile_size"
    if largest_part == AUTOENCODER:
        return "--vae_tile_size"
    if largest_part in (RESULTS, LATENTS) and work.rounds * work.together > 1:
        return "--num_candidates or --sample_times"
    return "--process_size" if work.is_enlarged_far(native_size) else "--upscale"


def largest(fits, upscale, sizes):
    """The largest --upscale below `upscale` that fits images of `sizes`, by halves from 64 to 1 and by tenths below; None if none."""
    steps = [number / 2 for number in range(math.ceil(2 * min(upscale, 64)) - 1, 1, -1)] + [number / 10 for number in range(9, 0, -1)]
    shortest = min(map(min, sizes))
    return next((scale for scale in steps if scale < upscale and round(scale * shortest) and fits(scale)), None)


def warnings_of(sizes, works, native_size):
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
