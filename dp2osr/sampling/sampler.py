"""Sampling of candidate groups: M candidates per LR image, sharded, batched, resumable."""

import sys
from dataclasses import asdict, replace
from functools import partial

import torch
from tqdm import tqdm

from dp2osr.backbones import load_backbone, model_source
from dp2osr.backbones.tiles import Tiling, latent_tiling, samples_together
from dp2osr.data.images import read_image
from dp2osr.data.inputs import evenly, find_inputs
from dp2osr.device import DTYPES, compute_device, usable_precision
from dp2osr.errors import NonFiniteSamples, UserError, listed
from dp2osr.outputs import check_output
from dp2osr.prompts.source import PromptSource
from dp2osr.provenance import legacy_weights_hash, versions, vocabulary_hash, weights_hash
from dp2osr.sampling.decode import finish_images
from dp2osr.sampling.defaults import LoopSettings, describe_defaults, with_defaults
from dp2osr.sampling.estimate import check_cost
from dp2osr.sampling.memory import passes
from dp2osr.sampling.resize import control_image
from dp2osr.sampling.seeds import candidate_generator, stable_seed
from dp2osr.sampling.store import CandidateGroup, CandidateStore


class GroupSampler:
    """Samples the candidates of one LR image at a time; model parts and prompt embeddings are loaded once.

    Args:
        args: `GenerateSettings` or `RestoreSettings`; what they leave open is the model's recommendation.
        device: where to sample.

    Attributes:
        filled: {flag: (value, where it is from)} of the settings that the flags left open.
    """

    def __init__(self, args, device, backbone=None, controlnet=None, process_size=None):
        self.prompts = PromptSource(args, device)
        if backbone is None:
            dtype = DTYPES[usable_precision(args.mixed_precision, device)]
            backbone = load_backbone(model_source(args), device, dtype, kind=args.backbone)
        self.backbone = backbone
        self.args, self.filled = with_defaults(args, backbone)
        args = self.args
        if process_size:
            backbone.native_size = process_size
        tiling = latent_tiling(backbone, args.tile_size, args.tile_overlap)
        self.settings = LoopSettings(args.num_inference_steps, args.guidance_scale, args.scheduler, args.control_scale, tiling)
        check_scheduler(backbone, self.settings)
        if args.vae_tile_size:
            side = max(1, args.vae_tile_size // backbone.vae_scale)
            backbone.vae_tiling = Tiling(side, side // 4)
        self.controlnet_name = "the policy" if controlnet else args.controlnet_model_name_or_path
        self.controlnet = controlnet or self.backbone.load_controlnet(args.controlnet_model_name_or_path, **args.expected_layers())
        if args.enable_xformers_memory_efficient_attention:
            use_xformers(backbone.denoiser, self.controlnet)
        self.embeddings = {}  # of prompts that are used again and again

    def embed(self, prompt, keep=False):
        if prompt in self.embeddings:
            return self.embeddings[prompt]
        embedding = self.backbone.encode_prompts([prompt])
        if keep:
            self.embeddings[prompt] = embedding
        return embedding

    def sample(self, image_id, lr, count, first=0, progress=None):
        """A `CandidateGroup` of the candidates `first` to `count` of the RGB `lr`; `progress` is called with 1 after each network pass.

        Raises:
            NonFiniteSamples: a latent is NaN or infinite.
        """
        args, backbone = self.args, self.backbone
        prompt = self.prompts(image_id, lr)
        embedding = self.embed(prompt)
        negative = self.embed(args.negative_prompt, keep=True) if args.guidance_scale > 1 else None
        image, _, _ = control_image(lr, args.upscale, backbone.native_size, backbone.size_multiple)
        control = backbone.prepare_control(image)
        shape = (backbone.latent_channels, image.shape[2] // backbone.vae_scale, image.shape[3] // backbone.vae_scale)
        latents, together = [], samples_together(backbone, self.settings.tiling, args.batch_size, shape)
        for start in range(first, count, together):
            generators = [candidate_generator(args.seed, image_id, m) for m in range(start, min(start + together, count))]
            sampled = backbone.sample(self.controlnet, control, embedding, negative, generators, shape, self.settings, progress)
            latents.append(sampled.to("cpu", torch.float16))
            self.check_finite(image_id, latents[-1], "latents")
        seeds = [stable_seed(args.seed, image_id, m) for m in range(first, count)]
        return CandidateGroup(image_id, torch.cat(latents), prompt, lr, seeds, args.upscale, embedding)

    def check_finite(self, image_id, values, what):
        """Raise `NonFiniteSamples` unless all values of a tensor are finite."""
        bad = int((~torch.isfinite(values.flatten(1)).all(1)).sum())
        if bad:
            precision = next(name for name, dtype in DTYPES.items() if dtype == self.backbone.dtype)
            way = "look at the weights" if precision == "no" else f"--mixed_precision {precision} overflows: try bf16 or no"
            raise NonFiniteSamples(
                f"image '{image_id}': {what} of {bad} of {len(values)} samples are NaN or infinite with {self.controlnet_name}; {way}"
            )

    def images(self, group):
        """The group's images as a user gets them, (M, 3, H, W) in [0, 1]."""
        images = finish_images(self.backbone, group.latents, group.lr, group.upscale, self.args.align_method)
        self.check_finite(group.image_id, images, "decoded pixels")
        return images


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


def check_scheduler(backbone, settings):
    """Raise `UserError` unless the scheduler of `settings` can take its steps; tried on latents of one grid cell."""
    side = backbone.size_multiple // backbone.vae_scale
    shape = (backbone.latent_channels, side, side)
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


def sampling_record(sampler, **counts):
    """All that decides the samples, `counts` among it: what a later run with the same folder must have too."""
    args, vae = sampler.args, sampler.args.pretrained_vae_model_name_or_path
    return {
        "model": args.pretrained_model_name_or_path,
        "model_hash": weights_hash(args.pretrained_model_name_or_path, args.variant, args.revision),
        "model_files": asdict(replace(sampler.backbone.source, path=None)),
        "variant": args.variant,
        "revision": args.revision,
        "vae_hash": weights_hash(vae, part="vae") if vae else None,
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


def earlier_hashes(args):
    """{key of `sampling_record`: a function that gives the hash by the formula of earlier versions}."""
    paths = {
        "model_hash": args.pretrained_model_name_or_path,
        "controlnet_hash": args.controlnet_model_name_or_path,
        "vae_hash": args.pretrained_vae_model_name_or_path,
    }
    return {key: partial(legacy_weights_hash, path) for key, path in paths.items() if path}


def settings_not_compared(sampler):
    """Keys of `sampling_record` that are written and not compared: hashes stand for paths, each image's prompt for a file of them."""
    told = ("model", "model_files", "controlnet", "versions", "variant", "revision")
    return (*told, "prompts") if sampler.prompts.kind == "file" else told


def unused_prompt(given, sampler):
    """A line about a --negative_prompt that is given and not used, or None."""
    if given is None or (sampler.backbone.passes_a_step(sampler.args.guidance_scale) > 1):
        return None
    why = "guidance is off" if sampler.args.guidance_scale <= 1 else "this model takes none"
    return f"note: --negative_prompt is not used: {why}"


def say(state, line):
    """Print a line to stderr, once for all processes; nothing for None."""
    if line and state.is_main_process:
        print(line, file=sys.stderr)


def generate_candidates(args):
    """Sample every missing group of `args.image_path` into `args.output_dir`; each process takes its share of the images.

    A group is kept if it was made of the same image, with these settings; one of fewer candidates gets those that it lacks.
    """
    from accelerate import PartialState

    check_output(args.output_dir)
    if args.images_offset and not args.max_images:
        raise UserError("--images_offset: shifts the choice of --max_images; give that too, or leave it out")
    state = PartialState(cpu=compute_device() == "cpu")
    files, skipped = find_inputs(
        args.image_path,
        args.recursive,
        args.skip_unreadable,
        choose=lambda all_files: evenly(all_files, args.max_images, args.images_offset),
        quiet=not state.is_main_process,
    )
    sampler = GroupSampler(args, state.device)
    say(state, sampler.filled and f"note: {describe_defaults(sampler.filled)}")
    say(state, unused_prompt(args.negative_prompt, sampler))
    say(state, sampler.prompts.check([file.id for file in files], args.prompt_file))
    with state.main_process_first():
        record = sampling_record(sampler, num_candidates=args.num_candidates)
        store = CandidateStore(args.output_dir, record, settings_not_compared(sampler), earlier_hashes(args), begin=False)
        prompts = {file.id: sampler.prompts.tags.get(file.id, "") for file in files} if sampler.prompts.kind == "file" else {}
        have = store.survey({file.id: file for file in files}, prompts, args.adopt, args.save_images == "all")
    todo = {file.id: args.num_candidates - have[file.id] for file in files if have[file.id] < args.num_candidates}
    kept = len(files) - len(todo)
    if state.is_main_process and kept:
        print(f"{args.output_dir}: {kept} of {len(files)} groups are there, {len(todo)} to sample")
    share = [file for index, file in enumerate(files) if index % state.num_processes == state.process_index and file.id in todo]
    say_cost(state, sampler, share, todo, args.save_images == "all")
    if state.is_main_process:
        store.begin()
    state.wait_for_everyone()
    with progress_bar(state, sampler, share, todo, "sample") as bar:
        for number, file in enumerate(share):
            bar.set_postfix_str(f"image {number + 1}/{len(share)}", refresh=False)
            store.write(*sample_group(sampler, store, file, have[file.id], args, bar.update))
    state.wait_for_everyone()
    if state.is_main_process:
        print(summary(args.output_dir, "groups", len(todo), kept, skipped))
    return store


def say_cost(state, sampler, files, counts, save_images=True):
    """Print what the `files` of this process will take, of which `counts` has the samples; `UserError` if memory does not suffice."""
    args = sampler.args
    for count in sorted(set(counts.values())):
        sizes = {file.name: file.size for file in files if counts[file.id] == count}
        lines = check_cost(
            sizes, sampler.backbone, sampler.controlnet, sampler.settings, args.upscale, count, args.batch_size,
            align_method=args.align_method, save_images=save_images, processes=state.num_processes,
        )  # fmt: skip
        for line in lines:
            say(state, line)


def progress_bar(state, sampler, files, counts, title):
    """A bar over all network passes of the `files` of this process, so that it moves within an image."""
    args = sampler.args
    total = sum(passes(sampler.backbone, sampler.settings, file.size, args.upscale, counts[file.id], args.batch_size) for file in files)
    return tqdm(total=total, unit="pass", desc=title, disable=not state.is_local_main_process, mininterval=2)


def sample_group(sampler, store, file, have, args, progress):
    """(group, its images or None, what its input is) with the candidates that it lacks behind those that are there."""
    lr = read_image(file.path)
    group = sampler.sample(file.id, lr, args.num_candidates, have, progress)
    if have:
        earlier = store.read(file.id)
        group.latents = torch.cat([earlier.latents[:have], group.latents])
        group.seeds = [*earlier.seeds[:have], *group.seeds]
    return group, sampler.images(group) if args.save_images == "all" else None, {"image": file.content}


def summary(folder, what, made, kept, skipped):
    """The last line of a program: what was written, kept and passed over."""
    line = f"{folder}: {made} {what} written, {kept} kept"
    if skipped:
        line += f"; {len(skipped)} inputs skipped: {listed([f'{path.name} ({why})' for path, why in skipped.items()], 40)}"
    return line
