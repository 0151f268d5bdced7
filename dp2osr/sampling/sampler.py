"""Samples of one LR image at a time, and the record of what decides them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from PIL import Image

from dp2osr.backbones import load_backbone, model_source, set_text_length
from dp2osr.backbones.base import Backbone
from dp2osr.backbones.settings import ModelSettings
from dp2osr.backbones.tiles import Tiling, latent_tiling, samples_together
from dp2osr.data.images import read_image
from dp2osr.data.inputs import ImageFile
from dp2osr.device import DTYPES, check_compiler, computes_in_tf32, set_tf32, usable_precision
from dp2osr.errors import NonFiniteSamples, UserError
from dp2osr.prompts.source import PromptSource
from dp2osr.provenance import legacy_weights_hash, versions, vocabulary_hash, weights_hash
from dp2osr.sampling.decode import finish_images
from dp2osr.sampling.defaults import LoopSettings, loop_settings, with_defaults
from dp2osr.sampling.embeddings import PromptEmbeddings
from dp2osr.sampling.levers import check_levers, least_shape
from dp2osr.sampling.resize import control_image
from dp2osr.sampling.seeds import candidate_generator, stable_seed, trunk_generator
from dp2osr.sampling.settings import LEVERS_OFF, GenerateSettings, RestoreSettings
from dp2osr.sampling.store import CandidateGroup
from dp2osr.sampling.strength import load_controlnet, strength_record


class GroupSampler:
    """Samples the candidates of one LR image at a time.

    Args:
        args: `GenerateSettings` or `RestoreSettings`; what they leave open is the model's recommendation.
        device: where to sample.
        like: a sampler of another ControlNet, whose base, tags and embedded prompts this one uses too.

    Attributes:
        filled: {flag: (value, where it is from)} of the settings that the flags left open.
        embeddings: {prompt: embedding} that need no text encoder; others are made by `PromptEmbeddings`.
    """

    def __init__(
        self,
        args: GenerateSettings | RestoreSettings,
        device: str | torch.device,
        backbone: Backbone | None = None,
        controlnet: Any = None,
        process_size: int | None = None,
        like: GroupSampler | None = None,
    ) -> None:
        self.prompts: PromptSource = like.prompts if like else PromptSource(args, device)
        if args.compile:
            check_compiler(device)
        backbone = like.backbone if like else backbone
        if backbone is None:
            set_tf32(device, args.disable_tf32)
            dtype = DTYPES[usable_precision(args.mixed_precision, device)]
            backbone = load_backbone(model_source(args), device, dtype, ("vae", "tokenizers", "denoiser"), args.backbone)
        self.backbone: Backbone = backbone
        self.args, self.filled = with_defaults(args, backbone)
        full = self.args
        set_text_length(backbone, args.max_sequence_length)
        if process_size:
            backbone.native_size = process_size
        tiling = latent_tiling(backbone, args.tile_size, args.tile_overlap)
        self.settings = loop_settings(full, tiling)
        check_scheduler(backbone, self.settings)
        samples = args.num_candidates if isinstance(args, GenerateSettings) else args.sample_times
        check_levers(backbone, self.settings, samples, args.compile)
        if args.vae_tile_size:
            side = max(1, args.vae_tile_size // backbone.vae_scale)
            backbone.vae_tiling = Tiling(side, side // 4)
        self.controlnet_name = "the policy" if controlnet else args.controlnet_model_name_or_path
        self.controlnet = controlnet or load_controlnet(args, backbone, args.expected_layers())
        if args.enable_xformers_memory_efficient_attention:
            use_xformers(backbone.denoiser, self.controlnet)
        self.embeddings: dict[str, dict[str, torch.Tensor]] = {}
        self.is_guided = backbone.passes_a_step(full.guidance_scale) > 1
        self.embedded: PromptEmbeddings = like.embedded if like else PromptEmbeddings(backbone)
        self.embedded.keep([full.negative_prompt] if self.is_guided else [])
        self.files: Sequence[ImageFile] = []
        self.places: dict[str, int] = {}

    def prepare(self, files: Sequence[ImageFile]) -> None:
        """Get ready for sampling `files`, those of all ranks, in this order: prompts are tagged and embedded some hundred images ahead.

        What sampling will take is measured before: the first passes of compiled networks take longer than all others.
        """
        self.files, self.places = files, {file.id: place for place, file in enumerate(files)}
        if files:
            self.embedded.learn(self.prompts_from(0))
        if files and self.args.compile:
            compile_blocks(self.backbone.denoiser, self.controlnet)

    def prompts_from(self, place: int) -> Iterator[str]:
        """The prompts of the images from a place in the list on."""
        for file in self.files[place:]:
            with suppress(UserError):  # an image that has gone says so at its turn
                yield self.prompts(file.id, read_image(file.path) if self.prompts.kind == "ram" else None)

    def embed(self, prompt: str, coming: Iterable[str] = ()) -> dict[str, torch.Tensor]:
        return self.embeddings[prompt] if prompt in self.embeddings else self.embedded(prompt, coming)

    def sample(
        self, image_id: str, lr: Image.Image, count: int, first: int = 0, progress: Callable[[int], object] | None = None
    ) -> CandidateGroup:
        """A `CandidateGroup` of the candidates `first` to `count` of the RGB `lr`; `progress` is called with 1 after each network pass.

        Raises:
            NonFiniteSamples: a latent is NaN or infinite.
        """
        args, backbone = self.args, self.backbone
        prompt = self.prompts(image_id, lr)
        embedding = self.embed(prompt, self.prompts_from(self.places.get(image_id, len(self.files))))
        negative = self.embed(args.negative_prompt) if self.is_guided else None
        image, _, _ = control_image(lr, args.upscale, backbone.native_size, backbone.size_multiple)
        control = backbone.prepare_control(image)
        shape = (backbone.latent_channels, image.shape[2] // backbone.vae_scale, image.shape[3] // backbone.vae_scale)
        inputs = control, embedding, negative
        trunk = None
        if self.settings.branch_at and first < count:
            shared = [trunk_generator(args.seed, image_id)]
            trunk = backbone.sample(self.controlnet, *inputs, shared, shape, self.settings, progress)
        latents, together = [], samples_together(backbone, self.settings.tiling, args.batch_size, shape)
        for start in range(first, count, together):
            generators = [candidate_generator(args.seed, image_id, m) for m in range(start, min(start + together, count))]
            sampled = backbone.sample(self.controlnet, *inputs, generators, shape, self.settings, progress, trunk)
            latents.append(sampled.to("cpu", torch.float16))
            self.check_finite(image_id, latents[-1], "latents")
        seeds = [stable_seed(args.seed, image_id, m) for m in range(first, count)]
        return CandidateGroup(image_id, torch.cat(latents), prompt, lr, seeds, args.upscale, embedding)

    def check_finite(self, image_id: str, values: torch.Tensor, what: str) -> None:
        """Raise `NonFiniteSamples` unless all values of a tensor are finite."""
        bad = int((~torch.isfinite(values.flatten(1)).all(1)).sum())
        if bad:
            precision = precision_of(self.backbone)
            way = "look at the weights" if precision == "no" else f"--mixed_precision {precision} overflows: try bf16 or no"
            raise NonFiniteSamples(
                f"image '{image_id}': {what} of {bad} of {len(values)} samples are NaN or infinite with {self.controlnet_name}; {way}"
            )

    def images(self, group: CandidateGroup) -> torch.Tensor:
        """The group's images as a user gets them, (M, 3, H, W) in [0, 1]."""
        images = finish_images(self.backbone, group.latents, group.lr, group.upscale, self.args.align_method)
        self.check_finite(group.image_id, images, "decoded pixels")
        return images


