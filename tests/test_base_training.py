"""Studies that train and judge the tiny bases: on a CPU they run as they are, but for the CUDA graph."""

import itertools
import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from dp2osr.backbones.tiles import cut_windows
from dp2osr.cli import parse
from dp2osr.data.images import pil_to_tensor, read_image
from dp2osr.errors import UserError
from dp2osr.rewards.perceptual import dists_form, lpips_form
from studies import decoder, graphed_training
from studies.decoder import DecoderTrainer, patch_discriminator
from studies.graphed_training import GraphedTrainer, train
from studies.perceptual_regression import PerceptualRegression
from studies.steps import StepsSettings
from studies.steps_table import tabulate
from studies.train_on_gpu import GpuTrainingSettings
from studies.tune_decoder import DecoderSettings


def clock_of(seconds):
    """A stand-in for `time` whose clock goes on by so much each time that it is read."""
    return SimpleNamespace(time=itertools.count(1e9, seconds).__next__)


@pytest.fixture
def trainer(kind, tmp_path):
    words = [
        *kind.model_flags, "--train_dir", ROOT / "preset/train/gt", "--output_dir", tmp_path / "out", "--train_backbone",
        "--degradation", "light",
        "--resolution", 64, "--window", 8, "--full_window_share", 0.5, "--pool_size", 8, "--fresh", 4, "--refresh_every", 1,
        "--snapshots", 1,
        "--train_batch_size", 4, "--dataloader_num_workers", 0, "--report_to", "none", "--minutes", 0.1, "--ema_decay", 0.5, "--save_fp16",
        "--learning_rate", 1e-3, "--lr_warmup_steps", 1, "--max_train_steps", 100,
    ]  # fmt: skip
    return GraphedTrainer(parse(GpuTrainingSettings, words))


def test_a_base_trains_by_the_clock_on_a_pool_that_is_renewed(trainer, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(graphed_training, "time", clock_of(0.9))
    text = load_file(f"{kind.model}/text_encoder/model.safetensors")
    pool = trainer.pool.latents.clone()
    trainer.train()
    out = tmp_path / "out"
    assert not torch.equal(trainer.pool.latents, pool) and trainer.oldest in (0, 4)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.safetensors")}
    assert (
        "controlnet/diffusion_pytorch_model.safetensors" in names and "snapshots/1/controlnet/diffusion_pytorch_model.safetensors" in names
    )
    [denoiser] = [path for path in (out / "model").glob("*/diffusion*") if path.parent.name in ("unet", "transformer")]
    saved, parts = load_file(denoiser), dict(trainer.backbone.denoiser.named_parameters())
    means = dict(zip(map(id, trainer.parameters), trainer.mean, strict=True))
    assert all(torch.equal(saved[name], means[id(parameter)].half()) for name, parameter in parts.items())
    assert any((means[id(parameter)] != parameter).any() for parameter in parts.values())  # the mean is behind
    assert all(torch.equal(text[name], value) for name, value in load_file(out / "model/text_encoder/model.safetensors").items())
    [*_, last] = map(json.loads, (out / "train_log.jsonl").read_text().splitlines())
    assert last["step"] == 5  # at .9, 1.8 and 2.7 of 6 seconds with windows, at 4.5 and 5.4 with whole crops


def test_the_perceptual_distance_is_that_of_the_clean_image_which_the_prediction_implies(trainer, kind, monkeypatch):
    pool, backbone, model = trainer.pool, trainer.backbone, trainer.regression
    latents, control = pool.windows(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([2, 0]), 12)
    times = backbone.draw_timesteps(2, torch.Generator().manual_seed(1))
    noise, guidance = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    inputs = (latents, control, trainer.prompts[:2], noise, times, guidance)
    judged = PerceptualRegression(
        backbone, model.controlnet, torch.nn.ModuleDict(), model.prompts, model.metric, perceptual=0.5, texture=0.25
    )
    with torch.no_grad():
        noisy, prompt = backbone.add_noise(latents, noise, times), {**model.prompts.embed(trainer.prompts[:2]), "guidance": guidance}
        [velocity] = backbone.predict([model.controlnet], noisy, times, prompt, control)
        if kind.name == "sd2":
            signal = backbone.noise_schedule.alphas_cumprod[times].view(-1, 1, 1, 1)
            clean = signal.sqrt() * noisy - (1 - signal).sqrt() * velocity
        else:
            clean = noisy - times.view(-1, 1, 1, 1) * velocity
        expected, images = model(*inputs), [backbone.decode_latents(part) for part in (clean, latents)]
        seeds = torch.manual_seed(3).initial_seed()
        top, left = torch.randint(9, (2, 2))
        images = [cut_windows(part, top, left, 40) for part in images]
        expected = expected + 0.5 * lpips_form()(*images).mean() + 0.25 * dists_form()(*images).mean()
    torch.manual_seed(seeds)
    loss = judged(*inputs)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in list(model.controlnet.parameters())[-2:])


