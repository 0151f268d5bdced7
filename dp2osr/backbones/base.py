"""What a backbone must offer: the one protocol behind which SD2 and FLUX hide their differences.

Images are (B, 3, H, W) float in [0, 1]; latents are (B, C, h, w), scaled as the diffusion model sees them; one image's
control input has batch size 1 and is broadcast over its candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dp2osr.backbones.loading import ModelSource
from dp2osr.backbones.tiles import Tiling

if TYPE_CHECKING:
    from diffusers import SchedulerMixin
    from transformers import PreTrainedTokenizerBase


Prompt = Mapping[str, Any]  # embeddings as `embed_prompts` gives them, and perhaps a "guidance"
Features = Any  # what a backbone's `steer` hands to its `denoise`


class Steering(Protocol):
    """A ControlNet, or what is called like one."""

    @property
    def config(self) -> Any:
        """Its configuration."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What it adds to the network that it steers."""


class Loop(Protocol):
    """What the sampling loop needs to know: `dp2osr.sampling.defaults.LoopSettings`."""

    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    control_scale: float
    tiling: Tiling
    guidance_interval: tuple[float, float] | None
    cache_interval: int
    taylorseer_interval: int
    branch_at: int


class Backbone(Protocol):
    """A frozen text-to-image model that a ControlNet steers."""

    kind: str  # "sd2" or "flux": the name of the implementation
    source: ModelSource  # where its parts come from
    device: torch.device  # where they live
    dtype: torch.dtype  # and in which precision, but for the autoencoder
    vae: torch.nn.Module  # the autoencoder
    tokenizer: PreTrainedTokenizerBase  # of CLIP
    denoiser: torch.nn.Module  # the network that ControlNets steer
    default_scheduler: str  # what it samples with unless told
    published_sampling: dict[str, float]  # the paper's steps and guidance, by flag
    guidance: float  # what a guidance-distilled model is told in training
    native_size: int  # side of the images that the model was made for, pixels
    size_multiple: int  # image sides must be multiples of this, pixels
    vae_scale: int  # pixels a latent, of a side
    latent_channels: int  # of a latent
    vae_tiling: Tiling  # of what the autoencoder encodes and decodes, in latents
    text_parts: tuple[str, ...]  # names of the text encoders
    max_sequence_length: int | None  # tokens of a prompt where that can be chosen, else None
    encodes_control: bool  # whether `prepare_control` takes the autoencoder

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images → latents (the posterior's mode)."""

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents → images, clamped to [0, 1]."""

    def embed_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Prompt embeddings, the arguments that `predict` passes on, first dimension len(prompts)."""

    def encode_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """The same without gradient."""

    def blank_prompt(self) -> dict[str, torch.Tensor]:
        """Zeros in the shapes of one prompt's embedding: for a pass of the denoiser whose result nobody reads."""

    def load_text_encoders(self) -> None:
        """Load the text encoders, which `parts` left out or which were freed."""

    def free_text_encoders(self) -> None:
        """Let go of the text encoders, whose memory is then free; prompts can no longer be embedded."""

    def prepare_control(self, images: torch.Tensor) -> torch.Tensor:
        """Upsampled LR images → control input of the ControlNet."""

    def cut_control(self, control: torch.Tensor, side: int, top: torch.Tensor, left: torch.Tensor, window: int) -> torch.Tensor:
        """The part of each control input, made of images of `side` latent pixels, that belongs to a square window of its latents.

        Args:
            top, left: (B,) int64, in latent pixels.
        """

    def draw_timesteps(
        self, count: int, generator: torch.Generator, share: tuple[float, float] = (0.0, 1.0), **density: Any
    ) -> torch.Tensor:
        """`count` training timesteps from the recipe's distribution, within a share of the noise schedule (0: clean, 1: noise).

        `density` is what `timestep_options` gives; options of other kinds are not read.
        """

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = α_t x_0 + σ_t ε."""

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network regresses: noise or velocity."""

    def predict(
        self,
        controlnets: Sequence[Steering],
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        prompt: Prompt,
        control: torch.Tensor,
        control_scale: float = 1.0,
    ) -> list[torch.Tensor]:
        """The prediction under each of `controlnets`, all on one pass of what they share."""

    def steer(
        self,
        controlnet: Steering,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        prompt: Prompt,
        control: torch.Tensor,
        control_scale: float = 1.0,
    ) -> Features:
        """The first part of a prediction, which changes little from one sampling step to the next: the ControlNet and what it acts on."""

    def denoise(self, noisy: torch.Tensor, timesteps: torch.Tensor, prompt: Prompt, features: Features) -> torch.Tensor:
        """The rest: the prediction, from `features` that `steer` gave, at this time or at an earlier one."""

    def passes_a_step(self, guidance_scale: float) -> int:
        """How often a sampling step predicts for each candidate."""

    def pass_bytes(self, controlnet: torch.nn.Module, height: int, width: int, count: int, forecast: bool = False) -> float:
        """Bytes that one `predict` for `count` samples holds at its peak, on a tile of latents of height × width; `forecast`: with what
        later steps are forecast from."""

    def sampling_schedule(self, settings: Loop, shape: Sequence[int]) -> SchedulerMixin:
        """A diffusers scheduler, set for sampling latents of `shape`: its `timesteps` are the steps that `sample` takes."""

    def sampling_scheduler(self, name: str) -> SchedulerMixin:
        """A diffusers scheduler with this model's noise schedule, its timesteps not set."""

    def sample(
        self,
        controlnet: torch.nn.Module,
        control: torch.Tensor,
        prompt: Prompt,
        negative: Prompt | None,
        generators: list[torch.Generator],
        shape: tuple[int, int, int],
        settings: Loop,
        progress: Callable[[int], object] | None = None,
        trunk: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Denoise len(generators) candidates of one image from their own noise streams; `progress(1)` after each pass over a tile.

        With a `trunk`, (1, C, h, w) clean latents, they begin at step `branch_at` with that, noised.
        """

    def sampling_text(self, count: int, prompt: Prompt, negative: Prompt | None, guidance_scale: float) -> Prompt:
        """What `predict` takes for `count` candidates, behind as many under the `negative` prompt if it is given."""

    def control_windows(
        self, controlnet: torch.nn.Module, control: torch.Tensor, shape: Sequence[int], whole: bool
    ) -> AbstractContextManager[Callable[[int, int, int, int], torch.Tensor]]:
        """Within, a function of (top, left, height, width) of a tile of latents: its part of the control input.

        Args:
            shape: (C, h, w) of the image's latents.
            whole: whether its one tile is the image, so that what `controlnet` makes of the control alone may be made once.
        """

    def renoise(self, scheduler: SchedulerMixin, index: int, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Clean latents with noise up to the level of a scheduler's timestep number `index`, as the scheduler scales them."""

    def noise_over_signal(self, timesteps: torch.Tensor) -> torch.Tensor:
        """σ of EDM, from 0 to infinity, at a scheduler's timesteps: the noise's standard deviation over what is left of the image."""

    def network_time(self, timestep: torch.Tensor) -> torch.Tensor:
        """What `predict` is told of a scheduler's timestep."""

    def trained_parts(self) -> dict[str, torch.nn.Module]:
        """What a baseline's training may train beside the ControlNet."""

    def saved_parts(self) -> dict[str, Any]:
        """All that a pipeline folder holds, by name."""

    def new_controlnet(self, **options: Any) -> torch.nn.Module:
        """A ControlNet initialised from the backbone; options of other kinds are not read."""

    def controlnet_options(self, path: str | Path) -> dict[str, Any]:
        """What `new_controlnet` must be told for a ControlNet like the one on disk."""

    def load_controlnet(self, path: str | Path, dtype: torch.dtype | None = None, **expected: Any) -> torch.nn.Module:
        """A trained ControlNet from a diffusers folder or a single safetensors file."""