def compile_blocks(denoiser: Any, controlnet: Any) -> None:
    """torch.compile, in place, of the blocks that repeat in a denoiser, as diffusers names them, and of their copies in a ControlNet."""
    denoiser.compile_repeated_blocks()
    controlnet._repeated_blocks = denoiser._repeated_blocks  # of ControlNets diffusers names none
    controlnet.compile_repeated_blocks()


def use_xformers(*networks: torch.nn.Module) -> None:
    """Attention by xformers in these networks.

    Raises:
        UserError: it is not installed, or there is no GPU that it runs on.
    """
    try:
        for network in networks:
            network.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--enable_xformers_memory_efficient_attention: {reason}; leave the flag out: PyTorch's own attention is as sparing"
        ) from None


def check_scheduler(backbone: Backbone, settings: LoopSettings) -> None:
    """Raise `UserError` unless the scheduler of `settings` can take its steps; tried on latents of one grid cell."""
    shape = least_shape(backbone)
    try:
        scheduler = backbone.sampling_schedule(settings, shape)
        latents = torch.ones(1, *shape, device=scheduler.timesteps.device)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(latents, scheduler.timesteps[0])
        scheduler.step(torch.zeros_like(latents), scheduler.timesteps[0], latents, return_dict=False)
    except UserError:
        raise
    except Exception as error:  # each scheduler has its own ways to refuse
        reason = " ".join(str(error).split())[:160]
        asked = f"--scheduler {settings.scheduler} with --num_inference_steps {settings.num_inference_steps}"
        raise UserError(f"{asked}: cannot sample this model ({reason})") from None


