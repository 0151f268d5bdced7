"""What makes candidates cheaper: each lever against an oracle, and the samples without it."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise, product
from math import inf
from types import SimpleNamespace

import pytest
import torch
from conftest import KINDS, assert_one_clear_line, one_kind, run_program, settings_with
from PIL import Image
from sampled_toys import SHAPE, loop_of, rows_of, sample, sampler_with  # noqa: F401 - a fixture among them

from dp2osr.backbones import load_backbone
from dp2osr.backbones.trajectory import key_steps, steps_of
from dp2osr.errors import UserError
from dp2osr.sampling.generate import generate_candidates
from dp2osr.sampling.seeds import candidate_generator
from dp2osr.sampling.settings import LEVERS_OFF, GenerateSettings
from dp2osr.training.validation_sampling import sampling_differences, sampling_options


@pytest.fixture(scope="module")
def flux():
    return load_backbone(KINDS["flux"].model)


# -- guidance in an interval ---------------------------------------------------------------------------------------------


@pytest.fixture
def rows(backbone, rows_of):
    return rows_of(backbone)


def test_without_guidance_a_step_is_one_pass(backbone, controlnet, rows):
    sample(backbone, controlnet, loop_of(2, backbone.default_scheduler))
    assert rows == [2, 2]


def test_noise_over_signal_is_that_of_edm(sd2, flux):
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler.from_config(sd2.noise_schedule.config)
    theirs.set_timesteps(7)
    assert torch.allclose(sd2.noise_over_signal(theirs.timesteps), theirs.sigmas[:-1].double(), rtol=1e-3)
    assert flux.noise_over_signal(torch.tensor([1000.0, 500.0, 200.0])).tolist() == pytest.approx([inf, 1, 0.25])


def guided_by_hand(sd2, controlnet, control, low, high, scale):
    """One candidate by the two networks' own forward passes, guided at the steps of DDIM whose σ lies within the bounds."""
    prompt, negative = (sd2.encode_prompts([text])["encoder_hidden_states"] for text in ("cat", "noise"))
    scheduler = sd2.sampling_scheduler("ddim")
    scheduler.set_timesteps(6)
    latents, guided = torch.randn((1, *SHAPE), generator=candidate_generator(0, "x", 0)), []
    for timestep in scheduler.timesteps:
        kept = sd2.noise_schedule.alphas_cumprod[timestep]
        guided.append(bool(low < ((1 - kept) / kept).sqrt() <= high))
        noise = []
        for context in (prompt, negative):
            down, mid = controlnet(latents, timestep, context, control, return_dict=False)
            options = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            noise.append(sd2.unet(latents, timestep, context, **options).sample)
        weight = scale if guided[-1] else 1
        latents = scheduler.step(noise[1] + weight * (noise[0] - noise[1]), timestep, latents).prev_sample
    return latents, guided


@torch.no_grad()
@one_kind
def test_guidance_acts_within_the_interval_alone_and_costs_a_pass_there_alone(sd2, sd2_controlnet, backbone, rows):
    assert backbone.kind == "sd2"
    control = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, guided = guided_by_hand(sd2, sd2_controlnet, control, 0.7, 5.0, 4.0)
    assert {True, False} == set(guided[1:]) and not guided[0] and not guided[-1]
    ours = sample(backbone, sd2_controlnet, loop_of(6, "ddim", guidance_scale=4.0, guidance_interval=(0.7, 5.0)), count=1)
    assert (ours - expected).abs().max() < 1e-4
    assert rows == [2 if on else 1 for on in guided]


@one_kind
def test_an_interval_that_holds_all_steps_changes_no_byte(backbone, controlnet):
    plain, everywhere = (
        sample(backbone, controlnet, loop_of(3, "ddpm", guidance_scale=3.0, guidance_interval=interval)) for interval in (None, (0.0, 1e6))
    )
    assert torch.equal(plain, everywhere)


# -- features that are used again ----------------------------------------------------------------------------------------


