"""FLUX.1 (and the tiny preset of its classes) with a `FluxControlNetModel`: a flow backbone.

A timestep is the noise level σ in [0, 1]: x_σ = (1 − σ) x_0 + σ ε, and the network predicts the velocity ε − x_0.
Latents are kept as images, (B, C, h, w); the transformer sees them packed, 2 × 2 latent pixels a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dp2osr.backbones.denoising import sample_candidates
from dp2osr.backbones.flow_schedule import MULTISTEP, SCHEDULERS, flow_scheduler, set_flow_timesteps
from dp2osr.backbones.flux_files import count_layers, has_guidance, shape_of_config, shape_of_tensors
from dp2osr.backbones.flux_tokens import image_ids, pack, unpack
from dp2osr.backbones.footprint import forecast_numbers, transformer_numbers
from dp2osr.backbones.loading import cast, check_finite, check_fit, check_latents, find_controlnet, load_denoiser, load_part, load_weights
from dp2osr.backbones.tiles import cut_windows, decode_tiled, default_vae_tiling, encode_tiled
from dp2osr.backbones.tokens import tokenize
from dp2osr.errors import UserError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from dp2osr.backbones.base import Features, Loop, Prompt, Steering
    from dp2osr.backbones.loading import ControlNetFiles, ModelSource


class FluxBackbone:
    """AutoencoderKL, CLIP and T5 text encoders, FluxTransformer2DModel and the flow schedule, all frozen.

    Args:
        source: `ModelSource`.
        device, dtype: where and in which precision the frozen parts live; the VAE stays in fp32.
        parts: of "vae", "text", "denoiser" ("tokenizers": those of "text" alone); quantize: "int8" or "nf4", the denoiser is held so.

    Raises:
        UserError: a part is missing or broken.
    """

    kind = "flux"
    default_scheduler = "flow_euler"
    # for lines of plain diffusers, whose FLUX pipeline does not give the multistep solvers the model's noise levels
    schedulers = {**SCHEDULERS, **dict.fromkeys(MULTISTEP, SCHEDULERS["flow_euler"])}
    published_sampling = {"num_inference_steps": 25, "guidance_scale": 2.5}  # of the paper's test code
    encodes_control = True
    text_parts = ("text_encoder", "text_encoder_2")
    max_sequence_length: int | None = 512  # tokens that T5 takes, as in diffusers' pipelines for FLUX.1-dev

    def __init__(self, source: ModelSource, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                 parts: Sequence[str] = ("vae", "text", "denoiser"), quantize: str | None = None) -> None:  # fmt: skip
        from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
        from transformers import CLIPTokenizer, T5TokenizerFast

        self.source, self.device, self.dtype = source, torch.device(device), dtype
        self.noise_schedule = source.load(FlowMatchEulerDiscreteScheduler, "scheduler")
        vae_config = source.config(AutoencoderKL, "vae")
        transformer_config = self.transformer_config = source.config(FluxTransformer2DModel, "transformer")
        self.vae_scale = 2 ** (len(vae_config["block_out_channels"]) - 1)
        self.native_size = min(512, vae_config["sample_size"])  # FLUX takes 256 to 2048 pixels, the SR ControlNets are of 512
        self.size_multiple = 2 * self.vae_scale
        self.latent_channels = transformer_config["in_channels"] // 4
        check_latents(source, vae_config, self.latent_channels)
        self.vae_tiling = default_vae_tiling(self.native_size, self.vae_scale)
        self.guidance = 1.0  # what the distilled guidance embedding is told in training
        if "vae" in parts:
            self.vae = source.load(AutoencoderKL, "vae", torch_dtype=torch.float32).to(self.device).eval()
        if "text" in parts or "tokenizers" in parts:
            self.tokenizer = source.load(CLIPTokenizer, "tokenizer")
            self.tokenizer_2 = source.load(T5TokenizerFast, "tokenizer_2")
        if "text" in parts:
            self.load_text_encoders()
        if "denoiser" in parts:
            self.transformer = load_denoiser(source, FluxTransformer2DModel, "transformer", self.device, dtype, quantize).eval()
        for name in ("vae", "transformer"):
            if hasattr(self, name):
                getattr(self, name).requires_grad_(False)

    # -- images, prompts, control ------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] → (B, C, H/s, W/s) shifted and scaled latents, the posterior's mode."""
        images = (images.to(self.device, torch.float32) * 2).sub_(1)
        config = self.vae.config
        return (encode_tiled(self.vae, images, self.vae_tiling) - (config.shift_factor or 0)) * config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) latents → (B, 3, s·h, s·w) in [0, 1]."""
        config = self.vae.config
        latents = latents.to(self.device, torch.float32) / config.scaling_factor + (config.shift_factor or 0)
        return decode_tiled(self.vae, latents, self.vae_tiling).div_(2).add_(0.5).clamp_(0, 1)

    def embed_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """CLIP's pooled output and T5's last hidden states: {"pooled_projections": (B, D), "encoder_hidden_states": (B, length, D₂)}."""
        clip = tokenize(self.tokenizer, prompts, self.tokenizer.model_max_length)
        t5 = tokenize(self.tokenizer_2, prompts, self.text_length)
        pooled = self.text_encoder(clip.to(self.device)).pooler_output
        return {"pooled_projections": pooled, "encoder_hidden_states": self.text_encoder_2(t5.to(self.device))[0]}

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """`embed_prompts` of the frozen encoders."""
        return self.embed_prompts(prompts)

    @property
    def text_length(self) -> int:
        """Tokens of T5 in a prompt's embedding."""
        return min(self.max_sequence_length or 512, self.tokenizer_2.model_max_length)

    def blank_prompt(self) -> dict[str, torch.Tensor]:
        """Zeros in the shapes of one prompt's embedding: for a pass of the denoiser whose result nobody reads."""
        pooled, width = self.transformer_config["pooled_projection_dim"], self.transformer_config["joint_attention_dim"]
        shapes = {"pooled_projections": (1, pooled), "encoder_hidden_states": (1, self.text_length, width)}
        return {name: torch.zeros(shape, device=self.device, dtype=self.dtype) for name, shape in shapes.items()}

    def load_text_encoders(self) -> None:
        """CLIP and T5, frozen, on the device."""
        from transformers import CLIPTextModel, T5EncoderModel

        self.text_encoder = self.source.load(CLIPTextModel, "text_encoder", dtype=self.dtype)
        self.text_encoder_2 = self.source.load(T5EncoderModel, "text_encoder_2", dtype=self.dtype)
        for encoder in (self.text_encoder, self.text_encoder_2):
            encoder.to(self.device).eval().requires_grad_(False)

    def free_text_encoders(self) -> None:
        """Let go of CLIP and T5; `embed_prompts` has none afterwards."""
        del self.text_encoder, self.text_encoder_2

    def prepare_control(self, images: torch.Tensor) -> torch.Tensor:
        """The upsampled LR in [0, 1] as packed latents, (B, tokens, 4C) (the paper's C-FLUX)."""
        return pack(self.encode_images(images)).to(self.dtype)

    def cut_control(self, control: torch.Tensor, side: int, top: torch.Tensor, left: torch.Tensor, window: int) -> torch.Tensor:
        """The part of each control input, made of images of `side` latent pixels, that belongs to a square window of its latents."""
        return pack(cut_windows(unpack(control, side, side), top, left, window))

    # -- training ----------------------------------------------------------------------------------------------------

    def draw_timesteps(
        self, count: int, generator: torch.Generator, share: tuple[float, float] = (0.0, 1.0), timestep_sampling: str = "logit_normal",
        logit_mean: float = 0.0, logit_std: float = 1.0) -> torch.Tensor:  # fmt: skip
        """σ within `share`, (count,) float32: logit-normal (Esser et al., "Scaling Rectified Flow Transformers", Sec. 3.1) or uniform."""
        bounds, uniform = torch.tensor(share, dtype=torch.float64), torch.rand(count, generator=generator, dtype=torch.float64)
        if timestep_sampling == "logit_normal":
            low, high = torch.special.ndtr((torch.logit(bounds) - logit_mean) / logit_std)
            sigmas = torch.sigmoid(logit_mean + logit_std * torch.special.ndtri(low + (high - low) * uniform))
        else:
            sigmas = bounds[0] + (bounds[1] - bounds[0]) * uniform
        return sigmas.float().clamp(1e-4, 1).to(self.device)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_σ = (1 − σ) x_0 + σ ε."""
        sigmas = timesteps.to(latents).view(-1, 1, 1, 1)
        return (1 - sigmas) * latents + sigmas * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The velocity ε − x_0, at any σ."""
        return noise - latents

    def predict(self, controlnets: Sequence[Steering], noisy: torch.Tensor, timesteps: torch.Tensor, prompt: Prompt, control: torch.Tensor,
                control_scale: float = 1.0) -> list[torch.Tensor]:  # fmt: skip
        """The velocity under each ControlNet, (B, C, h, w) each; `prompt` may carry a "guidance" of its own, for all or one a sample."""
        steered = (self.steer(controlnet, noisy, timesteps, prompt, control, control_scale) for controlnet in controlnets)
        return [self.denoise(noisy, timesteps, prompt, residuals) for residuals in steered]

    def network_inputs(
        self, network: Steering, noisy: torch.Tensor, timesteps: torch.Tensor, prompt: Prompt
    ) -> dict[str, torch.Tensor | bool | None]:
        """What the transformer and its ControlNets take alike; guidance where the `network` has an input for it."""
        count, _, height, width = noisy.shape
        tokens = pack(noisy)
        guidance = torch.as_tensor(prompt.get("guidance", self.guidance), device=tokens.device, dtype=tokens.dtype).expand(count)
        text = prompt["encoder_hidden_states"].expand(count, -1, -1)
        return {
            "hidden_states": tokens,
            "timestep": torch.as_tensor(timesteps, device=tokens.device, dtype=tokens.dtype).expand(count),
            "guidance": guidance if network.config.guidance_embeds else None,
            "pooled_projections": prompt["pooled_projections"].expand(count, -1),
            "encoder_hidden_states": text,
            "txt_ids": torch.zeros(text.shape[1], 3, device=tokens.device, dtype=tokens.dtype),
            "img_ids": image_ids(height // 2, width // 2, tokens.device).to(tokens.dtype),
            "return_dict": False,
        }

    def steer(self, controlnet: Steering, noisy: torch.Tensor, timesteps: torch.Tensor, prompt: Prompt, control: torch.Tensor,
              control_scale: float = 1.0) -> Features:  # fmt: skip
        """What the ControlNet adds to the double blocks and to the single ones."""
        inputs = self.network_inputs(controlnet, noisy, timesteps, prompt)
        return controlnet(**inputs, controlnet_cond=control.expand(len(noisy), -1, -1), conditioning_scale=control_scale)

    def denoise(self, noisy: torch.Tensor, timesteps: torch.Tensor, prompt: Prompt, features: Features) -> torch.Tensor:
        """The transformer's velocity, (B, C, h, w)."""
        double, single = features
        inputs = self.network_inputs(self.transformer, noisy, timesteps, prompt)
        [velocity] = self.transformer(**inputs, controlnet_block_samples=double, controlnet_single_block_samples=single)
        return unpack(velocity, *noisy.shape[2:])

    # -- sampling ----------------------------------------------------------------------------------------------------

    def passes_a_step(self, guidance_scale: float) -> int:
        """One: the guidance scale is an input of the distilled network."""
        return 1

    sample = sample_candidates

    def sampling_text(self, count: int, prompt: Prompt, negative: Prompt | None, guidance_scale: float) -> Prompt:
        """The prompt with the guidance scale, which is an input of the distilled network; `negative` is not read."""
        return {**prompt, "guidance": guidance_scale}

    @contextmanager
    def control_windows(
        self, controlnet: torch.nn.Module, control: torch.Tensor, shape: Sequence[int], whole: bool
    ) -> Iterator[Callable[[int, int, int, int], torch.Tensor]]:
        """Within, the packed part of the control latents that belongs to a tile."""
        latents = unpack(control, shape[1], shape[2])
        yield lambda top, left, height, width: pack(latents[..., top : top + height, left : left + width])

    def renoise(self, scheduler: SchedulerMixin, index: int, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`add_noise` at the scheduler's own σ."""
        return self.add_noise(latents, noise, scheduler.sigmas[index].expand(1))

    def noise_over_signal(self, timesteps: torch.Tensor) -> torch.Tensor:
        """σ / (1 − σ) of the flow's σ."""
        sigmas = timesteps.cpu().double() / 1000
        return sigmas / (1 - sigmas)

    def network_time(self, timestep: torch.Tensor) -> torch.Tensor:
        """What the transformer is told of a scheduler's timestep: the noise level σ."""
        return timestep.float() / 1000

    def pass_bytes(self, controlnet: torch.nn.Module, height: int, width: int, count: int, forecast: bool = False) -> float:
        """Bytes that one `predict` for `count` samples holds at its peak, on a tile of latents of height × width."""
        blocks = controlnet.config.num_layers + controlnet.config.num_single_layers
        numbers = transformer_numbers(self.transformer.config, blocks) + (forecast_numbers(self.transformer.config) if forecast else 0)
        return count * (height * width / 4 + self.text_length) * numbers * self.dtype.itemsize

    def sampling_schedule(self, settings: Loop, shape: Sequence[int]) -> SchedulerMixin:
        """The scheduler of `settings`, its timesteps set for latents of `shape`: what the network sees at a time decides their shift."""
        scheduler = self.sampling_scheduler(settings.scheduler)
        seen = [settings.tiling.cut(side)[1] for side in shape[1:]]
        config = self.noise_schedule.config
        shift = self.timestep_shift(*seen) if config.get("use_dynamic_shifting") else None
        set_flow_timesteps(scheduler, config, settings.num_inference_steps, self.device, shift)
        return scheduler

    def timestep_shift(self, height: int, width: int) -> float:
        """μ of the resolution-dependent shift of the timesteps: linear in the number of tokens (FLUX.1's own sampling code)."""
        config, tokens = self.noise_schedule.config, height * width // 4
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return least + (most - least) * (tokens - low) / (high - low)

    def sampling_scheduler(self, name: str) -> SchedulerMixin:
        """A diffusers flow scheduler with this model's schedule.

        Raises:
            UserError: diffusers has no flow scheduler of that name.
        """
        return flow_scheduler(name, self.noise_schedule.config)

    # -- ControlNets -------------------------------------------------------------------------------------------------

    @property
    def denoiser(self) -> torch.nn.Module:
        """The transformer."""
        return self.transformer

    def trained_parts(self) -> dict[str, torch.nn.Module]:
        """What a baseline's training may train beside the ControlNet: {name in the pipeline: module}."""
        return {"transformer": self.transformer, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}

    def saved_parts(self) -> dict[str, Any]:
        """All that a pipeline folder holds: {name: module, tokenizer or schedule}."""
        rest = {"vae": self.vae, "tokenizer": self.tokenizer, "tokenizer_2": self.tokenizer_2, "scheduler": self.noise_schedule}
        return {**self.trained_parts(), **rest}

    def new_controlnet(self, num_double_layers: int = 4, num_single_layers: int = 0, **_of_other_kinds: Any) -> torch.nn.Module:
        """`FluxControlNetModel.from_transformer`: copies of the first blocks, zero output layers (the paper's C-FLUX)."""
        from diffusers import FluxControlNetModel

        config = self.transformer.config
        return FluxControlNetModel.from_transformer(
            self.transformer,
            num_layers=num_double_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=config.attention_head_dim,
            num_attention_heads=config.num_attention_heads,
        ).to(self.device)

    def controlnet_options(self, path: str | Path) -> dict[str, int]:
        """What `new_controlnet` must be told for a ControlNet like the one in a folder, hub model or safetensors file.

        Raises:
            UserError: it is none of FLUX, or of another base, or cannot be read.
        """
        return self.find_controlnet(path)[1]

    def find_controlnet(self, path: str | Path) -> tuple[ControlNetFiles, dict[str, int]]:
        """(`ControlNetFiles`, options of `new_controlnet`) of a ControlNet of this base.

        Raises:
            UserError: it is none of FLUX, or of another base, or cannot be read.
        """
        files, own = find_controlnet(path, "FluxControlNetModel"), shape_of_config(self.transformer_config)
        if files.config:
            if files.config.get("num_mode") or files.config.get("conditioning_embedding_channels"):
                raise UserError(f"{path}: takes a control mode, or images that are not encoded; give a ControlNet that takes latents alone")
            layers, found = tuple(files.config[name] for name in ("num_layers", "num_single_layers")), shape_of_config(files.config)
        else:
            layers, found = count_layers(files.tensors, path), shape_of_tensors(files.tensors)
        check_fit(path, found, own, self.source.path)
        if not files.config and self.transformer_config.get("guidance_embeds", False) != has_guidance(files.tensors):
            takes, base = ("takes", "does not") if has_guidance(files.tensors) else ("does not take", "does")
            raise UserError(f"{path}: {takes} the guidance scale as an input, the base {base}; give it as a folder with its config.json")
        return files, dict(zip(("num_double_layers", "num_single_layers"), layers, strict=True))

    def load_controlnet(
        self, path: str | Path, dtype: torch.dtype | None = None, num_double_layers: int | None = None, num_single_layers: int | None = None
    ) -> torch.nn.Module:
        """A ControlNet from a diffusers folder or hub id, or from one safetensors file with the keys of `from_transformer`.

        Raises:
            UserError: one of another base; another number of blocks than is wanted; missing, unexpected or misshapen tensors, or tensors
                that are not finite, named.
        """
        from diffusers import FluxControlNetModel

        files, options = self.find_controlnet(path)
        for name, wanted in (("num_double_layers", num_double_layers), ("num_single_layers", num_single_layers)):
            if wanted not in (None, options[name]):
                raise UserError(f"{path}: has {options[name]} blocks where --{name} says {wanted}; leave the flag out")
        if files.config:
            controlnet = load_part(FluxControlNetModel, path, None, folder=files.folder, torch_dtype=dtype or self.dtype)
        else:
            controlnet = cast(self.new_controlnet(**options), dtype or self.dtype)
            load_weights(controlnet, files.tensors, path)
        check_finite(controlnet, path)
        return controlnet.to(self.device).eval()
