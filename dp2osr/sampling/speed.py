"""How long a pass of a network takes here, found by a few passes on little."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from dp2osr.backbones.base import Backbone, Prompt
from dp2osr.backbones.forecast import FORECAST_THIRD, forecasting
from dp2osr.data.images import tensor_to_pil
from dp2osr.device import seconds_of
from dp2osr.sampling.colour import ALIGN
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.memory import Work
from dp2osr.sampling.resize import round_to_8_bits

PassInputs = tuple[torch.Tensor, torch.Tensor, Prompt, torch.Tensor]  # noisy latents, time, prompt, control


@dataclass(frozen=True)
class Speed:
    """Seconds on this machine."""

    latent_pixel: float  # a sample's, in a pass
    decoded_pixel: float
    finished_pixel: float  # colour fix and file
    reused: float = 1.0  # of a pass's seconds, where what steers it is that of an earlier step
    forecast: float = 1.0  # where the network's blocks are forecast

    def seconds(self, work: Work, steps: float, encodes_control: bool, save_images: bool) -> float:
        """Of the samples of one image, whose steps are as much work as `steps` of the dearest ones, all samples together."""
        seconds = steps * work.tiles * math.prod(work.tile) * self.latent_pixel
        decoded = work.count if save_images else 0
        coded = (decoded + (0.6 if encodes_control else 0)) * work.decode_tiles  # an encoder takes a little more than half of a decoder
        seconds += coded * math.prod(work.decode_tile) * (math.prod(work.padded) / math.prod(work.latent[1:])) * self.decoded_pixel
        return seconds + decoded * math.prod(work.asked) * self.finished_pixel


def probe(small: Callable[[], object], large: Callable[[], object], ratio: float, patience: float = 1.0) -> float:
    """Seconds of `large()` after `small()`, which is 1/`ratio` of it and warms up; from the latter alone where it took long already."""
    first = seconds_of(small)
    return first * ratio if first > patience else seconds_of(large)


def inputs_of_a_pass(backbone: Backbone, settings: LoopSettings, tile: tuple[int, int]) -> Callable[[int], PassInputs]:
    """A function of how many samples: what a pass on a tile of (h, w) latents takes."""
    generator = torch.Generator().manual_seed(0)
    side = [length * backbone.vae_scale for length in tile]
    prompt = backbone.blank_prompt()
    control = torch.rand((1, 3, *side), generator=generator)
    if backbone.encodes_control:  # the packed latents' shape is all that counts
        control = torch.rand((1, math.prod(tile) // 4, 4 * backbone.latent_channels), generator=generator)
    control = control.to(backbone.device, backbone.dtype)
    time = backbone.network_time(backbone.sampling_schedule(settings, (backbone.latent_channels, *tile)).timesteps[0])

    def inputs(count: int) -> PassInputs:
        count *= backbone.passes_a_step(settings.guidance_scale)
        noisy = torch.randn((count, backbone.latent_channels, *tile), generator=generator).to(backbone.device, backbone.dtype)
        return noisy, time, prompt, control

    return inputs


def share_of_reuse(backbone: Backbone, controlnet: torch.nn.Module, settings: LoopSettings, inputs: PassInputs) -> float:
    """Seconds of a pass that reuses what steers it over those of a whole one, for one sample; the networks are warm."""
    noisy, time, prompt, _ = inputs
    features = backbone.steer(controlnet, *inputs, settings.control_scale)
    whole = seconds_of(lambda: backbone.predict([controlnet], *inputs, settings.control_scale))
    return min(1.0, seconds_of(lambda: backbone.denoise(noisy, time, prompt, features)) / whole)


def share_of_forecast(backbone: Backbone, predict: Callable[[], object]) -> float:
    """Seconds of a pass, `predict`, whose blocks are forecast over those of a whole one; the networks are warm."""
    with forecasting(backbone.denoiser, *FORECAST_THIRD):
        whole, _, forecast = (seconds_of(predict) for _ in range(3))
    return min(1.0, forecast / whole)


@torch.no_grad()
def measure_speed(backbone: Backbone, controlnet: torch.nn.Module, settings: LoopSettings, work: Work, align_method: str) -> Speed:
    """The `Speed` by one pass over a tile of `work`, the decoding of a small image and its colour fix."""
    inputs = inputs_of_a_pass(backbone, settings, work.tile)

    def predict(count: int) -> None:
        backbone.predict([controlnet], *inputs(count), control_scale=settings.control_scale)

    network = probe(partial(predict, 1), partial(predict, work.together), work.together)
    reused = share_of_reuse(backbone, controlnet, settings, inputs(1)) if settings.cache_interval > 1 else 1.0
    forecast = share_of_forecast(backbone, partial(predict, 1)) if settings.taylorseer_interval > 1 else 1.0
    side = min(backbone.native_size // backbone.vae_scale, *work.decode_tile)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((1, backbone.latent_channels, side, side), generator=generator)
    half = latents[..., : max(1, side // 2), : max(1, side // 2)]
    decoding = probe(lambda: backbone.decode_latents(half), lambda: backbone.decode_latents(latents), 4)
    image = torch.rand((1, 3, 2 * side * backbone.vae_scale, 2 * side * backbone.vae_scale), generator=generator).to(backbone.device)

    def finish(image: torch.Tensor) -> None:
        image = round_to_8_bits(ALIGN[align_method](image, image)).cpu()
        tensor_to_pil(image[0]).save(io.BytesIO(), format="PNG")

    finishing = probe(lambda: finish(image[..., ::2, ::2]), lambda: finish(image), 4)
    return Speed(
        network / (work.together * math.prod(work.tile)),
        decoding / (side * backbone.vae_scale) ** 2,
        finishing / math.prod(image.shape[2:]),
        reused,
        forecast,
    )


def in_words(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = max(1, round(seconds))
    units = [(seconds // 3600, "h"), (seconds % 3600 // 60, "min"), (seconds % 60, "s")]
    first = next(index for index, (number, _) in enumerate(units) if number)
    return " ".join(f"{number} {unit}" for number, unit in units[first : first + 2] if number)
