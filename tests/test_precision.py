"""What a run in 16 bits keeps in 32: latents, guidance and the scheduler's state while sampling."""

import torch

from dp2osr.backbones import load_backbone
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.seeds import candidate_generator

STEPS = 12


class Schedule:
    """A scheduler that remembers which precisions its steps were given; `dtype`: what it keeps latents in, as the loop once did."""

    def __init__(self, scheduler, dtype):
        self.scheduler, self.dtype, self.seen = scheduler, dtype, set()
        self.step = self.watched(scheduler.step)

    def __getattr__(self, name):
        return getattr(self.scheduler, name)

    def watched(self, step):
        def take(prediction, timestep, latents, generator=None, **options):
            self.seen |= {prediction.dtype, latents.dtype}
            if generator is not None:
                options["generator"] = generator
            [result, *_] = step(prediction.to(self.dtype), timestep, latents.to(self.dtype), **options)
            return [result.to(self.dtype).float()]

        return take


def sampled(kind, dtype, monkeypatch, kept_in=torch.float32):
    """(latents of two candidates by a backbone in `dtype`, the precisions that its scheduler was given)."""
    backbone = load_backbone(kind.model, dtype=dtype)
    controlnet = backbone.load_controlnet(kind.controlnet)
    made, real = [], backbone.sampling_schedule

    def schedule(settings, shape):
        made.append(Schedule(real(settings, shape), kept_in))
        return made[-1]

    monkeypatch.setattr(backbone, "sampling_schedule", schedule)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shape = (backbone.latent_channels, 64 // backbone.vae_scale, 64 // backbone.vae_scale)
    latents = backbone.sample(
        controlnet, backbone.prepare_control(image), backbone.encode_prompts(["cat"]), backbone.encode_prompts(["noise"]),
        [candidate_generator(0, "x", m) for m in range(2)], shape, LoopSettings(STEPS, 2.5, {"sd2": "ddim"}.get(kind.name, "flow_euler")),
    )  # fmt: skip
    return latents, made[-1].seen


def test_in_16_bits_only_the_network_rounds(kind, monkeypatch):
    exact, _ = sampled(kind, torch.float32, monkeypatch)
    latents, seen = sampled(kind, torch.bfloat16, monkeypatch)
    rounded, _ = sampled(kind, torch.bfloat16, monkeypatch, kept_in=torch.bfloat16)
    assert seen == {torch.float32} and latents.dtype == torch.float32
    assert (latents - exact).square().mean() < (rounded - exact).square().mean()
    assert not torch.equal(latents, latents.bfloat16().float())
