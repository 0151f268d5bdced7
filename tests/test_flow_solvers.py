"""Solvers of a flow on Gaussian data, where it is known where the flow leads."""

from math import log2

import pytest
import torch
from conftest import KINDS
from sampled_toys import MEAN, SHAPE, STD, exact_velocity, loop_of, sample

from dp2osr.backbones import load_backbone
from dp2osr.errors import UserError
from dp2osr.sampling.seeds import candidate_generator


@pytest.fixture(scope="module")
def flux():
    return load_backbone(KINDS["flux"].model)


@pytest.fixture(scope="module")
def flux_controlnet(flux):
    return flux.load_controlnet(KINDS["flux"].controlnet)


@pytest.fixture
def gaussian_flux(flux, monkeypatch):
    """A FLUX that predicts `exact_velocity`; its times are in `flux.seen`."""
    flux.seen = []

    def predict(nets, noisy, sigma, *_):
        flux.seen.append(float(sigma))
        return [exact_velocity(noisy, float(sigma))]

    monkeypatch.setattr(flux, "predict", predict)
    yield flux
    del flux.seen


def flow_error(backbone, controlnet, scheduler, steps):
    """The largest distance from where the flow of Gaussian data leads exactly: from noise z to MEAN + STD · z."""
    noise = torch.cat([torch.randn((1, *SHAPE), generator=candidate_generator(0, "x", m)) for m in range(2)])
    return (sample(backbone, controlnet, loop_of(steps, scheduler)) - (MEAN + STD * noise)).abs().max().item()


@pytest.mark.parametrize(("scheduler", "order"), [("flow_euler", 1), ("flow_dpm", 2), ("flow_unipc", 2)])
def test_the_error_of_a_flow_solver_falls_with_its_order(gaussian_flux, flux_controlnet, scheduler, order):
    errors = [flow_error(gaussian_flux, flux_controlnet, scheduler, steps) for steps in (8, 64)]
    slope = log2(errors[0] / errors[1]) / 3
    assert abs(slope - order) < 0.5
    if order > 1:
        assert 2 * flow_error(gaussian_flux, flux_controlnet, scheduler, 16) < flow_error(gaussian_flux, flux_controlnet, "flow_euler", 16)


@pytest.mark.parametrize("scheduler", ["flow_dpm", "flow_unipc", "DPMSolverMultistepScheduler"])
def test_a_multistep_solver_takes_the_models_own_noise_levels_one_pass_each(gaussian_flux, flux_controlnet, scheduler):
    seen = {}
    for name in ("flow_euler", scheduler):
        gaussian_flux.seen.clear()
        sample(gaussian_flux, flux_controlnet, loop_of(5, name))
        seen[name] = list(gaussian_flux.seen)
    assert seen[scheduler] == seen["flow_euler"] and len(seen[scheduler]) == 5


def test_diffusers_sets_unipc_to_the_same_levels(flux):
    """With the shift and the levels of FLUX's pipeline."""
    import numpy as np
    from diffusers import UniPCMultistepScheduler

    theirs = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7), mu=flux.timestep_shift(*SHAPE[1:]))
    ours = flux.sampling_schedule(loop_of(7, "flow_unipc"), SHAPE)
    assert torch.allclose(ours.sigmas, theirs.sigmas, atol=2e-6)


@pytest.mark.parametrize("name", ["DEISMultistepScheduler", "SASolverScheduler", "dpm", "unipc", "flow_deis"])
def test_a_solver_that_cannot_go_down_a_flow_is_refused(flux, name):
    with pytest.raises(UserError, match=f"--scheduler {name}: not for a flow model; take one of flow_euler, .*flow_unipc"):
        flux.sampling_scheduler(name)


@pytest.mark.parametrize("scheduler", ["flow_dpm", "flow_unipc", "FlowMatchLCMScheduler"])
def test_a_candidate_of_each_flow_solver_follows_from_its_own_generator(flux, flux_controlnet, scheduler):
    one, two = (sample(flux, flux_controlnet, loop_of(3, scheduler), count) for count in (1, 2))
    assert (one[0] - two[0]).abs().max() < 1e-4 and (two[0] - two[1]).abs().max() > 0.1
