"""What a backbone must offer: the one protocol behind which SD2 and FLUX hide their differences.

Images are (B, 3, H, W) float in [0, 1]; latents are (B, C, h, w), scaled as the diffusion model sees them; one image's
control input has batch size 1 and is broadcast over its candidates.
"""

from typing import Protocol

import torch


class Backbone(Protocol):
    """A frozen text-to-image model that a ControlNet steers."""

    kind: str  # "sd2" or "flux": the name of the implementation
    denoiser: torch.nn.Module  # the network that ControlNets steer
    default_scheduler: str  # what it samples with unless told
    published_sampling: dict  # the paper's steps and guidance, by flag
    guidance: float  # what a guidance-distilled model is told in training
    native_size: int  # side of the images that the model was made for, pixels
    size_multiple: int  # image sides must be multiples of this, pixels
    encodes_control: bool  # whether `prepare_control` takes the autoencoder

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images → latents (the posterior's mode)."""

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents → images, clamped to [0, 1]."""

    def embed_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Prompt embeddings, the arguments that `predict` passes on, first dimension len(prompts)."""

    def encode_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """The same without gradient."""

    def free_text_encoders(self) -> None:
        """Let go of the text encoders, whose memory is then free; prompts can no longer be embedded."""

    def prepare_control(self, images: torch.Tensor) -> torch.Tensor:
        """Upsampled LR images → control input of the ControlNet."""

    def cut_control(self, control: torch.Tensor, side: int, top: int, left: int, window: int) -> torch.Tensor:
        """The part of a control input, made of images of `side` latent pixels, that belongs to a square window of the latents."""

    def draw_timesteps(self, count: int, generator: torch.Generator, share=(0.0, 1.0), **density) -> torch.Tensor:
        """`count` training timesteps from the recipe's distribution, within a share of the noise schedule (0: clean, 1: noise).

        `density` is what `timestep_options` gives; options of other kinds are not read.
        """

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = α_t x_0 + σ_t ε."""

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network regresses: noise or velocity."""

    def predict(self, controlnets, noisy, timesteps, prompt, control, control_scale=1.0) -> list[torch.Tensor]:
        """The prediction under each of `controlnets`, all on one pass of what they share."""

    def passes_a_step(self, guidance_scale: float) -> int:
        """How often a sampling step predicts for each candidate."""

    def pass_bytes(self, controlnet, height: int, width: int, count: int) -> float:
        """Bytes that one `predict` for `count` samples holds at its peak, on a tile of latents of height × width."""

    def sampling_schedule(self, settings, shape):
        """A diffusers scheduler, set for sampling latents of `shape`: its `timesteps` are the steps that `sample` takes."""

    def sample(self, controlnet, control, prompt, negative, generators, shape, settings, progress=None) -> torch.Tensor:
        """Denoise len(generators) candidates of one image from their own noise streams; `progress(1)` after each pass over a tile."""

    def trained_parts(self) -> dict[str, torch.nn.Module]:
        """What a baseline's training may train beside the ControlNet."""

    def saved_parts(self) -> dict[str, object]:
        """All that a pipeline folder holds, by name."""

    def new_controlnet(self, **options) -> torch.nn.Module:
        """A ControlNet initialised from the backbone; options of other kinds are not read."""

    def controlnet_options(self, path) -> dict:
        """What `new_controlnet` must be told for a ControlNet like the one on disk."""

    def load_controlnet(self, path, dtype=None, **expected) -> torch.nn.Module:
        """A trained ControlNet from a diffusers folder or a single safetensors file."""
