"""The tiny preset's own makers: autoencoder start, tokenizer, baseline training and its resume; a full disk."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from baselines import BASELINE, made_trainer, train_controlnet
from conftest import CONTROLNET, MODEL, MODEL_FLAGS, ROOT, SAMPLING, assert_one_clear_line, read_log, run_program, save_noise, settings_with
from programs import run_ranks
from safetensors.torch import load_file

from dp2osr.cli import parse
from dp2osr.data.crops import CropSource, to_tensor
from dp2osr.errors import UserError
from dp2osr.training.baseline_checks import check_baseline
from dp2osr.training.baseline_settings import BaselineSettings
from dp2osr.training.settings import TrainSettings

sys.path.insert(0, str(ROOT / "scripts"))  # the programs, which are called in this process


def untrained_vae(start):
    from diffusers import AutoencoderKL

    from studies.autoencoder import linear_start

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1, latent_channels=4, norm_num_groups=1, mid_block_add_attention=False,
    )  # fmt: skip
    if start:
        linear_start(vae)
    return vae


def test_the_linear_start_is_an_interpolated_block_mean():
    from studies.autoencoder import evaluate_autoencoder

    crops = to_tensor([crop for _, crop in CropSource(ROOT / "preset/test/gt", 128, 0).draw(0, 6)])
    started, random = (evaluate_autoencoder(untrained_vae(start), crops) for start in (True, False))
    assert started["psnr"] > 20 > 16 > random["psnr"]
    assert started["ciede2000"] < 10 < random["ciede2000"]


def test_whitening_changes_the_latents_and_not_the_images():
    from studies.autoencoder import whiten_latents

    crops = to_tensor([crop for _, crop in CropSource(ROOT / "preset/test/gt", 128, 0).draw(0, 12)])
    vae = untrained_vae(start=True)
    with torch.no_grad():
        before = vae.decode(vae.encode(crops * 2 - 1).latent_dist.mode()).sample
        whiten_latents(vae, crops)
        latents = vae.encode(crops * 2 - 1).latent_dist.mode()
        after = vae.decode(latents).sample
    assert (after - before).abs().max() < 1e-3
    flat = latents.transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 1e-3
    assert (torch.cov(flat) - torch.eye(4)).abs().max() < 1e-2
    assert vae.config.scaling_factor == 1.0


@torch.no_grad()
def test_the_linear_start_of_a_controlnet_shows_the_unet_the_colours_of_the_lr(sd2):
    from diffusers import ControlNetModel

    from studies.tiny_models import linear_control_start

    controlnet = ControlNetModel.from_unet(sd2.unet, conditioning_embedding_out_channels=(8, 16, 32))
    linear_control_start(controlnet)
    control, noisy = torch.rand(2, 3, 64, 64), torch.randn(2, 4, 16, 16)
    context = sd2.encode_prompts([""])["encoder_hidden_states"].expand(2, -1, -1)
    down, _ = controlnet(noisy, 500, encoder_hidden_states=context, controlnet_cond=control, return_dict=False)
    assert torch.allclose(down[0][:, :3], torch.nn.functional.avg_pool2d(control, 4) - 0.5, atol=1e-5)


def test_the_embedded_autoencoder_keeps_light_and_colour(shipped_sd2):
    from studies.autoencoder import evaluate_autoencoder

    crops = to_tensor([crop for _, crop in CropSource(ROOT / "preset/test/gt", 128, 0).draw(0, 26)])
    scores = evaluate_autoencoder(shipped_sd2.vae, crops)
    assert scores["psnr"] > 28 and scores["ciede2000"] < 4


def test_tokenizer_round_trips_words_that_it_never_saw(sd2):
    tokenizer = sd2.tokenizer
    ids = tokenizer("Mountain, zebra crossing", padding="max_length", max_length=77)["input_ids"]
    assert len(ids) == 77 and tokenizer.unk_token_id not in ids[1 : ids.index(tokenizer.eos_token_id)]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",") == "mountain, zebra crossing"


def test_prompts_change_the_prediction(sd2):
    embeddings = sd2.encode_prompts(["", "mountain, sky", "noise, blur"])["encoder_hidden_states"]
    assert embeddings.shape[:2] == (3, 77)
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-2


def test_errors_are_weighed_as_the_image_feels_them():
    """A linear decoder: the weighted error of a latent is the squared error of its image, up to one factor."""
    from dp2osr.training.regression import image_metric

    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 4, generator=generator)
    decoder = SimpleNamespace(device="cpu", decode_latents=lambda latents: torch.einsum("kc,bchw->bkhw", matrix, latents))
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    metric = image_metric(decoder, latents, 1.0)
    errors = torch.randn(50, 4, generator=generator)
    weighted, felt = torch.einsum("bc,cd,bd->b", errors, metric, errors), (errors @ matrix.T).square().sum(1)
    assert torch.allclose(weighted / felt, torch.full((50,), 4 / matrix.square().sum().item()), rtol=1e-3)
    assert metric.trace() == pytest.approx(4)
    assert torch.allclose(image_metric(decoder, latents, 0.3), 0.3 * metric + 0.7 * torch.eye(4), atol=1e-5)


def test_crops_follow_from_seed_and_step_alone():
    source = CropSource(ROOT / "preset/test/gt", 64, 5)
    first = source.draw(3, 4)
    source.draw(9, 2)
    again = CropSource(ROOT / "preset/test/gt", 64, 5).draw(3, 4)
    assert all(a == b and np.array_equal(x, y) for (a, x), (b, y) in zip(first, again, strict=True))
    assert not np.array_equal(source.draw(4, 4)[0][1], first[0][1])


def test_baseline_training_resumes_to_the_same_weights(tmp_path):
    run_program(*BASELINE, "--max_train_steps", "4", "--output_dir", tmp_path / "whole")
    run_program(*BASELINE, "--max_train_steps", "4", "--output_dir", tmp_path / "cut")
    (tmp_path / "cut/checkpoint-4.pt").unlink()
    done = run_program(*BASELINE, "--max_train_steps", "4", "--output_dir", tmp_path / "cut")
    assert done.returncode == 0
    for part in ("controlnet", "model/unet"):
        whole, cut = (load_file(tmp_path / run / part / "diffusion_pytorch_model.safetensors") for run in ("whole", "cut"))
        assert all(torch.equal(value, cut[key]) for key, value in whole.items())
    assert [record["step"] for record in read_log(tmp_path / "whole/train_log.jsonl")] == [2, 4]
    made = ["--pretrained_model_name_or_path", tmp_path / "whole/model", "--controlnet_model_name_or_path", tmp_path / "whole/controlnet"]
    images = ["--image_path", ROOT / "preset/test/lr", "--max_images", "1"]
    run_program("gen_candidates.py", *made, *SAMPLING, *images, "--output_dir", tmp_path / "candidates")


@pytest.mark.slow
def test_two_processes_train_one_baseline(tmp_path):
    """Processes that do not find each other would each train and log a baseline of their own."""
    done = run_ranks(2, *BASELINE, "--max_train_steps", "2", "--output_dir", tmp_path / "two")
    assert not any(process.returncode for process in done), done[0].stderr[-2000:]
    assert [record["step"] for record in read_log(tmp_path / "two/train_log.jsonl")] == [2]
    assert json.loads((tmp_path / "two/settings.json").read_text())["num_processes"] == 2


def test_a_rank_with_another_flag_or_other_photographs_says_so_before_the_first_step(tmp_path):
    words = [*BASELINE, "--max_train_steps", "2"]
    done = run_ranks(2, *words, "--output_dir", tmp_path / "rate", more={1: ["--learning_rate", "5e-3"]})
    assert_one_clear_line(done[1], "rank 1 of 2", "learning_rate is 0.005 here and 0.001 on rank 0")
    (tmp_path / "few").mkdir()
    for path in sorted((ROOT / "preset/train/gt").glob("*.png"))[:5]:
        shutil.copy(path, tmp_path / "few")
    done = run_ranks(2, *words, "--output_dir", tmp_path / "few_photographs", more={1: ["--train_dir", tmp_path / "few"]})
    assert_one_clear_line(done[1], "rank 1 of 2", "photographs is '5 photographs")
    assert not list(tmp_path.glob("*/checkpoint-*"))


def test_a_guidance_range_upside_down_is_one_line(tmp_path):
    done = run_program(*BASELINE, "--guidance_range", 3, 1, "--output_dir", tmp_path / "out", check=False)
    assert_one_clear_line(done, "--guidance_range 3 1: LOW is above HIGH")
    assert not (tmp_path / "out").exists()


def test_a_pool_window_of_the_latents_is_the_same_window_of_the_control(shipped_kind, tmp_path):
    trainer = made_trainer(tmp_path, shipped_kind, "--pool_size", 3, "--resolution", 128, "--window", 16, "--drop_share", 0)
    numbers, latents, control, prompts = next(trainer.batches(0))
    backbone = trainer.backbone
    assert list(numbers) == [0, 1, 2, 3] and latents.shape == (4, backbone.latent_channels, 16, 16) and prompts == [0] * 4
    if backbone.encodes_control:
        corner = torch.zeros(4, dtype=torch.int64)
        tokens = backbone.cut_control(control, 16, corner, corner, 16).reshape(4, 8, 8, -1, 2, 2)
        control = backbone.decode_latents(tokens.permute(0, 3, 1, 4, 2, 5).reshape(4, -1, 16, 16))
    assert control.shape == (4, 3, 64, 64)
    coarse = [torch.nn.functional.avg_pool2d(images, 16).flatten(1) for images in (backbone.decode_latents(latents), control)]
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(*coarse, strict=True)]
    assert min(found) > 0.6 and sorted(found)[1] > 0.9, found  # the fourth shows little but noise


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which needs root")
def test_a_full_disk_is_one_line(tmp_path, lr_folder):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        words = [*MODEL_FLAGS, *SAMPLING, "--image_path", lr_folder, "--output_dir", small / "out"]
        done = run_program("gen_candidates.py", *words, "--num_candidates", "24", check=False)
        assert_one_clear_line(done, "disk is full")
        assert not list((small / "out/groups").glob(".*"))
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_interrupt_is_one_line(capsys):
    from dp2osr.errors import run

    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 130 and "the same command does what is left" in capsys.readouterr().err


def test_sampling_options_of_validation_have_all_that_the_sampler_reads():
    from dp2osr.backbones.flux import FluxBackbone
    from dp2osr.training.validation_sampling import sampling_options

    given = {"num_inference_steps": 2, "guidance_scale": None, "align_method": None, "upscale": None}
    args = settings_with(TrainSettings, validation_candidates=2, validation_prompt_file="prompts.json", validation_image_path="-", **given)
    backbone = SimpleNamespace(kind="flux", vae_scale=4, default_scheduler=FluxBackbone.default_scheduler)
    backbone.published_sampling = FluxBackbone.published_sampling
    stored = {"num_inference_steps": 3, "guidance_scale": 1.0, "align_method": "wavelet", "negative_prompt": None, "upscale": 2}
    stored |= {"scheduler": "flow_heun", "control_scale": 0.9, "tiling": {"size": 48, "overlap": 16, "multiple": 2}}
    options = sampling_options(args, stored, backbone)
    assert (options.num_inference_steps, options.guidance_scale, options.scheduler) == (2, 1.0, "flow_heun")
    assert (options.align_method, options.control_scale, options.upscale) == ("wavelet", 0.9, 2)
    assert (options.tile_size, options.tile_overlap) == (192, 64)
    assert (options.prompt_source, options.prompt_file, options.batch_size) == ("file", "prompts.json", 2)
    assert options.negative_prompt
    old = sampling_options(replace(args, num_inference_steps=None), {}, backbone)  # of before it was written down
    assert (old.num_inference_steps, old.guidance_scale, old.scheduler, old.align_method) == (25, 2.5, "flow_euler", "adain")
    assert old.tile_size is None and old.upscale == 4


def test_a_baseline_grows_where_its_rate_does_not_depend_on_the_steps_and_is_readable_for_the_group(tmp_path):
    steady = ["--full_window_share", "1"]
    before = os.umask(0o027)
    try:
        train_controlnet(*steady, "--max_train_steps", "4", "--output_dir", tmp_path / "whole")
    finally:
        os.umask(before)
    train_controlnet(*steady, "--max_train_steps", "2", "--output_dir", tmp_path / "grown")
    train_controlnet(*steady, "--max_train_steps", "4", "--output_dir", tmp_path / "grown")
    for part in ("controlnet", "model/unet"):
        whole, grown = (load_file(tmp_path / run / part / "diffusion_pytorch_model.safetensors") for run in ("whole", "grown"))
        assert all(torch.equal(value, grown[key]) for key, value in whole.items())
    written = [*(tmp_path / "whole").rglob("*.safetensors"), *(tmp_path / "whole").glob("*.pt")]
    assert len(written) == 6 and {path.stat().st_mode & 0o777 for path in written} == {0o640}
    with pytest.raises(UserError, match="has 4 steps already, --max_train_steps 3 is fewer"):
        train_controlnet(*steady, "--max_train_steps", "3", "--output_dir", tmp_path / "grown")
    with pytest.raises(UserError, match="max_train_steps is 4 there and 5 here"):
        train_controlnet(*steady, "--lr_scheduler", "cosine", "--max_train_steps", "5", "--output_dir", tmp_path / "grown")
    shutil.rmtree(tmp_path / "whole/controlnet")  # a stop between the last checkpoint and its models
    train_controlnet(*steady, "--max_train_steps", "4", "--output_dir", tmp_path / "whole")
    assert (tmp_path / "whole/controlnet/config.json").exists()


@pytest.mark.parametrize(
    ("more", "mention"),
    [
        (["--window", "17"], "--window 17: a crop of --resolution 64 has 16 latent pixels a side"),
        (["--resolution", "65"], "--resolution 65: a crop of this model has a multiple of 8 pixels a side; take 64"),
        (["--window", "7"], "--window 7: a window has an even number of latent pixels a side; take 8"),
        (["--resolution", "4096"], "photographs looked at cannot be used"),
        (["--drop_share", "0.9"], "are above 1 together"),
        (["--num_double_layers", "2"], "--num_double_layers: would do nothing with a base model of sd2"),
        (["--guidance_range", "1", "2"], "--guidance_range: would do nothing with a base model of sd2"),
        (["--controlnet_model_name_or_path", CONTROLNET], "--conditioning_channels: would do nothing with --controlnet_model_name_or_path"),
        (["--prompt_file", ROOT / "preset/models/tiny-sd2/model_index.json"], "must map image ids to strings"),
        (["--degradation", "misspelt"], "misspelt"),
    ],
)
def test_a_first_command_for_a_baseline_that_fails_is_one_line_and_leaves_nothing(tmp_path, more, mention):
    with pytest.raises(UserError, match=re.escape(mention)):
        train_controlnet(*more, "--max_train_steps", "2", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "mention"),
    [
        (["--lr_scheduler", "cosin"], "--lr_scheduler"),
        (["--full_window_share", "2"], "must lie between 0 and 1"),
        (["--drop_share", "1.5"], "must lie between 0 and 1"),
        (["--max_grad_norm", "nan"], "must be at least 0"),
        (["--learning_rate", "inf"], "must be at least 0 and finite"),
        (["--seed", "99999999999999999999"], "must be at most"),
    ],
)
def test_numbers_of_a_baseline_without_a_meaning_are_one_line(tmp_path, capsys, more, mention):
    with pytest.raises(SystemExit) as stop:
        train_controlnet(*more, "--output_dir", tmp_path / "out")
    assert stop.value.code == 2 and mention in capsys.readouterr().err


def test_a_baseline_whose_output_folder_is_its_input_is_refused(tmp_path):
    shutil.copytree(CONTROLNET, tmp_path / "run/controlnet")
    before = (tmp_path / "run/controlnet/config.json").read_bytes()
    more = ["--controlnet_model_name_or_path", str(tmp_path / "run/controlnet"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="would overwrite the input --controlnet_model_name_or_path"):
        check_baseline(parse(BaselineSettings, [*BASELINE[1:], *more]))
    with pytest.raises(UserError, match="holds controlnet, which no run there has written"):
        train_controlnet("--output_dir", tmp_path / "run")
    assert (tmp_path / "run/controlnet/config.json").read_bytes() == before


def test_photographs_that_are_too_small_or_broken_are_all_named(tmp_path):
    for name, size in (("a", (40, 80)), ("b", (200, 30)), ("c", (200, 200))):
        save_noise(tmp_path / f"{name}.png", size)
    (tmp_path / "d.png").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        CropSource(tmp_path, 64, 0)
    for expected in ("3 of 4 photographs", "a.png is 40 x 80", "b.png is 200 x 30", "d.png"):
        assert expected in str(error.value)


@pytest.mark.parametrize("channels", [["4", "8", "16"], ["16", "16"], ["16", "32", "64", "128", "256", "300", "310", "320", "330"]])
def test_an_autoencoder_of_impossible_channels_is_one_line(tmp_path, channels):
    from studies import train_vae
    from studies.autoencoder import new_autoencoder

    folders = ["--train_dir", "x", "--val_dir", "x", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--block_out_channels"):
        new_autoencoder(parse(train_vae.AutoencoderSettings, [*folders, "--block_out_channels", *channels]))


def test_a_tiny_model_is_made_in_a_new_folder_alone_and_its_sizes_are_checked(tmp_path):
    from studies import make_tiny_sd2 as program
    from studies.tiny_models import make_new, make_tiny_sd2

    def make(*more):
        words = ["--vae", f"{MODEL}/vae", "--output_dir", str(tmp_path / "out"), *map(str, more)]
        make_new(make_tiny_sd2, parse(program.TinySD2Settings, words), ("block_out_channels", "conditioning_channels", "text_width"))

    with pytest.raises(UserError, match="--block_out_channels 32 64 128 --conditioning_channels 8 16 32 --text_width 7: no network"):
        make("--text_width", 7)
    with pytest.raises(UserError, match="--vae .*no such folder"):
        make("--vae", tmp_path / "none")
    assert not (tmp_path / "out").exists()
    make()
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "out").rglob("*.safetensors")} == {0o044}
    before = (tmp_path / "out/model_index.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="is not empty"):
        make()
    assert (tmp_path / "out/model_index.json").stat().st_mtime_ns == before
