"""Stable Diffusion 2 (and the tiny preset of its classes) with a `ControlNetModel`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dp2osr.backbones.denoising import sample_candidates
from dp2osr.backbones.footprint import unet_numbers
from dp2osr.backbones.loading import cast, check_finite, check_fit, check_latents, find_controlnet, load_denoiser, load_part, load_weights
from dp2osr.backbones.sd2_files import conditioning_channels, shape_of_config, shape_of_tensors
from dp2osr.backbones.sd2_unet import embed_time, embedded_control, steered, unet_decode, unet_encode
from dp2osr.backbones.tiles import cut_windows, decode_tiled, default_vae_tiling, encode_tiled
from dp2osr.backbones.tokens import tokenize
from dp2osr.errors import UserError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from dp2osr.backbones.base import Features, Loop, Prompt, Steering
    from dp2osr.backbones.loading import ControlNetFiles, ModelSource

CONVOLUTIONS = torch.channels_last  # memory layout of the UNet's and ControlNets' weights: their convolutions run faster in it

CONDITIONING_CHANNELS = (16, 32, 96, 256)  # of the published ControlNets' control embedding
PIXELS = "control pixels a latent"

SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
OF_THE_NOISE = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "rescale_betas_zero_snr")


class SD2Backbone:
    """AutoencoderKL, CLIP text encoder, UNet2DConditionModel and the training noise schedule, all frozen.

    Args:
        source: `ModelSource`.
        device, dtype: where and in which precision the frozen parts live; the VAE stays in fp32.
        parts: of "vae", "text", "denoiser" ("tokenizers": those of "text" alone); quantize: "int8" or "nf4", the denoiser is held so.

    Raises:
        UserError: a part is missing or broken.
    """

    kind = "sd2"
    default_scheduler, schedulers = "ddpm", SCHEDULERS
    published_sampling = {"num_inference_steps": 50, "guidance_scale": 3.5}  # of the paper's test code
    guidance = 1.0  # SD2 takes none in training
    encodes_control = False
    text_parts = ("text_encoder",)
    max_sequence_length: int | None = None  # CLIP's is what it is

    def __init__(self, source: ModelSource, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                 parts: Sequence[str] = ("vae", "text", "denoiser"), quantize: str | None = None) -> None:  # fmt: skip
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTokenizer

        self.source, self.device, self.dtype = source, torch.device(device), dtype
        self.noise_schedule = source.load(DDPMScheduler, "scheduler")
        vae_config = source.config(AutoencoderKL, "vae")
        unet_config = self.unet_config = source.config(UNet2DConditionModel, "unet")
        self.vae_scale = 2 ** (len(vae_config["block_out_channels"]) - 1)
        self.native_size = unet_config["sample_size"] * self.vae_scale
        self.size_multiple = self.vae_scale * 2 ** (len(unet_config["block_out_channels"]) - 1)
        self.latent_channels = unet_config["in_channels"]
        check_latents(source, vae_config, self.latent_channels)
        self.vae_tiling = default_vae_tiling(self.native_size, self.vae_scale)
        if "vae" in parts:
            self.vae = source.load(AutoencoderKL, "vae", torch_dtype=torch.float32).to(self.device).eval()
        if "text" in parts or "tokenizers" in parts:
            self.tokenizer = source.load(CLIPTokenizer, "tokenizer")
        if "text" in parts:
            self.load_text_encoders()
        if "denoiser" in parts:
            unet = load_denoiser(source, UNet2DConditionModel, "unet", self.device, dtype, quantize)
            self.unet = (unet if quantize else laid_out_on(unet, self.device)).eval()
        for name in ("vae", "unet"):
            if hasattr(self, name):
                getattr(self, name).requires_grad_(False)

    # -- images, prompts, control ------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] → (B, C, H/s, W/s) scaled latents, the posterior's mode."""
        images = (images.to(self.device, torch.float32) * 2).sub_(1)
        return encode_tiled(self.vae, images, self.vae_tiling) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) scaled latents → (B, 3, s·h, s·w) in [0, 1]."""
        latents = latents.to(self.device, torch.float32) / self.vae.config.scaling_factor
        return decode_tiled(self.vae, latents, self.vae_tiling).div_(2).add_(0.5).clamp_(0, 1)

    def embed_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Last hidden states of the text encoder, {"encoder_hidden_states": (B, length, D)}."""
        tokens = tokenize(self.tokenizer, prompts, self.tokenizer.model_max_length)
        return {"encoder_hidden_states": self.text_encoder(tokens.to(self.device))[0]}

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """`embed_prompts` of the frozen encoder."""
        return self.embed_prompts(prompts)

    def blank_prompt(self) -> dict[str, torch.Tensor]:
        """Zeros in the shape of one prompt's embedding: for a pass of the denoiser whose result nobody reads."""
        shape = (1, self.tokenizer.model_max_length, self.unet_config["cross_attention_dim"])
        return {"encoder_hidden_states": torch.zeros(shape, device=self.device, dtype=self.dtype)}

    def load_text_encoders(self) -> None:
        """The text encoder, frozen, on the device."""
        from transformers import CLIPTextModel

        encoder = self.source.load(CLIPTextModel, "text_encoder", dtype=self.dtype)
        self.text_encoder = encoder.to(self.device).eval().requires_grad_(False)

    def free_text_encoders(self) -> None:
        """Let go of the text encoder; `embed_prompts` has none afterwards."""
        del self.text_encoder

    def prepare_control(self, images: torch.Tensor) -> torch.Tensor:
        """The upsampled LR in [0, 1] is the control image as it is (the paper's C-SD2)."""
        return images.to(self.device, self.dtype)

    def cut_control(self, control: torch.Tensor, side: int, top: torch.Tensor, left: torch.Tensor, window: int) -> torch.Tensor:
        """The part of each control input, made of images of `side` latent pixels, that belongs to a square window of its latents."""
        scale = control.shape[-1] // side
        return cut_windows(control, scale * top, scale * left, scale * window)

    # -- training ----------------------------------------------------------------------------------------------------

    def draw_timesteps(
        self, count: int, generator: torch.Generator, share: tuple[float, float] = (0.0, 1.0), **_of_other_kinds: Any
    ) -> torch.Tensor:
        """Uniform over the `share` of the noise schedule (0: clean, 1: noise), (count,) int64."""
        low, high = (bound * self.noise_schedule.config.num_train_timesteps for bound in share)
        return torch.randint(math.floor(low), math.ceil(high), (count,), generator=generator).to(self.device)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(ᾱ_t) x_0 + sqrt(1 − ᾱ_t) ε."""
        return self.noise_schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """ε, or v where the schedule says so."""
        if self.noise_schedule.config.prediction_type == "v_prediction":
            return self.noise_schedule.get_velocity(latents, noise, timesteps)
        return noise

    def predict(
        self, controlnets: Sequence[Steering], noisy: torch.Tensor, timesteps: torch.Tensor, prompt: Prompt, control: torch.Tensor,
        control_scale: float = 1.0,
    ) -> list[torch.Tensor]:  # fmt: skip
        """The prediction under each ControlNet, (B, C, h, w) each; the frozen encoder and middle block run once.

        In SD2 a ControlNet acts after the UNet's encoder and middle block, so those do not depend on it.
        """
        context = prompt["encoder_hidden_states"].expand(len(noisy), -1, -1)
        embedding, skips, middle = unet_encode(self.unet, noisy, timesteps, context)
        features = (steered(controlnet, noisy, timesteps, context, control, control_scale, skips, middle) for controlnet in controlnets)
        return [unet_decode(self.unet, embedding, *each, context) for each in features]

    def steer(
        self, controlnet: Steering, noisy: torch.Tensor, timesteps: torch.Tensor, prompt: Prompt, control: torch.Tensor,
        control_scale: float = 1.0,
    ) -> Features:  # fmt: skip
        """What encoder, middle block and ControlNet hand to the decoder: (skips, middle activation)."""
        context = prompt["encoder_hidden_states"].expand(len(noisy), -1, -1)
        _, skips, middle = unet_encode(self.unet, noisy, timesteps, context)
        return steered(controlnet, noisy, timesteps, context, control, control_scale, skips, middle)

    def denoise(self, noisy: torch.Tensor, timesteps: torch.Tensor, prompt: Prompt, features: Features) -> torch.Tensor:
        """The decoder's prediction at its own time, (B, C, h, w)."""
        context = prompt["encoder_hidden_states"].expand(len(noisy), -1, -1)
        skips, middle = features
        return unet_decode(self.unet, embed_time(self.unet, noisy, timesteps), skips, middle, context)

    # -- sampling ----------------------------------------------------------------------------------------------------

    def passes_a_step(self, guidance_scale: float) -> int:
        """Two where guidance is on: with the prompt and with the negative one."""
        return 2 if guidance_scale > 1 else 1

    sample = sample_candidates

    def sampling_text(self, count: int, prompt: Prompt, negative: Prompt | None, guidance_scale: float) -> Prompt:
        """The context of `count` candidates, behind as many under the negative prompt if it is given."""
        sides = [prompt] if negative is None else [negative, prompt]
        return {"encoder_hidden_states": torch.cat([side["encoder_hidden_states"].expand(count, -1, -1) for side in sides])}

    @contextmanager
    def control_windows(
        self, controlnet: torch.nn.Module, control: torch.Tensor, shape: Sequence[int], whole: bool
    ) -> Iterator[Callable[[int, int, int, int], torch.Tensor]]:
        """Within, the part of the control image that belongs to a tile; of a `whole` image it is embedded once."""
        with embedded_control(controlnet, control) if whole else nullcontext(control) as image:
            scale = image.shape[-1] // shape[-1]

            def part_of(top: int, left: int, height: int, width: int) -> torch.Tensor:
                return image[..., scale * top : scale * (top + height), scale * left : scale * (left + width)]

            yield part_of

    def renoise(self, scheduler: SchedulerMixin, index: int, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """By the scheduler's own formula."""
        return scheduler.add_noise(latents, noise, scheduler.timesteps[index].expand(len(noise)))

    def noise_over_signal(self, timesteps: torch.Tensor) -> torch.Tensor:
        """σ = sqrt((1 − ᾱ_t) / ᾱ_t), its logarithm linear between whole t; 4096 where nothing is left, as diffusers has it."""
        kept = self.noise_schedule.alphas_cumprod.double().clamp(min=2**-24)
        levels = ((1 - kept) / kept).sqrt().log().numpy()
        return torch.from_numpy(np.interp(timesteps.cpu().double().numpy(), np.arange(len(levels)), levels)).exp()

    def network_time(self, timestep: torch.Tensor) -> torch.Tensor:
        """What the UNet is told of a scheduler's timestep: itself."""
        return timestep

    def pass_bytes(self, controlnet: torch.nn.Module, height: int, width: int, count: int, forecast: bool = False) -> float:
        """Bytes that one `predict` for `count` samples holds at its peak, on a tile of latents of height × width."""
        a_sample, once = unet_numbers(self.unet.config, controlnet.config.conditioning_embedding_out_channels[0], self.vae_scale)
        return height * width * max(a_sample * count, once) * self.dtype.itemsize

    def sampling_schedule(self, settings: Loop, shape: Sequence[int]) -> SchedulerMixin:
        """The scheduler of `settings`, its timesteps set; they are the same for latents of every `shape`."""
        scheduler = self.sampling_scheduler(settings.scheduler)
        scheduler.set_timesteps(settings.num_inference_steps, device=self.device)
        return scheduler

    def sampling_scheduler(self, name: str) -> SchedulerMixin:
        """A diffusers scheduler with this model's noise schedule.

        Raises:
            UserError: diffusers has no scheduler of that name, or it cannot have this noise schedule (zero SNR at its end, for one).
        """
        import diffusers

        kind = getattr(diffusers, SCHEDULERS.get(name, name), None)
        if kind is None or not hasattr(kind, "set_timesteps"):
            raise UserError(f"--scheduler {name}: not known; take one of {', '.join(SCHEDULERS)} or a diffusers scheduler class")
        config, known = self.noise_schedule.config, inspect.signature(kind.__init__).parameters
        unknown = [key for key in OF_THE_NOISE if config.get(key) and key not in known]  # which diffusers would pass over in silence
        if unknown:
            raise UserError(
                f"--scheduler {name}: {kind.__name__} does not know {', '.join(unknown)} of this model's noise schedule; "
                f"take one of {', '.join(SCHEDULERS)}"
            )
        return kind.from_config(config)

    # -- ControlNets -------------------------------------------------------------------------------------------------

    @property
    def denoiser(self) -> torch.nn.Module:
        """The UNet."""
        return self.unet

    def trained_parts(self) -> dict[str, torch.nn.Module]:
        """What a baseline's training may train beside the ControlNet: {name in the pipeline: module}."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def saved_parts(self) -> dict[str, Any]:
        """All that a pipeline folder holds: {name: module, tokenizer or schedule}."""
        return {**self.trained_parts(), "vae": self.vae, "tokenizer": self.tokenizer, "scheduler": self.noise_schedule}

    def new_controlnet(self, conditioning_channels: Sequence[int] | None = None, **_of_other_kinds: Any) -> torch.nn.Module:
        """`ControlNetModel.from_unet`: a copy of the UNet's encoder with zero convolutions (the paper's C-SD2).

        Args:
            conditioning_channels: of the control embedding, whose convolutions halve the image's side between two of them; by default
                the published ones, as many as lead from the image to the size of the latents.

        Raises:
            UserError: they lead to another size.
        """
        from diffusers import ControlNetModel

        needed = self.vae_scale.bit_length()
        if not conditioning_channels:
            conditioning_channels = (*CONDITIONING_CHANNELS, *[CONDITIONING_CHANNELS[-1]] * needed)[:needed]
        if len(conditioning_channels) != needed:
            raise UserError(
                f"--conditioning_channels {' '.join(map(str, conditioning_channels))}: are {len(conditioning_channels)} numbers; the "
                f"autoencoder scales by {self.vae_scale}, which takes {needed}: give so many, or leave the flag out"
            )
        controlnet = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=tuple(conditioning_channels))
        return laid_out_on(controlnet, self.device)

    def controlnet_options(self, path: str | Path) -> dict[str, tuple[int, ...]]:
        """What `new_controlnet` must be told for a ControlNet like the one in a folder, hub model or safetensors file.

        Raises:
            UserError: it is one of FLUX, or of another base, or cannot be read.
        """
        return {"conditioning_channels": self.find_controlnet(path)[1]}

    def find_controlnet(self, path: str | Path) -> tuple[ControlNetFiles, tuple[int, ...]]:
        """(`ControlNetFiles`, channels of its control embedding) of a ControlNet of this base.

        Raises:
            UserError: it is one of FLUX, or of another base, or cannot be read.
        """
        files = find_controlnet(path, "ControlNetModel")
        if files.config:
            channels = files.config.get("conditioning_embedding_out_channels") or CONDITIONING_CHANNELS
        else:
            channels = conditioning_channels(files.tensors, path)
        found = shape_of_config(files.config) if files.config else shape_of_tensors(files.tensors)
        own = {**shape_of_config(self.unet_config), "image channels": 3}
        check_fit(path, found | {PIXELS: 2 ** (len(channels) - 1)}, own | {PIXELS: self.vae_scale}, self.source.path)
        return files, tuple(channels)

    def load_controlnet(self, path: str | Path, dtype: torch.dtype | None = None, **_of_other_kinds: Any) -> torch.nn.Module:
        """A ControlNet from a diffusers folder or hub id, or from one safetensors file with the keys of `from_unet`.

        Raises:
            UserError: one of another base; missing, unexpected or misshapen tensors, or tensors that are not finite, named.
        """
        from diffusers import ControlNetModel

        files, channels = self.find_controlnet(path)
        if files.config:
            controlnet = load_part(ControlNetModel, path, None, folder=files.folder, torch_dtype=dtype or self.dtype)
        else:
            controlnet = cast(self.new_controlnet(channels), dtype or self.dtype)
            load_weights(controlnet, files.tensors, path)
        check_finite(controlnet, path)
        return laid_out_on(controlnet, self.device).eval()


def laid_out_on(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """`network` on the device, its convolutions in the layout in which they are fast, and all of it in memory of its own.

    A file that weights are mapped from stays in memory whole as long as one of them lies in it, beside the copies of those laid out anew.
    """
    network = network.to(device)
    for tensor in [*network.parameters(), *network.buffers()]:
        tensor.data = tensor.data.clone(memory_format=CONVOLUTIONS if tensor.dim() == 4 else torch.preserve_format)
    return network
