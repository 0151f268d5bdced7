"""Candidates that branch from one shared sample: their distribution on Gaussian data, and what they depend on."""

import pytest
import torch
from conftest import ROOT, one_kind
from PIL import Image
from sampled_toys import MEAN, SHAPE, STD, exact_velocity, loop_of, rows_of, sample, sampler_with  # noqa: F401 - a fixture among them

from dp2osr.sampling.memory import passes


@pytest.fixture
def gaussian(backbone, monkeypatch):
    """A backbone of either kind that knows the data MEAN + STD · z: what it predicts is exact."""

    def predict(nets, noisy, time, *_):
        if backbone.kind == "flux":
            return [exact_velocity(noisy, float(time))]
        kept = backbone.noise_schedule.alphas_cumprod[int(time)]
        image, noise = kept.sqrt(), (1 - kept).sqrt()
        centred = (noisy - image * MEAN) / (kept * STD**2 + noise**2)
        x_0, epsilon = MEAN + image * STD**2 * centred, noise * centred
        return [image * epsilon - noise * x_0 if backbone.noise_schedule.config.prediction_type == "v_prediction" else epsilon]

    monkeypatch.setattr(backbone, "predict", predict)
    return backbone


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_candidates_that_branch_are_distributed_as_the_models_samples(gaussian, controlnet, share):
    """Mean and spread are the data's, and two of a group correlate as two noisy versions of one image at that level do."""
    steps, shape, generator = 48, (4, 64, 64), torch.Generator().manual_seed(9)
    settings = loop_of(steps, {"sd2": "dpm", "flux": "flow_unipc"}[gaussian.kind], branch_at=int(share * steps))
    trunks = [MEAN + STD * torch.randn((1, *shape), generator=generator) for _ in range(2)]
    groups = [sample(gaussian, controlnet, settings, first=2 * n, shape=shape, trunk=trunk) for n, trunk in enumerate(trunks)]
    drawn, plain = torch.stack(groups), sample(gaussian, controlnet, settings, count=4, shape=shape)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.01) and plain.std().item() == pytest.approx(STD, rel=0.04)
    assert drawn.std().item() == pytest.approx(plain.std().item(), rel=0.01)
    scheduler = gaussian.sampling_schedule(settings, shape)
    level = gaussian.noise_over_signal(scheduler.timesteps[settings.branch_at][None]).item()
    one, other = drawn[:, 0].flatten(), drawn[:, 1].flatten()
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].item() == pytest.approx(STD**2 / (STD**2 + level**2), abs=0.03)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler", "dpm", "unipc"])
@one_kind
def test_every_scheduler_begins_at_the_branch_with_its_own_scale(gaussian, controlnet, scheduler):
    """A solver that takes the branch's latents for those of another step, or scales them otherwise, misses the data by far."""
    settings = loop_of(24, scheduler, branch_at=12)
    trunk = MEAN + STD * torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(9))
    drawn = sample(gaussian, controlnet, settings, count=8, trunk=trunk)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.1) and drawn.std().item() == pytest.approx(STD, rel=0.2)


@pytest.mark.parametrize("kind", ["flux"], indirect=True)
def test_two_passes_a_step_begin_at_the_branch(gaussian, controlnet):
    settings = loop_of(12, "flow_heun", branch_at=6)
    trunk = MEAN + STD * torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(9))
    passes_told = []
    drawn = sample(gaussian, controlnet, settings, count=8, trunk=trunk, progress=passes_told.append)
    assert len(passes_told) == 2 * 6 - 1
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.1) and drawn.std().item() == pytest.approx(STD, rel=0.2)


def test_the_shared_sample_is_made_once_and_its_candidates_do_not_depend_on_their_batch(kind, rows_of):
    lr, drawn = Image.open(sorted((ROOT / "preset/test/lr").glob("*.png"))[0]).convert("RGB"), {}
    for batch in (1, 2, 3):
        sampler = sampler_with(kind, branch_at=2, num_candidates=3, batch_size=batch, guidance_scale=1.0)
        seen, passes_told = rows_of(sampler.backbone), []
        drawn[batch] = sampler.sample("x", lr, 3, progress=passes_told.append).latents.float()
        batches = {1: [1] * 6, 2: [2, 2, 1, 1], 3: [3, 3]}[batch]
        assert seen == [1] * 4 + batches
        assert sum(passes_told) == passes(sampler.backbone, sampler.settings, lr.size, 4, 3, batch)
    assert all((drawn[batch] - drawn[1]).abs().max() < 5e-3 for batch in (2, 3))
    assert torch.equal(sampler.sample("x", lr, 3, first=2).latents.float()[0], drawn[1][2])
    assert (drawn[1][0] - drawn[1][1]).abs().max() > 0.05
