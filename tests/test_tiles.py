"""Tiles: they cover the image, blend without a seam, and change nothing where one tile is enough."""

from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_one_clear_line, run_program
from PIL import Image

from dp2osr.backbones.tiles import WHOLE, Tiling, blend_tiles, latent_tiling
from dp2osr.data.images import pil_to_tensor
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.seeds import candidate_generator


@pytest.mark.parametrize("tiling", [Tiling(48, 16), Tiling(48, 16, 4), Tiling(20, 0), Tiling(32, 30, 2)])
def test_tiles_cover_a_side_and_overlap(tiling):
    for length in range(tiling.multiple, 300, tiling.multiple):
        starts, size = tiling.cut(length)
        assert size <= tiling.size
        assert starts[0] == 0 and starts[-1] == length - size
        assert all(start % tiling.multiple == 0 for start in starts)
        assert all(second - first <= size - tiling.overlap for first, second in zip(starts, starts[1:], strict=False))


def test_tiles_are_no_larger_than_so_few_must_be():
    """1024² with SD2: two tiles a side of 80 latents, not of 96; the number of tiles is that of full-size ones."""
    assert Tiling(96, 32, 8).cut(128) == ([0, 48], 80)
    assert Tiling(96, 32, 8).cut(96) == ([0], 96)
    assert Tiling(96, 32, 8).cut(104) == ([0, 32], 72)
    for length in range(97, 600):
        starts, size = Tiling(96, 32).cut(length)
        assert len(starts) == 1 + -(-(length - 96) // 64) and size >= 64


@pytest.mark.parametrize("scale", [1, 4, 0.25])
def test_blended_tiles_of_a_picture_are_the_picture(scale):
    plane = torch.rand(2, 3, 96, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    big = torch.nn.functional.interpolate(plane, scale_factor=scale) if scale >= 1 else plane[..., ::4, ::4]

    def part(top, left, height, width):
        rows, columns = (slice(round(first * scale), round((first + side) * scale)) for first, side in ((top, height), (left, width)))
        return big[..., rows, columns]

    assert (blend_tiles(part, 96, 60, Tiling(32, 12, 4), scale) - big).abs().max() <= 1e-5


def test_tiles_of_different_levels_go_over_into_each_other():
    generator = torch.Generator().manual_seed(0)
    levels = blend_tiles(lambda top, left, h, w: torch.rand(1, generator=generator) * torch.ones(1, 1, h, w), 150, 150, Tiling(48, 16))
    assert levels.std() > 0.05
    assert max(levels.diff(dim=2).abs().max(), levels.diff(dim=3).abs().max()) <= 0.15  # of 1: no border, but slopes


def border_ratio(image, whole, starts, size):
    """Step across the columns where a tile begins or ends over the step one pixel beside them, (3, H, W); 1 where the whole has the same.

    The decoder has a pattern of its own, of one latent pixel's period, so what counts is the ratio beside that of the untiled image.
    Steps below half a grey level are taken for half a grey level.
    """

    def ratio(picture):
        steps = picture.diff(dim=2).abs().mean((0, 1)).clamp_min(1 / 510)
        borders = [start - 1 for start in starts if start] + [start + size - 1 for start in starts if start + size < picture.shape[2]]
        beside = [border + side for border in borders for side in (-1, 1)]
        return (steps[borders].mean() / steps[beside].mean()).item()

    return ratio(image) / ratio(whole)


def pictures():
    across = torch.linspace(0.2, 0.8, 320).expand(3, 192, 320)
    photograph = Image.open(sorted((ROOT / "preset/test/gt").glob("*.png"))[3]).convert("RGB").resize((320, 192), Image.Resampling.BICUBIC)
    return {"grey": torch.full((3, 192, 320), 0.5), "gradient": across, "photograph": pil_to_tensor(photograph)}


@pytest.mark.parametrize("name", ["grey", "gradient", "photograph"])
def test_no_seam_in_a_tiled_autoencoder(shipped_sd2, name, monkeypatch):
    image = pictures()[name][None]
    whole = shipped_sd2.decode_latents(shipped_sd2.encode_images(image))
    tiling = Tiling(32, 8)
    monkeypatch.setattr(shipped_sd2, "vae_tiling", tiling)
    tiled = shipped_sd2.decode_latents(shipped_sd2.encode_images(image))
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() <= 0.02
    starts = [4 * start for start in tiling.cut(80)[0]]
    assert border_ratio(tiled[0], whole[0], starts, 4 * tiling.cut(80)[1]) <= 1.05


@pytest.mark.parametrize("name", ["grey", "gradient", "photograph"])
def test_no_seam_in_a_tiled_denoising(backbone, controlnet, name):
    control, tiling = backbone.prepare_control(pictures()[name][None]), Tiling(48, 16, backbone.size_multiple // backbone.vae_scale)
    prompt = backbone.encode_prompts([""])
    images = []
    for tiles in (WHOLE, tiling):
        settings = LoopSettings(3, 1.0, backbone.default_scheduler, tiling=tiles)
        latents = backbone.sample(controlnet, control, prompt, None, [candidate_generator(0, name, 0)], (4, 48, 80), settings)
        images.append(backbone.decode_latents(latents))
    whole, tiled = images
    assert (tiled - whole).abs().max() > 1e-4 and (tiled - whole).abs().mean() <= 0.03
    starts, size = tiling.cut(80)
    assert border_ratio(tiled[0], whole[0], [4 * start for start in starts], 4 * size) <= 1.05


def test_one_tile_is_the_whole(backbone, controlnet):
    control = backbone.prepare_control(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    prompt, latents = backbone.encode_prompts([""]), []
    for tiles in (WHOLE, latent_tiling(backbone)):
        settings = LoopSettings(2, 1.0, backbone.default_scheduler, tiling=tiles)
        latents.append(backbone.sample(controlnet, control, prompt, None, [candidate_generator(0, "a", 0)], (4, 32, 32), settings))
    assert torch.equal(*latents)


def test_default_tiles_are_those_of_the_field():
    """SeeSR's: 96 latent pixels with 32 of overlap, for SD2."""
    sd2 = SimpleNamespace(native_size=512, size_multiple=64, vae_scale=8)
    assert latent_tiling(sd2) == Tiling(96, 32, 8)


def test_an_impossible_tile_is_one_line(tmp_path):
    words = ["--image_path", ROOT / "preset/test/lr", "--output_dir", tmp_path / "out", "--num_inference_steps", "1"]
    model = [
        "--pretrained_model_name_or_path",
        ROOT / "preset/models/tiny-sd2",
        "--controlnet_model_name_or_path",
        ROOT / "preset/models/c-tiny-sd2",
    ]
    done = run_program("test_sd2b_controlnet.py", *model, *words, "--tile_size", "64", "--tile_overlap", "64", check=False)
    assert_one_clear_line(done, "--tile_size 64 --tile_overlap 64")
    assert not (tmp_path / "out").exists()