def sampling_record(sampler: GroupSampler, **counts: int | None) -> dict[str, Any]:
    """All that decides the samples, `counts` among it: what a later run with the same folder must have too."""
    args = sampler.args
    return {
        **model_record(args, sampler.backbone, sampler.prompts),
        "controlnet": args.controlnet_model_name_or_path,
        "controlnet_hash": weights_hash(args.controlnet_model_name_or_path),
        **strength_record(args),
        **asdict(sampler.settings),
        **counts,
        "seed": args.seed,
        "upscale": args.upscale,
        "align_method": args.align_method,
        "max_sequence_length": sampler.backbone.max_sequence_length,
        "negative_prompt": args.negative_prompt if args.guidance_scale > 1 else None,
        "tf32": computes_in_tf32(sampler.backbone.device),
        "compile": args.compile,
    }


def model_record(args: ModelSettings, backbone: Backbone, prompts: PromptSource) -> dict[str, Any]:
    """Of a base model and its prompts what decides candidates, whoever has sampled them."""
    vae = args.pretrained_vae_model_name_or_path
    return {
        "model": args.pretrained_model_name_or_path,
        "model_hash": weights_hash(args.pretrained_model_name_or_path, args.variant, args.revision),
        "model_files": asdict(backbone.source) | {"path": None},
        "variant": args.variant,
        "revision": args.revision,
        "vae_hash": weights_hash(vae, part="vae") if vae else None,
        "tokenizer_hash": vocabulary_hash(backbone.tokenizer) if args.tokenizer_name else None,
        "backbone": backbone.kind,
        "prompt_source": prompts.kind,
        "prompts": prompts.fingerprint,
        "vae_tiling": asdict(backbone.vae_tiling),
        "mixed_precision": precision_of(backbone),
        "versions": {name: versions()[name] for name in ("torch", "diffusers")},
    }


def precision_of(backbone: Backbone) -> str:
    """--mixed_precision of a backbone's networks."""
    return next(name for name, dtype in DTYPES.items() if dtype == backbone.dtype)


def earlier_values(args: GenerateSettings | RestoreSettings) -> dict[str, Callable[[], str | None]]:
    """{key of `sampling_record`: a function that gives what earlier versions wrote for the same}: hashes by another formula, or nothing."""
    paths = {
        "model_hash": args.pretrained_model_name_or_path,
        "controlnet_hash": args.controlnet_model_name_or_path,
        "vae_hash": args.pretrained_vae_model_name_or_path,
    }
    earlier: dict[str, Callable[[], str | None]] = {key: partial(legacy_weights_hash, path) for key, path in paths.items() if path}
    not_there_yet = {
        "policy_strength": args.policy_strength == 1,
        **{name: getattr(args, name) == off for name, off in LEVERS_OFF.items()},
        "max_sequence_length": args.max_sequence_length in (None, 512),
        "tf32": not torch.backends.cuda.matmul.allow_tf32,
    }
    return earlier | {key: lambda: None for key, does_nothing in not_there_yet.items() if does_nothing}


def settings_not_compared(sampler: GroupSampler) -> tuple[str, ...]:
    """Keys of `sampling_record` that are written and not compared: hashes stand for paths, each image's prompt for a file of them.

    Compiled blocks round otherwise, by no more than another GPU does.
    """
    told = ("model", "model_files", "controlnet", "base_controlnet", "versions", "variant", "revision", "compile")
    return (*told, "prompts") if sampler.prompts.kind == "file" else told


def unused_prompt(given: str | None, sampler: GroupSampler) -> str | None:
    """A line about a --negative_prompt that is given and not used, or None."""
    if given is None or sampler.is_guided:
        return None
    why = "guidance is off" if sampler.args.guidance_scale <= 1 else "this model takes none"
    return f"note: --negative_prompt is not used: {why}"
