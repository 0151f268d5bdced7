"""Sampling of candidate groups: M candidates per LR image, sharded, batched, resumable."""

from dataclasses import asdict, dataclass, replace

import torch
from tqdm import tqdm

from dp2osr.backbones import load_backbone, model_source
from dp2osr.backbones.tiles import WHOLE, Tiling, latent_tiling, samples_together
from dp2osr.data.images import evenly, list_images, read_image
from dp2osr.device import DTYPES, compute_device, usable_precision
from dp2osr.errors import UserError
from dp2osr.prompts.source import PromptSource
from dp2osr.provenance import versions, vocabulary_hash, weights_hash
from dp2osr.sampling.decode import finish_images
from dp2osr.sampling.resize import control_image
from dp2osr.sampling.seeds import candidate_generator, stable_seed
from dp2osr.sampling.store import CandidateGroup, CandidateStore


@dataclass
class SamplingSettings:
    """What the backbone's sampling loop needs to know."""

    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    control_scale: float = 1.0
    tiling: Tiling = WHOLE  # of the latents


class GroupSampler:
    """Samples the candidates of one LR image at a time; model parts and prompt embeddings are loaded once.

    Args:
        args: parsed flags of `model_flags` and `sampling_flags`, with `upscale`.
        device: where to sample.
    """

    def __init__(self, args, device, backbone=None, controlnet=None):
        self.args = args
        self.prompts = PromptSource(args, device)
        if backbone is None:
            dtype = DTYPES[usable_precision(args.mixed_precision, device)]
            backbone = load_backbone(model_source(args), device, dtype, kind=args.backbone)
        self.backbone = backbone
        if getattr(args, "process_size", None):
            backbone.native_size = args.process_size
        scheduler = args.scheduler or self.backbone.default_scheduler
        tiling = latent_tiling(backbone, getattr(args, "tile_size", None), getattr(args, "tile_overlap", None))
        self.settings = SamplingSettings(args.num_inference_steps, args.guidance_scale, scheduler, args.control_scale, tiling)
        if getattr(args, "vae_tile_size", None):
            side = max(1, args.vae_tile_size // backbone.vae_scale)
            backbone.vae_tiling = Tiling(side, side // 4)
        layers = {name: getattr(args, name, None) for name in ("num_double_layers", "num_single_layers")}
        self.controlnet = controlnet or self.backbone.load_controlnet(args.controlnet_model_name_or_path, **layers)
        if getattr(args, "enable_xformers_memory_efficient_attention", False):
            use_xformers(backbone.denoiser, self.controlnet)
        self.embeddings = {}  # of prompts that are used again and again

    def embed(self, prompt, keep=False):
        if prompt in self.embeddings:
            return self.embeddings[prompt]
        embedding = self.backbone.encode_prompts([prompt])
        if keep:
            self.embeddings[prompt] = embedding
        return embedding

    def sample(self, image_id, lr, count):
        """A `CandidateGroup` of `count` candidates of the RGB `lr`."""
        args, backbone = self.args, self.backbone
        prompt = self.prompts(image_id, lr)
        embedding = self.embed(prompt)
        negative = self.embed(args.negative_prompt, keep=True) if args.guidance_scale > 1 else None
        image, _, _ = control_image(lr, args.upscale, backbone.native_size, backbone.size_multiple)
        control = backbone.prepare_control(image)
        shape = (backbone.latent_channels, image.shape[2] // backbone.vae_scale, image.shape[3] // backbone.vae_scale)
        latents, together = [], samples_together(backbone, self.settings.tiling, args.batch_size, shape)
        for first in range(0, count, together):
            generators = [candidate_generator(args.seed, image_id, m) for m in range(first, min(first + together, count))]
            sampled = backbone.sample(self.controlnet, control, embedding, negative, generators, shape, self.settings)
            latents.append(sampled.to("cpu", torch.float16))
        seeds = [stable_seed(args.seed, image_id, m) for m in range(count)]
        return CandidateGroup(image_id, torch.cat(latents), prompt, lr, seeds, args.upscale, embedding)

    def images(self, group):
        """The group's images as a user gets them, (M, 3, H, W) in [0, 1]."""
        return finish_images(self.backbone, group.latents, group.lr, group.upscale, self.args.align_method)


def use_xformers(*networks):
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


def sampling_record(args, sampler, **counts):
    """All that decides the samples, `counts` among it: what a later run with the same folder must have too."""
    return {
        "model": args.pretrained_model_name_or_path,
        "model_hash": weights_hash(args.pretrained_model_name_or_path),
        "model_files": asdict(replace(sampler.backbone.source, path=None)),
        "variant": args.variant,
        "revision": args.revision,
        "vae_hash": weights_hash(args.pretrained_vae_model_name_or_path) if args.pretrained_vae_model_name_or_path else None,
        "tokenizer_hash": vocabulary_hash(sampler.backbone.tokenizer) if args.tokenizer_name else None,
        "controlnet": args.controlnet_model_name_or_path,
        "controlnet_hash": weights_hash(args.controlnet_model_name_or_path),
        "backbone": sampler.backbone.kind,
        **asdict(sampler.settings),
        **counts,
        "seed": args.seed,
        "upscale": args.upscale,
        "align_method": args.align_method,
        "prompt_source": sampler.prompts.kind,
        "prompts": sampler.prompts.fingerprint,
        "vae_tiling": asdict(sampler.backbone.vae_tiling),
        "negative_prompt": args.negative_prompt if args.guidance_scale > 1 else None,
        "mixed_precision": next(name for name, dtype in DTYPES.items() if dtype == sampler.backbone.dtype),
        "versions": {name: versions()[name] for name in ("torch", "diffusers")},
    }


def generate_candidates(args):
    """Sample every missing group of `args.image_path` into `args.output_dir`; each process takes its share of the images."""
    from accelerate import PartialState

    paths = {path.stem: path for path in evenly(list_images(args.image_path), args.max_images, args.images_offset)}
    for path in paths.values():  # all are readable, before the first expensive second
        read_image(path)
    state = PartialState(cpu=compute_device() == "cpu")
    sampler = GroupSampler(args, state.device)
    with state.main_process_first():
        store = CandidateStore(args.output_dir, sampling_record(args, sampler, num_candidates=args.num_candidates))
    missing = [image_id for image_id in paths if not store.has(image_id)]
    if state.is_main_process and len(missing) < len(paths):
        print(f"{args.output_dir}: {len(paths) - len(missing)} of {len(paths)} groups are there, {len(missing)} to sample")
    share = list(paths)[state.process_index :: state.num_processes]
    share = [image_id for image_id in share if image_id in set(missing)]
    bar = tqdm(
        total=len(share) * args.num_candidates, unit="candidate", desc="sample", disable=not state.is_local_main_process, mininterval=2
    )
    for image_id in share:
        group = sampler.sample(image_id, read_image(paths[image_id]), args.num_candidates)
        store.write(group, sampler.images(group) if args.save_images == "all" else None)
        bar.update(args.num_candidates)
    bar.close()
    state.wait_for_everyone()
    return store