def test_key_steps_are_one_of_k_and_closest_at_the_start():
    assert key_steps(50, 6) == [0, 1, 2, 5, 9, 15, 22, 30, 39]  # Faster Diffusion's nine: 0, 1, 2, 3, 5, 10, 15, 25, 35
    assert key_steps(8, 1) == list(range(8)) and key_steps(8, 8) == [0]
    for count, interval in product(range(1, 40), range(1, 12)):
        keys = key_steps(count, interval)
        gaps = [after - before for before, after in pairwise([*keys, count])]
        assert len(keys) == -(-count // interval) and keys[0] == 0 and all(gap > 0 for gap in gaps)
        assert sum(gaps[: len(gaps) // 2]) <= sum(gaps[-(len(gaps) // 2) :])


class Repeating:
    """A network that answers, between the key steps, as at the last one; it is called once a step."""

    def __init__(self, network, keys):
        self.network, self.keys, self.calls, self.answer = network, keys, -1, None

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls in self.keys:
            self.answer = self.network(*args, **options)
        return self.answer

    def __getattr__(self, name):
        return getattr(self.network, name)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_between_key_steps_the_networks_answer_as_at_the_last_one(backbone, controlnet, monkeypatch, guidance):
    """ControlNet, and of SD2 every part of the UNet up to its middle block, each wrapped so that it repeats itself."""
    steps, keys = 5, [0, 1, 2]
    settings = loop_of(steps, backbone.default_scheduler, guidance_scale=guidance)
    ours = sample(backbone, controlnet, replace(settings, cache_interval=2))
    plain = sample(backbone, controlnet, settings)
    repeated = [(controlnet, "forward")]
    if backbone.kind == "sd2":
        repeated += [(part, "forward") for part in (backbone.unet.conv_in, *backbone.unet.down_blocks, backbone.unet.mid_block)]
    for part, name in repeated:
        monkeypatch.setattr(part, name, Repeating(getattr(part, name), keys))
    assert torch.equal(sample(backbone, controlnet, settings), ours)
    assert not torch.equal(plain, ours)


def test_a_step_that_reuses_features_does_not_run_the_controlnet(backbone, controlnet, monkeypatch):
    counter = Repeating(controlnet.forward, range(100))
    monkeypatch.setattr(controlnet, "forward", counter)
    passes = []
    sample(backbone, controlnet, loop_of(8, backbone.default_scheduler, cache_interval=3), progress=passes.append)
    assert counter.calls + 1 == 3 and len(passes) == 8


def test_a_prediction_in_its_two_parts_is_the_same(backbone, controlnet):
    generator = torch.Generator().manual_seed(0)
    noisy, control = torch.randn(2, *SHAPE, generator=generator), torch.rand(1, 3, 32, 32, generator=generator)
    inputs = noisy, torch.tensor(0.4 if backbone.kind == "flux" else 400), backbone.encode_prompts(["cat"])
    control = backbone.prepare_control(control)
    with torch.no_grad():
        [whole] = backbone.predict([controlnet], *inputs, control, 0.7)
        parts = backbone.denoise(*inputs, backbone.steer(controlnet, *inputs, control, 0.7))
    assert torch.equal(whole, parts)


@one_kind
def test_a_step_with_another_number_of_passes_than_the_last_is_a_key_step(backbone):
    settings = loop_of(8, "ddim", guidance_scale=3.0, guidance_interval=(0.7, 5.0), cache_interval=8)
    steps = steps_of(backbone, settings, backbone.sampling_schedule(settings, SHAPE))
    changes = [index for index in range(8) if index == 0 or steps[index].guided != steps[index - 1].guided]
    assert [step.index for step in steps if step.key] == changes and len(changes) == 3


# -- what cannot be had --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("flux", {"guidance_interval": (0.1, 2)}, "guidance_interval 0.1 2: a base model of flux is told its guidance in the one pass"),
        ("sd2", {"guidance_interval": (0.1, 2), "guidance_scale": 1.0}, r"no effect where guidance is off \(--guidance_scale 1\)"),
        ("sd2", {"guidance_interval": (2, 2)}, "guidance_interval 2 2: LOW must be below HIGH"),
        ("sd2", {"guidance_interval": (50, 60)}, r"no step lies in it \(they are at .*\)"),
        ("sd2", {"branch_at": 4}, "branch_at 4: must be below --num_inference_steps, 4"),
        ("flux", {"branch_at": 2, "num_candidates": 1}, "branch_at 2: one sample of an image shares nothing"),
        ("sd2", {"scheduler": "PNDMScheduler"}, "PNDMScheduler does not know rescale_betas_zero_snr of this model's noise schedule"),
        ("sd2", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "does not know beta_start, beta_end, beta_schedule, rescale"),
        ("flux", {"cache_interval": 5}, "cache_interval 5: must be at most --num_inference_steps, 4"),
    ],
)
def test_a_lever_that_does_not_fit_is_refused_at_the_door(name, changes, told):
    with pytest.raises(UserError, match=told):
        sampler_with(KINDS[name], **changes)


def test_a_scheduler_that_cannot_begin_at_a_later_step_is_refused_at_the_door(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(KINDS["sd2"].model, model)
    config = model / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rescale_betas_zero_snr": False}))
    with pytest.raises(UserError, match="branch_at 2: --scheduler PNDMScheduler cannot begin at a later step"):
        sampler_with(SimpleNamespace(model=str(model), controlnet=KINDS["sd2"].controlnet), branch_at=2, scheduler="PNDMScheduler")


def test_the_programs_say_so_in_one_line(lr_folder, tmp_path):
    words = [*KINDS["sd2"].model_flags, "--image_path", lr_folder, "--output_dir", tmp_path / "out", "--guidance_scale", "1"]
    done = run_program("gen_candidates.py", *words, "--guidance_interval", "0.2", "5", check=False)
    assert_one_clear_line(done, "--guidance_interval 0.2 5: has no effect")
    assert not (tmp_path / "out").exists()


def test_features_are_not_kept_of_tiles(kind, tmp_path):
    Image.new("RGB", (64, 40)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="cache_interval 2: keeps features .*in tiles are wide.*--tile_size"):
        generate(kind, tmp_path, tmp_path / "out", cache_interval=2)
    assert not (tmp_path / "out").exists()


def generate(kind, lr_folder, folder, **levers):
    settings = settings_with(
        GenerateSettings, pretrained_model_name_or_path=kind.model, controlnet_model_name_or_path=kind.controlnet,
        image_path=str(lr_folder), output_dir=str(folder), num_candidates=2, num_inference_steps=3, guidance_scale=2.0,
        max_images=1, **levers,
    )  # fmt: skip
    return generate_candidates(settings)


@pytest.mark.parametrize(
    ("name", "lever", "value"), [("sd2", "guidance_interval", (0.2, 5.0)), ("flux", "cache_interval", 2), ("sd2", "branch_at", 1)]
)
def test_a_folder_takes_no_candidates_of_another_price(lr_folder, tmp_path, name, lever, value):
    store = generate(KINDS[name], lr_folder, tmp_path / "out", **{lever: value})
    assert store.settings[lever] == (list(value) if isinstance(value, tuple) else value)
    with pytest.raises(UserError, match=f"other settings .*{lever}"):
        generate(KINDS[name], lr_folder, tmp_path / "out")


@one_kind
def test_validation_takes_no_lever_and_says_so(kind, backbone):
    settings = {"scheduler": "dpm", "cache_interval": 3, "branch_at": 2, "guidance_interval": None}
    training = kind.training_settings([*kind.model_flags, "--candidates_dir", "c", "--output_dir", "out", "--scheduler", "ddpm"])
    options = sampling_options(training, settings, backbone)
    assert {name: getattr(options, name) for name in LEVERS_OFF} == LEVERS_OFF and options.scheduler == "ddpm"
    told = sampling_differences(options, settings, backbone)
    assert {"samples without the candidates' --cache_interval 3", "samples without the candidates' --branch_at 2"} <= set(told)
    assert not any("guidance_interval" in line for line in told)


def test_a_folder_from_before_there_were_levers_goes_on(lr_folder, tmp_path):
    store = generate(KINDS["sd2"], lr_folder, tmp_path / "out")
    record = {name: value for name, value in store.settings.items() if name not in LEVERS_OFF}
    (tmp_path / "out/settings.json").write_text(json.dumps(record))
    assert generate(KINDS["sd2"], lr_folder, tmp_path / "out").ids() == store.ids()
