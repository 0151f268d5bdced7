"""What a run takes, stage by stage, before it starts: FLOPs and memory of the very code that will run, times how often it runs."""

import math
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

from dp2osr.backbones import load_backbone
from dp2osr.backbones.loading import cast
from dp2osr.backbones.tiles import latent_tiling, samples_together
from dp2osr.device import DTYPES
from dp2osr.errors import UserError
from dp2osr.flops import measure, norms_in_float32, weight_bytes, weights_of
from dp2osr.planning.models import ConfigSource, fake_tensors, read_published, to_fake
from dp2osr.preference.groups import PreferenceGroup
from dp2osr.rewards.qalign import weight_bytes as qalign_bytes
from dp2osr.sampling.decode import decoded_together
from dp2osr.sampling.defaults import with_defaults
from dp2osr.sampling.resize import control_image
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.training.adapters import WithoutAdapters, add_adapters
from dp2osr.training.checks import check_options
from dp2osr.training.objective import GroupObjective

# GPU-seconds for an image of 512 × 512 and nine metrics on an A800: the paper's budget, not counted here
SCORING_SECONDS = 72 * 3600 * 8 / 1.92e6
OPTIMIZER_BYTES = 8  # a trained parameter: AdamW's two moments in float32


@dataclass
class StagePlan:
    """One stage of a run: what is done, FLOPs and seconds that are not counted by FLOPs, bytes on each GPU at the peak, bytes on disk."""

    name: str
    amount: str
    flops: float
    memory: dict = field(default_factory=dict)
    disk: float = 0
    seconds: float = 0

    def gpu_hours(self, tflops, utilisation):
        """Hours on one GPU of `tflops` peak, of which the share `utilisation` is had."""
        return (self.flops / (tflops * 1e12 * utilisation) + self.seconds) / 3600


