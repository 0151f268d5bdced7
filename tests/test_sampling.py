"""Sampling against diffusers' own pipeline; seeds, store, colour fix, sizes."""

import hashlib
import json
import shutil
import time

import numpy as np
import pytest
import torch
from conftest import MODEL_FLAGS, ROOT, SAMPLING, assert_one_clear_line, run_program, save_noise, settings_with
from PIL import Image
from programs import ForkedProgram, run_ranks

from dp2osr.backbones.tiles import samples_together
from dp2osr.data.part import evenly
from dp2osr.sampling.colour import adain_align, low_pass, wavelet_align
from dp2osr.sampling.decode import decode_group
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.resize import control_image, restore_size
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.sampling.seeds import candidate_generator
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.sampling.store import CandidateStore


def options(**changes):
    values = {
        "num_inference_steps": 4, "guidance_scale": 2.0, "scheduler": None, "prompt_source": "none", "prompt_file": None, "seed": 0,
        "negative_prompt": "noise, blur", "align_method": "adain", "batch_size": 4, "upscale": 4, "mixed_precision": "no",
        "control_scale": 1.0, "pretrained_vae_model_name_or_path": None,
    }  # fmt: skip
    return settings_with(GenerateSettings, **{**values, **changes})


def diffusers_pipeline(backbone, controlnet, scheduler):
    """The oracle: diffusers' own ControlNet pipeline on the same parts."""
    from diffusers import StableDiffusionControlNetPipeline

    pipeline = StableDiffusionControlNetPipeline(
        vae=backbone.vae, text_encoder=backbone.text_encoder, tokenizer=backbone.tokenizer, unet=backbone.unet, controlnet=controlnet,
        scheduler=backbone.sampling_scheduler(scheduler), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def lr():
    return Image.open(sorted((ROOT / "preset/test/lr").glob("*.png"))[0]).convert("RGB")


@pytest.mark.parametrize(("scheduler", "guidance"), [("ddpm", 2.0), ("ddpm", 1.0), ("ddim", 3.5), ("euler", 2.0)])
def test_latents_equal_those_of_the_diffusers_pipeline(sd2, sd2_controlnet, lr, scheduler, guidance):
    sampler = GroupSampler(options(scheduler=scheduler, guidance_scale=guidance), "cpu", sd2, sd2_controlnet)
    sampler.prompts = lambda image_id, lr: "cat, animal, fur"
    ours = sampler.sample("x", lr, 2).latents.float()

    pipeline = diffusers_pipeline(sd2, sd2_controlnet, scheduler)
    control, _, _ = control_image(lr, 4, 128, 16)
    theirs = pipeline(
        ["cat, animal, fur"] * 2, image=torch.cat([control] * 2), negative_prompt=["noise, blur"] * 2,
        guidance_scale=guidance, num_inference_steps=4,
        generator=[candidate_generator(0, "x", m) for m in range(2)], output_type="latent",
    ).images  # fmt: skip
    assert (ours - theirs).abs().max() <= 1e-4 + 2**-10 * theirs.abs().max()  # the store holds fp16


def test_sample_in_fp32_equals_the_pipeline_to_1e_4(sd2, sd2_controlnet, lr):
    """Without the store's fp16: the loop itself."""
    control, _, _ = control_image(lr, 4, 128, 16)
    settings = LoopSettings(num_inference_steps=20, guidance_scale=1.5, scheduler="ddpm", control_scale=0.7)
    prompt, negative = sd2.encode_prompts(["cat"]), sd2.encode_prompts(["noise"])
    ours = sd2.sample(sd2_controlnet, control, prompt, negative, [candidate_generator(1, "y", 0)], (4, 32, 32), settings)
    pipeline = diffusers_pipeline(sd2, sd2_controlnet, "ddpm")
    theirs = pipeline("cat", image=control, negative_prompt="noise", guidance_scale=1.5, num_inference_steps=20, output_type="latent",
                      controlnet_conditioning_scale=0.7, generator=[candidate_generator(1, "y", 0)]).images  # fmt: skip
    assert (ours - theirs).abs().max() <= 1e-4


def test_a_candidate_does_not_depend_on_its_batch(backbone, controlnet, lr):
    together = GroupSampler(options(batch_size=5), "cpu", backbone, controlnet).sample("z", lr, 5)
    alone = GroupSampler(options(batch_size=1), "cpu", backbone, controlnet).sample("z", lr, 5)
    difference = decode_group(backbone, together, "adain") - decode_group(backbone, alone, "adain")
    assert difference.abs().max() <= 2 / 255 + 1e-6
    assert together.seeds == alone.seeds and len(set(together.seeds)) == 5
    assert (together.latents[0] - together.latents[1]).abs().max() > 0.1


@pytest.mark.parametrize(("side", "together"), [(32, 8), (64, 5), (128, 4), (16, 32)])
def test_fewer_samples_of_a_large_image_are_denoised_at_once(sd2, sd2_controlnet, side, together):
    """The pixels of a pass stay those of `batch_size` images of the model's own size; of a tiled image, a tile counts."""
    sampler = GroupSampler(options(batch_size=8), "cpu", sd2, sd2_controlnet)
    assert samples_together(sd2, sampler.settings.tiling, 8, (4, side, side)) == together


def test_steered_prediction_equals_the_unets_own_forward(sd2, sd2_controlnet):
    generator = torch.Generator().manual_seed(0)
    noisy, timesteps = torch.randn(3, 4, 36, 28, generator=generator), torch.tensor([10, 400, 900])
    control = torch.rand(1, 3, 144, 112, generator=generator)
    prompt = sd2.encode_prompts(["mountain, sky"])
    with torch.no_grad():
        [ours] = sd2.predict([sd2_controlnet], noisy, timesteps, prompt, control)
        context = prompt["encoder_hidden_states"].expand(3, -1, -1)
        down, mid = sd2_controlnet(noisy, timesteps, context, control.expand(3, -1, -1, -1), return_dict=False)
        theirs = sd2.unet(noisy, timesteps, context, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    assert torch.allclose(ours, theirs, atol=1e-5)


def digest(folder):
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix in (".safetensors", ".png", ".json") and path.parent != folder
    )
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_command_gives_the_same_bytes(kind, sampled, lr_folder, tmp_path):
    run_program("gen_candidates.py", *kind.model_flags, *SAMPLING, "--image_path", lr_folder, "--output_dir", tmp_path / "again")
    assert digest(tmp_path / "again") == digest(sampled)


@pytest.mark.slow
def test_two_processes_give_the_same_candidates(kind, sampled, lr_folder, tmp_path):
    words = ["gen_candidates.py", *kind.model_flags, *SAMPLING, "--image_path", lr_folder, "--output_dir", tmp_path / "two"]
    if kind.name == "sd2":  # by a real launcher
        done = [run_program("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", *words, env={"OMP_NUM_THREADS": "1"})]
    else:
        done = run_ranks(2, *words)
    assert not any(process.returncode for process in done), done[0].stderr[-2000:]
    one, two = CandidateStore(sampled), CandidateStore(tmp_path / "two")
    assert one.ids() == two.ids()
    for image_id in one.ids():
        assert (one.read(image_id).latents.float() - two.read(image_id).latents.float()).abs().max() < 5e-3


def test_a_killed_run_goes_on_and_nothing_is_half_written(kind, sampled, lr_folder, tmp_path):
    words = ["gen_candidates.py", *kind.model_flags, *SAMPLING, "--image_path", lr_folder, "--output_dir", tmp_path / "killed"]
    process = ForkedProgram(words)
    deadline = time.time() + 120
    while not list((tmp_path / "killed" / "groups").glob("[!.]*")) and time.time() < deadline:
        time.sleep(0.02)
    process.kill()
    kept = digest(tmp_path / "killed")
    for image_id in CandidateStore(tmp_path / "killed").ids():
        CandidateStore(tmp_path / "killed").read(image_id)
    run_program(*words)
    assert digest(tmp_path / "killed") == digest(sampled)
    assert kept.items() <= digest(tmp_path / "killed").items()


def test_other_settings_are_refused_with_both_shown(kind, sampled, lr_folder):
    words = [word if word != "3" else "4" for word in SAMPLING]
    done = run_program("gen_candidates.py", *kind.model_flags, *words, "--image_path", lr_folder, "--output_dir", sampled, check=False)
    assert_one_clear_line(done, "seed is 3 there and 4 here")


@pytest.mark.parametrize(
    ("break_it", "mention"),
    [
        (lambda folder: (folder / "a.png").write_bytes(b"\x89PNG broken"), "a.png: not a readable image"),
        (lambda folder: (folder / "x.jpg").write_bytes((folder / "x.png").read_bytes()), "share the stem 'x'"),
        (lambda folder: (folder / "x.png").unlink(), "holds no image"),
    ],
)
def test_bad_images_are_one_line(tmp_path, break_it, mention):
    folder = tmp_path / "in"
    folder.mkdir()
    save_noise(folder / "x.png", (32, 32))
    break_it(folder)
    done = run_program("gen_candidates.py", *MODEL_FLAGS, *SAMPLING, "--image_path", folder, "--output_dir", tmp_path / "out", check=False)
    assert_one_clear_line(done, mention)
    assert not (tmp_path / "out").exists()


def test_a_model_folder_without_a_file_is_one_line(kind, tmp_path, lr_folder):
    broken = tmp_path / "model"
    shutil.copytree(kind.model, broken)
    part = "unet" if kind.name == "sd2" else "transformer"
    next((broken / part).glob("*.safetensors")).unlink()
    words = ["--pretrained_model_name_or_path", broken, "--controlnet_model_name_or_path", kind.controlnet]
    done = run_program("gen_candidates.py", *words, *SAMPLING, "--image_path", lr_folder, "--output_dir", tmp_path / "out", check=False)
    assert_one_clear_line(done, f"model/{part}")


def test_a_config_sets_flags_the_command_line_overrides_and_unknown_keys_name_the_nearest(tmp_path, lr_folder):
    config = tmp_path / "c.yaml"
    config.write_text("num_candidats: 3\n", encoding="utf-8")
    words = [*MODEL_FLAGS, "--image_path", lr_folder, "--output_dir", tmp_path / "out"]
    assert_one_clear_line(run_program("gen_candidates.py", *words, "--config", config, check=False), "num_candidats", "'num_candidates'")
    config.write_text("num_candidates: 3\nnum_inference_steps: 1\nguidance_scale: 1\nseed: 5\nmax_images: 1\n", encoding="utf-8")
    run_program("gen_candidates.py", *words, "--config", config, "--seed", "6")
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert (settings["num_candidates"], settings["seed"]) == (3, 6)


@pytest.mark.parametrize("size", [(32, 32), (33, 21), (50, 17)])
def test_any_size_comes_back_in_the_size_asked_for(backbone, controlnet, tmp_path, size):
    save_noise(tmp_path / "x.png", size)
    sampler = GroupSampler(options(num_inference_steps=1, guidance_scale=1.0), "cpu", backbone, controlnet)
    group = sampler.sample("x", Image.open(tmp_path / "x.png"), 1)
    assert sampler.images(group).shape == (1, 3, 4 * size[1], 4 * size[0])


def test_padding_is_cut_off_again():
    content, asked = (70, 45), (70, 45)
    image = torch.rand(1, 3, 48, 80)
    assert torch.equal(restore_size(image, content, asked), image[..., :45, :70])


def test_adain_gives_the_statistics_of_the_lr():
    torch.manual_seed(0)
    images, lr = torch.rand(2, 3, 40, 40) * 0.2, torch.rand(1, 3, 40, 40) * torch.tensor([0.3, 0.6, 1.0]).view(1, 3, 1, 1)
    aligned = adain_align(images, lr)
    assert torch.allclose(aligned.mean((2, 3)), lr.mean((2, 3)).expand(2, -1), atol=1e-5)
    assert torch.allclose(aligned.std((2, 3)), lr.std((2, 3)).expand(2, -1), atol=1e-3)


def test_wavelet_takes_the_low_frequencies_of_the_lr_and_keeps_detail():
    torch.manual_seed(0)
    detail, lr = 0.1 * torch.randn(1, 3, 96, 96), torch.full((1, 3, 96, 96), 0.7)
    aligned = wavelet_align(detail + 0.2, lr)
    assert aligned.mean().item() == pytest.approx(0.7, abs=0.01)
    assert torch.allclose(aligned - low_pass(aligned), detail - low_pass(detail), atol=0.02)


def test_test_program_restores_a_folder_of_any_sizes(kind, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save_noise(folder / "wide.png", (40, 20))
    Image.fromarray(np.zeros((24, 24, 4), dtype=np.uint8)).save(folder / "transparent.png")
    words = [
        *kind.model_flags,
        "--image_path",
        folder,
        "--output_dir",
        tmp_path / "out",
        "--upscale",
        "4",
        "--num_inference_steps",
        "1",
        "--sample_times",
        "2",
        "--save_prompts",
    ]
    run_program(kind.test_program, *words)
    assert (tmp_path / "out/txt/wide.txt").read_text() == "\n"
    assert Image.open(tmp_path / "out/transparent_00.png").getextrema()[3] == (0, 0)  # as transparent as it was
    assert Image.open(tmp_path / "out/wide_00.png").mode == "RGB"
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").glob("*.png")}
    assert sizes == {"wide_00.png": (160, 80), "wide_01.png": (160, 80), "transparent_00.png": (96, 96), "transparent_01.png": (96, 96)}


def test_a_rerun_keeps_results_and_other_settings_are_refused(kind, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    save_noise(folder / "a.png", (16, 16))
    words = [kind.test_program, *kind.model_flags, "--image_path", folder, "--output_dir", out, "--num_inference_steps", "1"]
    run_program(*words)
    first, written = (out / "a.png").read_bytes(), (out / "a.png").stat().st_mtime_ns
    assert "0 images written, 1 already there" in run_program(*words).stdout
    assert_one_clear_line(run_program(*words, "--seed", "1", check=False), "seed is 0 there and 1 here", "--overwrite")
    assert ((out / "a.png").read_bytes(), (out / "a.png").stat().st_mtime_ns) == (first, written)
    run_program(*words, "--seed", "1", "--suffix", "_other")  # beside them, under another name
    half = run_program(*words, "--overwrite", "--mixed_precision", "fp16")  # a CPU has no fp16: one warning, and fp32's result
    assert (out / "a.png").read_bytes() == first != (out / "a_other.png").read_bytes()
    assert half.stderr.count("warning: --mixed_precision fp16 needs a GPU") == 1


def test_offsets_part_a_folder_evenly():
    paths = [f"{photograph}_{crop}" for photograph in "abc" for crop in range(6)]
    parts = [evenly(paths, 6, offset) for offset in range(4)]
    assert all([path[0] for path in sorted(part)] == list("aabbcc") for part in parts)
    assert sorted(sum(parts[:3], [])) == paths and sorted(parts[3]) == sorted(parts[0])
    assert evenly(paths, None, 5) == evenly(paths, 18, 5) == paths


@pytest.mark.parametrize(
    ("script", "flag", "value"),
    [
        ("gen_candidates.py", "--num_candidates", "0"),
        ("gen_candidates.py", "--num_inference_steps", "0"),
        ("gen_candidates.py", "--upscale", "nan"),
        ("test_sd2b_controlnet.py", "--sample_times", "0"),
        ("test_sd2b_controlnet.py", "--upscale", "-2"),
        ("label_rewards.py", "--batch_size", "0"),
        ("scripts/evaluate.py", "--bootstrap", "0"),
    ],
)
def test_numbers_that_cannot_be_are_one_line(script, flag, value):
    assert_one_clear_line(run_program(script, flag, value, check=False), flag, "must be ", value)
