"""The flow backbone against diffusers' own FLUX pipeline and the formulas of rectified flow."""

import math

import numpy as np
import pytest
import torch
from conftest import CONTROLNET, KINDS, MODEL, SHIPPED, assert_one_clear_line, read_log, run_program, write_made_up_scores
from PIL import Image
from safetensors.torch import load_file, save_file

from dp2osr.backbones import load_backbone
from dp2osr.backbones.flux_tokens import image_ids, pack, unpack
from dp2osr.backbones.tiles import WHOLE, Tiling
from dp2osr.errors import UserError
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.seeds import candidate_generator
from dp2osr.sampling.store import CandidateStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A FLUX of random weights around the embedded autoencoder."""
    output = tmp_path_factory.mktemp("flux") / "model"
    words = ["--vae", f"{MODEL}/vae", "--output_dir", output, "--width", "32", "--num_attention_heads", "2", "--num_layers", "3"]
    run_program("studies/make_tiny_flux.py", *words)
    return output


@pytest.fixture(scope="module")
def flux(folder):
    """With the shift and scale of FLUX.1-dev's latents."""
    backbone = load_backbone(folder)
    backbone.vae.register_to_config(shift_factor=0.1159, scaling_factor=0.3611)
    return backbone


@pytest.fixture(scope="module")
def steering(flux, folder):
    """A ControlNet that matters: large output layers."""
    controlnet = flux.load_controlnet(folder / "controlnet")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (controlnet.controlnet_x_embedder, *controlnet.controlnet_blocks):
            layer.weight += torch.randn(layer.weight.shape, generator=generator) / math.sqrt(layer.in_features)
    return controlnet


def pipeline_of(flux, controlnet):
    from diffusers import FluxControlNetPipeline

    pipeline = FluxControlNetPipeline(
        flux.sampling_scheduler("flow_euler"), flux.vae, flux.text_encoder, flux.tokenizer, flux.text_encoder_2, flux.tokenizer_2,
        flux.transformer, controlnet,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def posterior_mode(monkeypatch):
    """The pipeline draws the control latents from the posterior; here they are its mode, so that an LR image has one control."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def both_ways(backbone, controlnet, height, width, steps):
    """Latents of two candidates of a random LR image by the backbone and, packed, by diffusers' pipeline."""
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    shape = (4, height // 4, width // 4)
    settings = LoopSettings(num_inference_steps=steps, guidance_scale=2.5, scheduler="flow_euler", control_scale=0.7)
    streams = [[candidate_generator(0, "x", m) for m in range(2)] for _ in range(2)]
    prompt, control = backbone.encode_prompts(["cat, fur"]), backbone.prepare_control(lr)
    ours = backbone.sample(controlnet, control, prompt, None, streams[0], shape, settings)
    noise = torch.cat([torch.randn((1, *shape), generator=generator) for generator in streams[1]])
    theirs = pipeline_of(backbone, controlnet)(
        ["cat, fur"] * 2, control_image=torch.cat([lr * 2 - 1] * 2), height=height, width=width, guidance_scale=2.5,
        num_inference_steps=steps, latents=pack(noise), output_type="latent", controlnet_conditioning_scale=0.7,
        max_sequence_length=backbone.tokenizer_2.model_max_length,
    ).images  # fmt: skip
    return ours, theirs


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96)])
def test_latents_equal_those_of_the_diffusers_pipeline(flux, steering, posterior_mode, height, width):
    ours, theirs = both_ways(flux, steering, height, width, 8)
    assert (pack(ours) - theirs).abs().max() <= 1e-4
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    unguided = LoopSettings(num_inference_steps=8, guidance_scale=1.0, scheduler="flow_euler", control_scale=0.7)
    streams = [candidate_generator(0, "x", m) for m in range(2)]
    other = flux.sample(steering, flux.prepare_control(lr), flux.encode_prompts(["cat, fur"]), None, streams, ours.shape[1:], unguided)
    assert (other - ours).abs().max() > 1e-4  # guidance is heard