class PlannedModel:
    """A base model, its ControlNet and the size of one kind of image, from configurations alone.

    Args:
        args: `GenerateSettings`.
        lr_size: (width, height) of an LR image, pixels.
        published: the published model's configuration, which is then read instead of the folder that `args` name.
    """

    def __init__(self, args, lr_size, published=None):
        self.source = ConfigSource(args.pretrained_model_name_or_path, published=published)
        geometry = self.load(("vae",))
        self.args, _ = with_defaults(args, geometry, ask=published is None)
        image, _, asked = control_image(Image.new("RGB", lr_size), args.upscale, geometry.native_size, geometry.size_multiple)
        self.kind, self.image_shape, self.pixels = geometry.kind, image.shape, math.prod(asked)
        self.latent_shape = (geometry.latent_channels, *(side // geometry.vae_scale for side in image.shape[2:]))

    def load(self, parts, precision="no"):
        """The backbone with these parts, on the `meta` device."""
        return load_backbone(self.source, "meta", DTYPES[precision], parts)

    def controlnet(self, backbone, dtype=None):
        """One like that of the flags if it is on disk, else as the paper has it; on the `meta` device."""
        path = self.args.controlnet_model_name_or_path
        options = backbone.controlnet_options(path) if path and Path(path).exists() else {}
        with torch.device("meta"):
            return cast(backbone.new_controlnet(**options), dtype or backbone.dtype)


def to_pretended_cpu(backbone, *others):
    """`to_fake` for the networks of a backbone and others; returns all of them."""
    networks = [*(part for part in vars(backbone).values() if isinstance(part, torch.nn.Module)), *others]
    to_fake(*networks)
    backbone.device = torch.device("cpu")
    return networks


def plan_sampling(model, num_images):
    """`gen_candidates.py`: M candidates of each image, a batch of them in memory."""
    args = model.args
    backbone = model.load(("vae", "text", "denoiser"), args.mixed_precision)
    controlnet = model.controlnet(backbone)
    with fake_tensors(), torch.no_grad():
        networks = to_pretended_cpu(backbone, controlnet)
        tiling = latent_tiling(backbone, args.tile_size, args.tile_overlap)
        (rows, height), (columns, width) = (tiling.cut(side) for side in model.latent_shape[1:])
        together = min(args.num_candidates, samples_together(backbone, tiling, args.batch_size, model.latent_shape))
        passes = backbone.passes_a_step(args.guidance_scale)
        prompt = backbone.encode_prompts([""])
        control = backbone.prepare_control(torch.rand(1, 3, height * backbone.vae_scale, width * backbone.vae_scale))
        noisy = torch.randn(passes * together, backbone.latent_channels, height, width, dtype=backbone.dtype)
        timesteps = torch.zeros(len(noisy))
        tile = measure(lambda: backbone.predict([controlnet], noisy, timesteps, prompt, control), weights_of(networks))
        image = torch.rand(model.image_shape)
        start = measure(lambda: (backbone.encode_prompts([""]), backbone.prepare_control(image)), weights_of(networks))
    candidates = num_images * args.num_candidates
    tiles = args.num_inference_steps * len(rows) * len(columns)
    latents = args.num_candidates * math.prod(model.latent_shape)
    return StagePlan(
        name="sample",
        amount=f"{candidates:,} candidates, {args.num_inference_steps} steps, {passes} passes a step, {together} together",
        flops=candidates * tiles * tile.flops / together + num_images * start.flops,
        memory={"weights": weight_bytes(*networks), "activations": max(tile.peak_bytes, start.peak_bytes)},
        disk=num_images * (2 * latents + sum(tensor.numel() * tensor.element_size() for tensor in prompt.values())),
    )


def plan_scoring(model, num_images, metrics=()):
    """`label_rewards.py`: decoding is counted; the metrics take the seconds that they took the paper, and memory that is not counted.

    Args:
        metrics: names of those that are scored; Q-Align's weights, more than all others together, are counted.
    """
    qalign = qalign_bytes(metrics)
    backbone = model.load(("vae",))
    with fake_tensors(), torch.no_grad():
        networks = to_pretended_cpu(backbone)
        together = decoded_together(backbone, model.image_shape[2:])
        latents = torch.randn(min(together, model.args.num_candidates), *model.latent_shape)
        decode = measure(lambda: backbone.decode_latents(latents), weights_of(networks))
    candidates = num_images * model.args.num_candidates
    return StagePlan(
        name="score",
        amount=f"{candidates:,} images; memory: decoding {'and Q-Align' if qalign else 'alone'}",
        flops=candidates * decode.flops / len(latents),
        memory={"weights": weight_bytes(*networks), "activations": decode.peak_bytes} | ({"Q-Align": qalign} if qalign else {}),
        disk=candidates * 8 * 10,  # ten columns of float64
        seconds=candidates * SCORING_SECONDS * model.pixels / 512**2,
    )


def plan_training(model, args, processes=1):
    """`train_*_dpo.py` by its `TrainSettings` on so many processes: one visit of a group is run. Validation is not counted.

    Raises:
        UserError: flags that the trainer refuses.
    """
    check_options(args)
    sampled = model.args.num_candidates
    if args.top_n > min(args.num_candidates or sampled, sampled) // 2 or (args.num_candidates or 0) > sampled:
        raise UserError(f"--top_n {args.top_n}, --num_candidates {args.num_candidates}: {sampled} candidates an image are sampled")
    if processes > args.groups_per_step:
        raise UserError(f"--groups_per_step {args.groups_per_step}: fewer than the {processes} processes; give more")
    text = model.load(("text",), args.mixed_precision)
    backbone = model.load(("vae", "denoiser"), args.mixed_precision)
    reference = model.controlnet(backbone, torch.float32).requires_grad_(False)
    if args.lora_rank:
        policy = add_adapters(reference, args.lora_rank).train()
        reference = WithoutAdapters(policy)
    else:
        policy = deepcopy(reference).requires_grad_(True).train()
    if args.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
        backbone.denoiser.enable_gradient_checkpointing()
    trainees = [network for network in (policy, reference) if isinstance(network, torch.nn.Module)]
    with fake_tensors():
        networks = to_pretended_cpu(backbone, *trainees)
        to_pretended_cpu(text)
        prompt = text.encode_prompts([""])
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        accelerator = SimpleNamespace(
            autocast=lambda: torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision != "no"),
            backward=lambda loss: loss.backward(),
        )
        objective = GroupObjective(args, accelerator, backbone, policy, reference)
        count = 2 * args.top_n
        latents, control = torch.randn(count, *model.latent_shape), torch.rand(model.image_shape)
        group = PreferenceGroup("x", list(range(count)), latents, control, prompt, torch.rand(args.top_n, args.top_n))

        with norms_in_float32() if args.mixed_precision != "no" else nullcontext():
            visit = measure(lambda: objective.visit(0, group, 1.0), weights_of(networks))
    parameters = sum(parameter.numel() for parameter in trained)
    groups = math.ceil(args.groups_per_step / processes) * processes  # the last round of a step keeps all waiting
    visits = args.max_train_steps * groups * args.timesteps_per_group
    return StagePlan(
        name="train",
        amount=f"{args.max_train_steps:,} steps of {args.groups_per_step} groups, N = {args.top_n}, {parameters / 1e6:,.1f} M parameters",
        flops=visits * visit.flops,
        memory={
            "weights": weight_bytes(*networks) - weight_bytes(*trainees),
            "policy, reference": weight_bytes(*trainees),
            "optimizer": OPTIMIZER_BYTES * parameters,
            "sum of gradients": parameters * (8 if args.gradient_sum == "fp64" else 4),  # of the visits before
            "activations, gradients": visit.peak_bytes,
        },
        disk=(args.checkpoints_total_limit + 1) * (weight_bytes(policy) + OPTIMIZER_BYTES * parameters) + weight_bytes(policy),
    )


def implied_utilisation(kind):
    """The share of a GPU's peak that the paper's hours of sampling mean for the FLOPs that are counted here; and the paper's numbers."""
    published = read_published(kind)
    paper = published["paper"]
    args = GenerateSettings(
        pretrained_model_name_or_path="-", controlnet_model_name_or_path="-", image_path="-", output_dir="-", mixed_precision="fp16",
        num_candidates=64, num_inference_steps=paper["num_inference_steps"], guidance_scale=paper["guidance_scale"],
    )  # fmt: skip
    stage = plan_sampling(PlannedModel(args, (128, 128), published), paper["candidates"] // args.num_candidates)
    return stage.flops / (paper["sampling_hours"] * 3600 * paper["gpus"] * paper["tflops"] * 1e12), paper


def shard(memory, sharding, processes):
    """The `memory` of a training stage where `processes` share a part of it.

    Args:
        sharding: "ddp" shares nothing, "zero2" the optimizer and the sum of gradients, "fsdp" the weights too (the layer that is being
            gathered is not counted).
    """
    optimizer = ("optimizer", "sum of gradients")
    shared = {"ddp": (), "zero2": optimizer, "fsdp": (*optimizer, "weights", "policy, reference")}[sharding]
    return {name: size / processes if name in shared else size for name, size in memory.items()}