def test_the_rate_is_a_cosine_of_the_time(trainer):
    assert trainer.rate_at(0.0, 0) == pytest.approx(1e-3) and trainer.rate_at(0.5, 9) == pytest.approx(5e-4)
    assert trainer.rate_at(1.2, 9) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "flags, told",
    [
        ([], "give --train_backbone"),
        (["--train_backbone"], "--pool_size 0: the windows are drawn"),
        (["--train_backbone", "--pool_size", 8, "--mixed_precision", "bf16"], "--mixed_precision bf16: this loop"),
    ],
)
def test_flags_that_the_loop_does_not_do_are_refused(flags, told, tmp_path):
    words = ["--pretrained_model_name_or_path", ROOT / "preset/models/tiny-sd2", "--train_dir", ROOT / "preset/train/gt", *flags]
    with pytest.raises(UserError, match=told):
        train(parse(GpuTrainingSettings, [*words, "--output_dir", tmp_path / "out"]))
    assert not (tmp_path / "out").exists()


def decoder_settings(out, *more):
    vae, photographs = ROOT / "preset/models/tiny-flux/vae", ROOT / "preset/train/gt"
    words = ["--vae", vae, "--train_dir", photographs, "--output_dir", out, "--pool_size", 16, "--resolution", 64, "--train_batch_size", 2]
    return parse(DecoderSettings, [*words, "--dataloader_num_workers", 0, *more])


def test_a_decoder_is_trained_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "time", clock_of(0.3))
    DecoderTrainer(decoder_settings(tmp_path, "--minutes", 0.06, "--discriminator_from", 0.3)).train()
    before = load_file(ROOT / "preset/models/tiny-flux/vae/diffusion_pytorch_model.safetensors")
    for name in ("vae", "vae_without_discriminator"):
        after = load_file(tmp_path / name / "diffusion_pytorch_model.safetensors")
        changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
        assert changed == {"decoder"}


def test_a_step_of_the_decoder_goes_down_its_own_loss(tmp_path):
    trainer = DecoderTrainer(decoder_settings(tmp_path, "--latent_noise", 0, "--train_batch_size", 8, "--learning_rate", 5e-5))
    trainer.crops = trainer.crops[:1].repeat(8, 1, 1, 1)  # every step sees the same
    losses = [trainer.step(0.0, False) for _ in range(12)]
    total = [float((parts["l1"] + 0.1 * parts["lpips"] + 0.2 * parts["dists"]).detach()) for parts in losses]
    assert total[-1] < 0.97 * total[0]


def test_the_discriminator_judges_patches():
    critic = patch_discriminator(8).eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        scores = critic(images)
        images[..., 100:] = 0
        moved = critic(images) != scores
    assert scores.shape[:2] == (1, 1) and moved[..., -2:].any() and not moved[..., : scores.shape[-1] // 3].any()


def test_the_table_of_steps_has_bicubic_and_gt_beside_the_models(kind, tmp_path, capsys):
    for side in ("lr", "gt"):
        (tmp_path / side).mkdir()
        for path in sorted((ROOT / "preset/test" / side).glob("*.png"))[:2]:
            shutil.copy(path, tmp_path / side)
    reward = tmp_path / "reward.yaml"
    reward.write_text("fr: [dp2o_lpips]\nnr: [piqe]\n")
    model = f"base={kind.model}+{kind.controlnet}"
    words = ["--models", model, "--image_path", tmp_path / "lr", "--gt_path", tmp_path / "gt", "--output_dir", tmp_path / "out"]
    tabulate(parse(StepsSettings, [*words, "--steps", 1, 2, "--reward_config", reward, "--extra_metrics", "psnr"]))
    table = pd.read_csv(tmp_path / "out/steps.csv")
    assert len(table) == 2 * 4 and set(table["model"]) == {"bicubic", "GT", "base"}
    name = table["image"][0]
    lr, gt = (read_image(tmp_path / side / f"{name}.png") for side in ("lr", "gt"))
    with torch.no_grad():
        expected = lpips_form()(pil_to_tensor(lr.resize(gt.size, 3))[None], pil_to_tensor(gt)[None])
    found = table[(table["model"] == "bicubic") & (table["image"] == name)]["dp2o_lpips"]
    assert found.item() == pytest.approx(float(expected), rel=1e-4)
    assert read_image(tmp_path / "out/sheet.png").width > 4 * 128 and "dp2o_lpips" in capsys.readouterr().out
