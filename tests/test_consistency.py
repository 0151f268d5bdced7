"""`dp2o_lr_psnr`: what a result is when it is made small again."""

import numpy as np
import pytest
import torch
from PIL import Image
from pyiqa import create_metric

from dp2osr.errors import UserError
from dp2osr.rewards.config import MetricSpec
from dp2osr.rewards.metrics import MetricSuite


@pytest.fixture(scope="module")
def gt():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16, generator=generator), (48, 64), mode="bicubic")
    return (coarse + 0.1 * torch.randn(1, 3, 48, 64, generator=generator)).clamp(0, 1)[0]


def score(images, gt, **options):
    return MetricSuite([MetricSpec("dp2o_lr_psnr", options)]).score(images, gt)["dp2o_lr_psnr"]


def test_it_is_the_psnr_of_the_small_images_by_pillow_and_pyiqa(gt):
    images = torch.stack([0.9 * gt, gt.flip(-1), (gt + 0.05).clamp(0, 1)])

    def reduced(image):  # Pillow's filter, on each channel in floating point
        channels = [Image.fromarray(channel.numpy()).resize((16, 12), Image.Resampling.BICUBIC) for channel in image]
        return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))

    psnr = create_metric("psnr", crop_border=0)
    expected = [float(psnr(reduced(image)[None], reduced(gt)[None])) for image in images]
    assert score(images, gt) == pytest.approx(expected, abs=0.02)
    assert score(gt[None], gt) == pytest.approx([80.0], abs=0.01)


def test_texture_drawn_anew_costs_less_than_another_colour_and_a_shift_that_have_its_psnr(gt):
    generator = torch.Generator().manual_seed(1)
    checks = torch.ones(48, 64) - 2 * ((torch.arange(48)[:, None] + torch.arange(64)) % 2)
    texture = 0.05 * checks * torch.rand(1, 48, 64, generator=generator)
    colour = texture.square().mean().sqrt() * torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    textured, coloured = score(torch.stack([gt + texture, gt + colour]), gt)
    assert textured > coloured + 10


@pytest.mark.parametrize("scale", [1, 0, -4, "four", True, float("nan"), float("inf")])
def test_a_scale_that_reduces_nothing_is_refused(scale):
    with pytest.raises(UserError, match="dp2o_lr_psnr.*scale"):
        MetricSuite([MetricSpec("dp2o_lr_psnr", {"scale": scale})])


def test_an_image_smaller_than_the_scale_is_reduced_to_its_mean():
    images = torch.stack([torch.full((3, 2, 3), 0.5), torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0))])
    first, second = score(images, images[1])
    assert second == pytest.approx(80, abs=0.01) and np.isfinite(first)
