"""What a run takes, stage by stage, before it starts: FLOPs and memory of the very code that will run, times how often it runs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dp2osr.backbones import load_backbone, set_text_length
from dp2osr.backbones.base import Backbone, Prompt
from dp2osr.backbones.forecast import FORECAST_THIRD, forecasting
from dp2osr.backbones.loading import cast
from dp2osr.backbones.tiles import Tiling, latent_tiling, samples_together
from dp2osr.backbones.trajectory import Step, trajectories
from dp2osr.device import DTYPES, asked_precision
from dp2osr.flops import Cost, measure, weight_bytes, weights_of
from dp2osr.planning.hardware import PROCESS_BYTES, Machine
from dp2osr.planning.models import ConfigSource, fake_tensors, read_published, to_fake
from dp2osr.rewards.qalign import weight_bytes as qalign_bytes
from dp2osr.sampling.decode import decoded_together
from dp2osr.sampling.defaults import loop_settings, with_defaults
from dp2osr.sampling.levers import check_levers, check_tiles
from dp2osr.sampling.resize import control_image
from dp2osr.sampling.settings import LEVERS_OFF, GenerateSettings

# GPU-seconds for an image of 512 × 512 and nine metrics on an A800: the paper's budget
SCORING_SECONDS = 72 * 3600 * 8 / 1.92e6
# TFLOP of a candidate of 512 × 512 whose GT is known; the GT's own pass comes once a group and is not planned. A set of metrics that are
# all here is planned by them. Counted with pyiqa 0.1.16, random weights, by
#     python bench/rewards.py --flops --metrics lpips lpips-vgg dists topiq_fr afine_fr maniqa-pipal musiq clipiqa+ topiq_nr afine_nr \
#         dp2o_lpips dp2o_dists
METRIC_TFLOP = {
    "lpips": 0.0073,
    "lpips-vgg": 0.1604,
    "dists": 0.1605,
    "topiq_fr": 0.0570,
    "afine_fr": 0.0473,
    "maniqa-pipal": 5.535,
    "musiq": 0.0350,
    "clipiqa+": 0.0642,
    "topiq_nr": 0.0742,
    "afine_nr": 0.0946,
    "dp2o_lpips": 0.0038,
    "dp2o_dists": 0.0038,
}
SCORING_UTILISATION = 0.1  # of a GPU's peak in 16 bits, an assumption: TF32 has half of that peak, and the networks are small
EMBEDDED_TOGETHER = 256  # images whose prompts are embedded before their candidates are sampled


@dataclass
class StagePlan:
    """One stage of a run.

    Args:
        flops: of all GPUs.
        moments: what may be the peak → {part: bytes on each GPU}.
        files: {part: bytes on disk}.
        seconds: of GPUs that are not counted by FLOPs.
        link_seconds: in which all GPUs wait for sums over processes.
        host: {part: bytes of a node's memory}.
        work: whose share of the peak is had, "sampling" or "training".
    """

    name: str
    amount: str
    flops: float
    moments: dict[str, dict[str, float]] = field(default_factory=dict)
    files: dict[str, float] = field(default_factory=dict)
    seconds: float = 0
    link_seconds: float = 0
    host: dict[str, float] = field(default_factory=dict)
    work: str = "sampling"

    @property
    def memory(self) -> dict[str, float]:
        """{part: bytes on each GPU} of the moment that takes most."""
        return max(self.moments.values(), key=lambda parts: sum(parts.values()))

    @property
    def disk(self) -> float:
        return sum(self.files.values())

    def gpu_hours(self, tflops: float, utilisation: float) -> float:
        """Hours on one GPU of `tflops` peak, of which the share `utilisation` is had; without the sums over processes."""
        return (self.flops / (tflops * 1e12 * utilisation) + self.seconds) / 3600

    def hours(self, machine: Machine, utilisation: float) -> float:
        """Hours on all GPUs of a machine."""
        return self.gpu_hours(machine.tflops, utilisation) / machine.num_gpus + self.link_seconds / 3600


class PlannedModel:
    """A base model, its ControlNet and the size of one kind of image, from configurations alone.

    Args:
        lr_size: (width, height) of an LR image, pixels.
        published: the published model's configuration, which is then read instead of the folder that `args` name.
    """

    def __init__(self, args: GenerateSettings, lr_size: tuple[int, int], published: dict[str, Any] | None = None) -> None:
        self.source, self.text_length = ConfigSource(args.pretrained_model_name_or_path, published=published), args.max_sequence_length
        geometry = self.load(("vae",))
        self.args, _ = with_defaults(args, geometry, ask=published is None)
        image, _, asked = control_image(Image.new("RGB", lr_size), args.upscale, geometry.native_size, geometry.size_multiple)
        self.kind, self.image_shape, self.pixels = geometry.kind, image.shape, math.prod(asked)
        self.latent_shape = (geometry.latent_channels, *(side // geometry.vae_scale for side in image.shape[2:]))

    def load(self, parts: Sequence[str], precision: str = "no") -> Backbone:
        """The backbone with these parts, on the `meta` device."""
        backbone = load_backbone(self.source, "meta", DTYPES[precision], parts)
        set_text_length(backbone, self.text_length)
        return backbone

    def like(self, **changed: Any) -> "PlannedModel":
        """The same with other settings of sampling."""
        other = copy(self)
        other.args = replace(self.args, **changed)
        return other

    def controlnet(self, backbone: Backbone, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """One like that of the flags if it is on disk, else as the paper has it; on the `meta` device."""
        path = self.args.controlnet_model_name_or_path
        options = backbone.controlnet_options(path) if path and Path(path).exists() else {}
        with torch.device("meta"):
            return cast(backbone.new_controlnet(**options), dtype or backbone.dtype)


def to_pretended_cpu(backbone: Backbone, *others: torch.nn.Module) -> list[torch.nn.Module]:
    """`to_fake` for the networks of a backbone and others; returns all of them."""
    networks = [*(part for part in vars(backbone).values() if isinstance(part, torch.nn.Module)), *others]
    to_fake(*networks)
    backbone.device = torch.device("cpu")
    return networks


@dataclass
class StepCosts:
    """What the steps of a trajectory cost, each kind of step measured once; made and called within `fake_tensors`.

    Args:
        prompt, control: of one image, or of one tile of it.
        known: tensors that are there before.
    """

    backbone: Backbone
    controlnet: torch.nn.Module
    prompt: Prompt
    control: torch.Tensor
    tile: tuple[int, int]
    known: list[torch.Tensor]

    def __call__(self, steps: Iterable[Step], count: int) -> Cost:
        """FLOPs of these steps for `count` samples together, on one tile, and the peak of the dearest."""
        kinds = Counter((step.guided, step.key, step.forecast) for step in steps)
        costs = {kind: self.of_one(count * (2 if kind[0] else 1), *kind[1:]) for kind in kinds}
        flops = sum(number * costs[kind].flops for kind, number in kinds.items())
        return Cost(flops, max((cost.peak_bytes for cost in costs.values()), default=0))

    def of_one(self, rows: int, key: bool, forecast: bool) -> Cost:
        """Of one step: a whole prediction, or one from features that are there; the blocks computed, or forecast from earlier steps."""
        backbone = self.backbone
        noisy = torch.randn(rows, backbone.latent_channels, *self.tile, dtype=backbone.dtype)
        inputs = noisy, torch.zeros(rows), self.prompt
        features = None if key else backbone.steer(self.controlnet, *inputs, self.control)

        def step() -> None:
            if key:
                backbone.predict([self.controlnet], *inputs, self.control)
            else:
                backbone.denoise(*inputs, features)

        whole = measure(step, self.known)
        if not forecast:
            return whole
        with forecasting(backbone.denoiser, *FORECAST_THIRD):
            three = measure(lambda: [step() for _ in range(3)], self.known)
        return Cost(three.flops - 2 * whole.flops, three.peak_bytes)


def plan_sampling(model: PlannedModel, num_images: int, processes_a_node: int = 1) -> StagePlan:
    """`gen_candidates.py`: M candidates of each image, a batch of them in memory; text encoders and denoiser are there in turn."""
    args = model.args
    backbone = model.load(("vae", "text", "denoiser"), asked_precision(args.mixed_precision))
    controlnet = model.controlnet(backbone)
    tiling = latent_tiling(backbone, args.tile_size, args.tile_overlap)
    (rows, height), (columns, width) = (tiling.cut(side) for side in model.latent_shape[1:])
    tiles = len(rows) * len(columns)
    trunk, own = steps_planned(model, backbone, tiling, tiles)
    together = min(args.num_candidates, samples_together(backbone, tiling, args.batch_size, model.latent_shape))
    with fake_tensors(), torch.no_grad():
        networks = to_pretended_cpu(backbone, controlnet)
        known = weights_of(networks)
        embed = measure(lambda: backbone.encode_prompts([""]), known)
        prompt = backbone.encode_prompts([""])
        control = backbone.prepare_control(torch.rand(1, 3, height * backbone.vae_scale, width * backbone.vae_scale))
        cost_of = StepCosts(backbone, controlnet, prompt, control, (height, width), known)
        batch, shared = cost_of(own, together), cost_of(trunk, 1)
        image = torch.rand(model.image_shape)
        start = measure(lambda: backbone.prepare_control(image), known)
    candidates = num_images * args.num_candidates
    prompt_bytes = sum(tensor.numel() * tensor.element_size() for tensor in prompt.values())
    denoiser, steered = weight_bytes(backbone.denoiser), weight_bytes(controlnet)
    text = weight_bytes(*networks) - weight_bytes(backbone.denoiser, controlnet, backbone.vae)
    vae = weight_bytes(backbone.vae)
    return StagePlan(
        name="sample",
        amount=f"{candidates:,} candidates, {sampling_in_words(model, backbone)}, {together} together",
        flops=candidates * tiles * batch.flops / together + num_images * (tiles * shared.flops + embed.flops + start.flops),
        moments={
            "denoising": {"weights": denoiser + steered + vae, "activations": max(batch.peak_bytes, start.peak_bytes)},
            "prompts": {"text encoders": text, "autoencoder, ControlNet": vae + steered, "activations": embed.peak_bytes},
        },
        files={
            "latents": num_images * args.num_candidates * 2 * math.prod(model.latent_shape),
            "prompts' embeddings": num_images * prompt_bytes,
        },
        host=each_process(
            processes_a_node,
            {"embeddings": EMBEDDED_TOGETHER * prompt_bytes, "the denoiser, while prompts are embedded": denoiser},
        ),
    )


def steps_planned(model: PlannedModel, backbone: Backbone, tiling: Tiling, tiles: int) -> tuple[list[Step], list[Step]]:
    """`trajectories` of the settings that a model is sampled with.

    Raises:
        UserError: as sampling itself.
    """
    settings, backbone.device = loop_settings(model.args, tiling), torch.device("cpu")
    check_levers(backbone, settings, model.args.num_candidates)
    check_tiles(settings, ["all images"] if tiles > 1 else [])
    return trajectories(backbone, settings, model.latent_shape)


def sampling_in_words(model: PlannedModel, backbone: Backbone) -> str:
    """`25 steps, 1 passes a step, cache_interval 3`: steps, passes and the levers that are used."""
    args, words = model.args, []
    for name, off in LEVERS_OFF.items():
        value = getattr(args, name)
        if value != off:
            words.append(f"{name} {' '.join(f'{each:g}' for each in (value if isinstance(value, tuple) else (value,)))}")
    return ", ".join([f"{args.num_inference_steps} steps", f"{backbone.passes_a_step(args.guidance_scale)} passes a step", *words])


def each_process(processes: int, parts: Mapping[str, float]) -> dict[str, float]:
    """`parts` of one process and its libraries, for so many of them."""
    return {name: processes * size for name, size in {"processes": PROCESS_BYTES, **parts}.items()}


def scoring_seconds(metrics: Sequence[str], tflops: float, given: float | None = None) -> tuple[float, str]:
    """(GPU-seconds of a candidate of 512 × 512, where that is from): the paper's where a metric has no figure in `METRIC_TFLOP`.

    Args:
        metrics: names of those that are scored; none where that is not known.
        tflops: a GPU's peak.
        given: seconds that were measured.
    """
    if given is not None:
        return given, "as given"
    total = sum(METRIC_TFLOP.get(name, 0) for name in metrics)
    unknown = [name for name in metrics if name not in METRIC_TFLOP]
    counted = f"{total:.3g} TFLOP at an assumed {SCORING_UTILISATION:.0%} of the peak"
    seconds = total / (tflops * SCORING_UTILISATION)
    if metrics and not unknown:
        return seconds, f"of {', '.join(metrics)}, {counted}"
    source = "the paper's, for nine metrics of which Q-Align is most"
    if unknown:
        source += f": there is no figure of {', '.join(unknown)}"
    if total:
        source += f"; the others take {seconds:.2g} s, {counted}"
    return SCORING_SECONDS, source


def plan_scoring(
    model: PlannedModel, num_images: int, metrics: Sequence[str] = (), seconds: float = SCORING_SECONDS, processes_a_node: int = 1
) -> StagePlan:
    """`label_rewards.py`: decoding is counted; the metrics take the `seconds` of `scoring_seconds`, and memory that is not counted.

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
    memory = {"weights": weight_bytes(*networks), "activations": decode.peak_bytes} | ({"Q-Align": qalign} if qalign else {})
    return StagePlan(
        name="score",
        amount=f"{candidates:,} images; memory: decoding {'and Q-Align' if qalign else 'alone'}",
        flops=candidates * decode.flops / len(latents),
        moments={"decoding": memory},
        files={"scores": candidates * 8 * max(len(metrics), 9)},  # float64; the NR scores of the GT beside them are few
        seconds=candidates * seconds * model.pixels / 512**2,
        host=each_process(processes_a_node, {"decoded images": model.args.num_candidates * 3 * 4 * model.pixels}),
    )


def implied_utilisation(kind: str) -> tuple[float, dict[str, Any]]:
    """The share of a GPU's peak that the paper's hours of sampling mean for the FLOPs that are counted here; and the paper's numbers."""
    published = read_published(kind)
    paper = published["paper"]
    args = GenerateSettings(
        pretrained_model_name_or_path="-", controlnet_model_name_or_path="-", image_path="-", output_dir="-", mixed_precision="fp16",
        num_candidates=64, num_inference_steps=paper["num_inference_steps"], guidance_scale=paper["guidance_scale"],
    )  # fmt: skip
    stage = plan_sampling(PlannedModel(args, (128, 128), published), paper["candidates"] // args.num_candidates)
    return stage.flops / (paper["sampling_hours"] * 3600 * paper["gpus"] * paper["tflops"] * 1e12), paper


def assumed_utilisation(kind: str, work: str) -> float:
    """The share of a GPU's peak that batched "sampling" or "training" is taken to have, by configs/models; an assumption."""
    return float(read_published(kind)["assumed"][work])