@pytest.mark.parametrize(("height", "width"), [(128, 128), (128, 176)])
def test_the_embedded_model_samples_as_the_pipeline_does_in_all_of_25_steps(posterior_mode, height, width):
    backbone = load_backbone(KINDS["flux"].model)
    ours, theirs = both_ways(backbone, backbone.load_controlnet(KINDS["flux"].controlnet), height, width, 25)
    assert (pack(ours) - theirs).abs().max() <= 1e-4


def test_large_images_are_denoised_in_tiles(flux, steering):
    lr, prompt = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)), flux.encode_prompts(["sea"])
    results = []
    for tiling in (WHOLE, Tiling(24, 8, 2), Tiling(12, 4, 2)):
        settings = LoopSettings(2, 2.5, "flow_euler", tiling=tiling)
        results.append(
            flux.sample(steering, flux.prepare_control(lr), prompt, None, [candidate_generator(0, "x", 0)], (4, 16, 24), settings)
        )
    whole, one_tile, tiles = results
    assert torch.equal(whole, one_tile)
    assert tiles.shape == whole.shape and not torch.equal(tiles, whole) and (tiles - whole).std() < whole.std()


def test_tiles_see_their_own_part_of_the_control_and_their_own_shift(flux, steering, monkeypatch):
    """With a network that answers with noise − control, the sampler must end at the control; the shift is that of a tile."""
    control = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(flux, "timestep_shift", lambda height, width: shifts.append((height, width)) or 1.0)
    monkeypatch.setattr(
        flux, "predict", lambda nets, noisy, sigma, prompt, part, scale: [(noisy - unpack(part, *noisy.shape[2:])) / torch.as_tensor(sigma)]
    )
    for tiling, seen in ((Tiling(12, 4, 2), (10, 12)), (Tiling(24, 8, 2), (16, 24))):
        shifts = []
        settings = LoopSettings(4, 1.0, "flow_euler", tiling=tiling)
        result = flux.sample(steering, pack(control), {}, None, [candidate_generator(0, "x", 0)], (4, 16, 24), settings)
        assert (result - control).abs().max() <= 1e-4
        assert shifts in ([], [seen])  # a schedule without dynamic shift asks for none


@pytest.mark.parametrize("scheduler", ["flow_euler", "flow_heun"])
def test_each_named_scheduler_samples(flux, steering, scheduler):
    lr, settings = torch.rand(1, 3, 32, 32), LoopSettings(2, 2.5, scheduler)
    latents = flux.sample(
        steering, flux.prepare_control(lr), flux.encode_prompts([""]), None, [candidate_generator(0, "x", 0)], (4, 8, 8), settings
    )
    assert latents.shape == (1, 4, 8, 8) and torch.isfinite(latents).all()


def test_packing_is_that_of_diffusers_and_goes_back():
    from diffusers import FluxControlNetPipeline as Pipeline

    latents = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack(latents), Pipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(unpack(pack(latents), 6, 10), latents)
    assert torch.equal(image_ids(3, 5), Pipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32))


