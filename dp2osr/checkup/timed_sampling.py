"""Denoising by our loop and by diffusers' pipeline on the same networks; and a candidate alone against the same one in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from dp2osr.backbones.base import Backbone, Prompt
from dp2osr.backbones.pipelines import DiffusersSampler
from dp2osr.checkup.cases import Case, photograph
from dp2osr.checkup.findings import NOTE, Findings
from dp2osr.checkup.machine import TimeLimit, counted_peak, gigabytes_above, held, least_seconds
from dp2osr.device import DTYPES
from dp2osr.sampling.decode import finish_images
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.resize import control_image
from dp2osr.sampling.seeds import candidate_generator
from dp2osr.sampling.settings import GenerateSettings

if TYPE_CHECKING:
    from dp2osr.checkup.settings import CheckupSettings

Run = Callable[[int, int], object]  # (denoising steps, candidates together)


class SampledModel:
    """A model that is ready to sample one image of its own size; `precision`: a key of `DTYPES`."""

    def __init__(self, case: Case, precision: str, device: torch.device) -> None:
        self.precision, self.device = precision, device
        self.held_before = held(device)
        self.prompt, self.negative = case.prompts(precision, device)
        self.backbone: Backbone = case.load(("vae", "denoiser"), precision, device)
        self.controlnet = case.controlnet(self.backbone, DTYPES[precision])
        self.settings: GenerateSettings = case.sampling_of(self.backbone)
        self.lr = photograph(self.backbone.native_size // 4)
        self.image = control_image(self.lr, 4, self.backbone.native_size, self.backbone.size_multiple)[0]
        self.control = self.backbone.prepare_control(self.image)

    @property
    def unguided(self) -> Prompt | None:
        """The negative prompt's embedding where it is used."""
        return self.negative if self.backbone.passes_a_step(float(self.settings.guidance_scale or 1)) == 2 else None

    def sample(self, steps: int, together: int) -> torch.Tensor:
        """Latents of so many candidates by our loop."""
        settings, backbone = self.settings, self.backbone
        loop = LoopSettings(steps, float(settings.guidance_scale or 1), str(settings.scheduler), float(settings.control_scale or 1))
        side = backbone.native_size // backbone.vae_scale
        shape = (backbone.latent_channels, side, side)
        return backbone.sample(self.controlnet, self.control, self.prompt, self.unguided, generators(together), shape, loop)

    def images(self, latents: torch.Tensor) -> torch.Tensor:
        """The images of latents as a user gets them."""
        return finish_images(self.backbone, latents.to("cpu", torch.float16), self.lr, 4, str(self.settings.align_method))


Built = Callable[[], SampledModel]  # built by the first line that needs it, where a failure is a finding


def generators(count: int) -> list[torch.Generator]:
    """Those of the first candidates of an image."""
    return [candidate_generator(0, "x", candidate) for candidate in range(count)]


def check_sampling(
    built: Built, label: dict[str, Any], batch_sizes: Sequence[int], settings: CheckupSettings, findings: Findings, limit: TimeLimit
) -> None:
    """Seconds of a step and of an image, and the peak, for each number of candidates together and both ways to sample."""
    pipeline = cache(lambda: DiffusersSampler(built().backbone, built().controlnet))

    def theirs(steps: int, together: int) -> object:
        model = built()
        guidance = float(model.settings.guidance_scale or 1)
        return pipeline().sample(model.image, model.prompt, model.unguided, generators(together), steps, guidance)

    ways: dict[str, Run] = {"ours": lambda steps, together: built().sample(steps, together), "diffusers": theirs}
    sizes = [(together, way) for together in batch_sizes for way in ways]
    for place, (together, way) in enumerate(sizes):
        share = limit.share(len(sizes) - place)
        findings.attempt(
            "sampling", {**label, "way": way, "together": together},
            partial(measure_way, built, ways[way], together, settings, share),
        )  # fmt: skip


def measure_way(built: Built, run: Run, together: int, settings: CheckupSettings, limit: TimeLimit) -> dict[str, Any]:
    """{column: value} of one way to sample: what a step takes is the difference of a short run and of one of a single step."""
    model = built()
    run(1, together)  # kernels are chosen, memory is taken
    with counted_peak(model.device) as peak:
        first = least_seconds(lambda: run(1, together), model.device, settings.repeats, limit.share(4))
        longer = least_seconds(lambda: run(1 + settings.steps, together), model.device, settings.repeats, limit)
    step = max(longer - first, 0.0) / settings.steps
    count = int(model.settings.num_inference_steps or 1)
    return {
        "step, s": step,
        "steps": count,
        "an image, s": (first + (count - 1) * step) / together,
        "peak, GB": gigabytes_above(peak, model.held_before),
    }


def check_pixels(built: Built, label: dict[str, Any], together: int, settings: CheckupSettings, findings: Findings) -> None:
    """The first candidate alone and in a batch of the largest size, in 8-bit levels."""
    label = {**label, "together": together, "steps": settings.pixel_steps}
    if together == 1:
        findings.add("pixels", {**label, NOTE: "not run: needs --batch_sizes above 1"})
        return
    findings.attempt("pixels", label, lambda: compare_pixels(built(), together, settings.pixel_steps))


def compare_pixels(model: SampledModel, together: int, steps: int) -> dict[str, Any]:
    """{column: value} of how far the same candidate's images lie apart."""
    latents = [model.sample(steps, count) for count in (1, together)]
    alone, among = (model.images(of_size)[0] for of_size in latents)
    apart = (alone - among).abs() * 255
    finite = bool(torch.isfinite(latents[1]).all())
    return {
        "largest difference, levels": round(apart.max().item()),
        "mean difference, levels": apart.mean().item(),
        "values that differ": f"{100 * (apart > 0.5).float().mean().item():.2g} %",
        "largest difference of latents": (latents[0][0].float() - latents[1][0].float()).abs().max().item(),
        "finite": finite,
    }
