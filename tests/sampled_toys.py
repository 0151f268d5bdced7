"""Latents of toys: networks that know Gaussian data exactly, and the loop around them."""

import pytest
import torch
from conftest import settings_with

from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.sampling.seeds import candidate_generator
from dp2osr.sampling.settings import GenerateSettings

MEAN, STD = 0.7, 0.5  # of the Gaussian data that the toy models know
SHAPE = (4, 8, 8)


def exact_velocity(noisy, sigma):
    """E[ε - x_0 | x_σ] where x_0 is Gaussian: what a perfect flow model of such data predicts."""
    keep = 1 - sigma
    return (sigma - keep * STD**2) / (keep**2 * STD**2 + sigma**2) * (noisy - keep * MEAN) - MEAN


def loop_of(steps, scheduler, **levers):
    return LoopSettings(steps, levers.pop("guidance_scale", 1.0), scheduler, **levers)


def sample(backbone, controlnet, settings, count=2, first=0, shape=SHAPE, **more):
    """Latents of candidates of one random image, from generators of their own."""
    lr = torch.rand(1, 3, shape[1] * backbone.vae_scale, shape[2] * backbone.vae_scale, generator=torch.Generator().manual_seed(0))
    prompt, negative = backbone.encode_prompts(["cat"]), backbone.encode_prompts(["noise"])
    generators = [candidate_generator(0, "x", first + m) for m in range(count)]
    return backbone.sample(controlnet, backbone.prepare_control(lr), prompt, negative, generators, shape, settings, **more)


@pytest.fixture
def rows_of(monkeypatch):
    """A function of a backbone: how many rows each call of its network has, in turn."""

    def watch(backbone):
        seen, predict = [], backbone.predict

        def watched(nets, noisy, *rest):
            seen.append(len(noisy))
            return predict(nets, noisy, *rest)

        monkeypatch.setattr(backbone, "predict", watched)
        return seen

    return watch


def sampler_with(kind, **changes):
    settings = settings_with(
        GenerateSettings, pretrained_model_name_or_path=kind.model, controlnet_model_name_or_path=kind.controlnet, prompt_source="none",
        **{"num_inference_steps": 4, "guidance_scale": 3.0, **changes},
    )  # fmt: skip
    return GroupSampler(settings, "cpu")