def test_a_perfect_velocity_leads_from_noise_to_the_image(flux):
    """Along x_σ the velocity is constant: one Euler step from any σ to 0 gives x_0."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 4, 8, 8, generator=generator)
    sigmas = torch.tensor([0.1, 0.6, 1.0])
    noisy, velocity = flux.add_noise(latents, noise, sigmas), flux.target(latents, noise, sigmas)
    assert torch.allclose(noisy - sigmas.view(-1, 1, 1, 1) * velocity, latents, atol=1e-6)
    assert torch.equal(noisy[2], noise[2])


def test_timesteps_are_logit_normal_within_their_share(flux):
    draw = flux.draw_timesteps(20_000, torch.Generator().manual_seed(0)).double()
    scores = torch.logit(draw)
    assert abs(scores.mean()) < 0.03 and abs(scores.std() - 1) < 0.03
    part = flux.draw_timesteps(20_000, torch.Generator().manual_seed(0), (0.4, 1.0)).double()
    whole = draw[draw >= 0.4]
    assert part.min() >= 0.4 - 1e-6
    assert np.allclose(np.quantile(part, [0.25, 0.5, 0.75]), np.quantile(whole, [0.25, 0.5, 0.75]), atol=0.01)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.4), (-1.0, 0.5)])
def test_the_density_of_timesteps_is_settable(flux, mean, std):
    scores = torch.logit(flux.draw_timesteps(20_000, torch.Generator().manual_seed(0), logit_mean=mean, logit_std=std).double())
    assert abs(scores.mean() - mean) < 0.03 * std and abs(scores.std() / std - 1) < 0.03
    uniform = flux.draw_timesteps(20_000, torch.Generator().manual_seed(0), (0.4, 1.0), timestep_sampling="uniform").double()
    assert np.allclose(np.quantile(uniform, [0, 0.25, 0.5, 0.75, 1]), [0.4, 0.55, 0.7, 0.85, 1.0], atol=0.01)


def test_the_control_of_a_prediction_reaches_every_token_and_is_shared_by_the_batch(flux, steering):
    generator = torch.Generator().manual_seed(0)
    noisy, lr = torch.randn(2, 4, 16, 16, generator=generator), torch.rand(1, 3, 64, 64, generator=generator)
    prompt, sigmas = flux.encode_prompts(["sea"]), torch.tensor([0.7, 0.7])
    control = flux.prepare_control(lr)
    [one], [both] = (flux.predict([steering], noisy[:count], sigmas[:count], prompt, control) for count in (1, 2))
    assert torch.allclose(one[0], both[0], atol=1e-5)
    [other] = flux.predict([steering], noisy[:1], sigmas[:1], prompt, flux.prepare_control(1 - lr))
    assert ((one - other).abs().amax(1) > 1e-6).all()


def test_a_single_file_tells_its_layers_and_another_kind_is_refused(flux, folder, tmp_path, sd2):
    file = folder / "controlnet/diffusion_pytorch_model.safetensors"
    loaded = flux.load_controlnet(file)
    assert (loaded.config.num_layers, loaded.config.num_single_layers) == (2, 0)
    with pytest.raises(UserError, match="has 2 blocks where --num_double_layers says 4"):
        flux.load_controlnet(file, num_double_layers=4)
    with pytest.raises(UserError, match="sd2 is wanted"):
        load_backbone(folder, kind="sd2")
    with pytest.raises(UserError, match="one of SD2"):
        flux.load_controlnet(f"{CONTROLNET}/diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="one of FLUX"):
        sd2.load_controlnet(file)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no ControlNet at all"):
        flux.load_controlnet(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="not for a flow model"):
        flux.sampling_scheduler("ddpm")


@pytest.mark.parametrize("as_file", [False, True])
def test_a_controlnet_of_another_base_is_refused_with_both_sides(flux, folder, as_file):
    path = SHIPPED["flux"].controlnet + ("/diffusion_pytorch_model.safetensors" if as_file else "")
    with pytest.raises(UserError) as error:
        flux.load_controlnet(path)
    theirs, ours = "6 attention heads and 32 channels in a head", f"the base {folder} has 2 and 16"
    assert f"{path}: is a ControlNet of {theirs}, {ours}; give the ControlNet of this base" == str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"joint_attention_dim": 48}, "of 48 T5 channels, the base .* has 64;"),
        ({"pooled_projection_dim": 48, "in_channels": 64}, "of 64 channels in a token and 48 CLIP channels, the base .* has 16 and 64;"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_controlnet_of_other_inputs_is_refused_with_both_sides(flux, folder, tmp_path, changes, told, as_file):
    from diffusers import FluxControlNetModel

    config = FluxControlNetModel.load_config(folder / "controlnet")
    FluxControlNetModel.from_config({**config, **changes}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=told):
        flux.load_controlnet(tmp_path / "diffusion_pytorch_model.safetensors" if as_file else tmp_path)


def test_a_controlnet_without_guidance_needs_its_config_and_one_of_several_modes_is_refused(flux, folder, tmp_path):
    from diffusers import FluxControlNetModel

    config = FluxControlNetModel.load_config(folder / "controlnet")
    FluxControlNetModel.from_config({**config, "guidance_embeds": False}).save_pretrained(tmp_path / "plain")
    assert not flux.load_controlnet(tmp_path / "plain").config.guidance_embeds
    with pytest.raises(UserError, match="does not take the guidance scale as an input, the base does; give it as a folder"):
        flux.load_controlnet(tmp_path / "plain/diffusion_pytorch_model.safetensors")
    FluxControlNetModel.from_config({**config, "num_mode": 3}).save_pretrained(tmp_path / "union")
    with pytest.raises(UserError, match="takes a control mode"):
        flux.load_controlnet(tmp_path / "union")


def test_flux_1_dev_and_its_controlnet_have_the_published_size():
    """FLUX.1-dev's config (diffusers' defaults with guidance) on the meta device: 11.9 B, and 1.44 B for four double blocks."""
    from diffusers import FluxControlNetModel, FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=19, num_single_layers=38, guidance_embeds=True)
        controlnet = FluxControlNetModel.from_transformer(transformer, 4, 0, load_weights_from_transformer=False)
    count = [sum(parameter.numel() for parameter in model.parameters()) / 1e9 for model in (transformer, controlnet)]
    assert count == pytest.approx([11.9, 1.44], abs=0.01)


def test_sample_train_and_restore_with_the_same_programs(folder, lr_folder, tmp_path):
    """Random weights: what is checked is that every stage takes the model, that the policy moves and that it can be used."""
    model = ["--pretrained_model_name_or_path", folder]
    start = [*model, "--controlnet_model_name_or_path", folder / "controlnet"]
    steps = ["--num_inference_steps", "2", "--seed", "3"]
    store = tmp_path / "store"
    run_program("gen_candidates.py", *start, *steps, "--image_path", lr_folder, "--output_dir", store, "--num_candidates", "4")
    assert CandidateStore(store).settings["scheduler"] == "flow_euler"
    write_made_up_scores(store)
    words = [
        *start,
        "--candidates_dir",
        store,
        "--reward_config",
        store / "reward.yaml",
        "--output_dir",
        tmp_path / "policy",
        "--top_n",
        "2",
    ]
    training = [
        "--groups_per_step",
        "2",
        "--max_train_steps",
        "3",
        "--learning_rate",
        "1e-3",
        "--report_to",
        "none",
        "--gradient_checkpointing",
    ]
    run_program("train_flux_dpo.py", *words, *training)
    log = read_log(tmp_path / "policy/train_log.jsonl")
    assert log[0]["implicit_accuracy"] == 0.5 and log[-1]["margin"] != 0
    before, after = load_file(folder / "controlnet/diffusion_pytorch_model.safetensors"), load_file(tmp_path / "policy/model.safetensors")
    assert before.keys() == after.keys() and any((before[key] - after[key]).abs().max() > 1e-5 for key in before)
    one = sorted(lr_folder.iterdir())[0]
    policy = [*model, "--controlnet_model_name_or_path", tmp_path / "policy/model.safetensors", "--num_double_layers", "2"]
    run_program("test_flux_controlnet.py", *policy, *steps, "--image_path", one, "--upscale", "4", "--output_dir", tmp_path / "sr")
    lr, sr = Image.open(one), Image.open(tmp_path / "sr" / one.name)
    assert sr.size == (4 * lr.width, 4 * lr.height)
    words[words.index(tmp_path / "policy")] = tmp_path / "other"
    assert_one_clear_line(run_program("train_sd2_dpo.py", *words, check=False), "flux", "sd2 is wanted")
    assert not (tmp_path / "other/settings.json").exists()
