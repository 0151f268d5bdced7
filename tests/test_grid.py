"""`dp2o_grid`: a grid is found where there is one, and only at its period."""

import numpy as np
import pytest
import torch
from conftest import ROOT

from dp2osr.data.images import read_image
from dp2osr.errors import UserError
from dp2osr.rewards.config import MetricSpec
from dp2osr.rewards.metrics import MetricSuite


@pytest.fixture(scope="module")
def photographs():
    paths = sorted((ROOT / "preset/test/gt").glob("*_00.png"))
    return torch.stack([torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1) / 255 for path in paths])


def score(images, **options):
    return MetricSuite([MetricSpec("dp2o_grid", options)]).score(images)["dp2o_grid"]


def with_lines(images, period, level):
    """A line of `level` at the first row and column of each period."""
    lines = torch.arange(images.shape[-1]) % period == 0
    return (images + level * (lines | lines[:, None])).clamp(0, 1)


def test_lines_too_weak_to_be_seen_at_once_are_found_and_stronger_ones_more(photographs):
    scores = [score(with_lines(photographs, 8, level)) for level in (0, 4 / 255, 8 / 255)]
    assert abs(scores[0].mean()) < 0.3  # photographs have none
    assert ((scores[1] > scores[0]).mean() > 0.9) and (scores[2] > scores[1] + 0.3).all()


def test_a_grid_of_another_period_a_sharpening_and_a_blur_are_none(photographs):
    soft = torch.nn.functional.avg_pool2d(photographs, 3, 1, 1, count_include_pad=False)
    sharp = (2 * photographs - soft).clamp(0, 1)
    plain = score(photographs).mean()
    assert score(with_lines(photographs, 11, 8 / 255)).mean() < plain + 0.1
    for others in (soft, sharp):
        assert abs(score(others).mean() - plain) < 0.15
    assert score(with_lines(photographs, 16, 8 / 255), period=16).mean() > plain + 1


def test_it_is_numpys_spectrum_of_the_luma_under_a_hann_window(photographs):
    image = 255 * photographs[0].permute(1, 2, 0).double().numpy()
    luma = image @ [0.299, 0.587, 0.114]
    power = np.log(np.abs(np.fft.fft2((luma - luma.mean()) * np.outer(np.hanning(128), np.hanning(128)))) ** 2 + 1e-3)
    found = []
    for line in (power[:, 0], power[0]):
        for place in (16, 32, 48):  # 128 / 8 and its multiples below 64
            found.append(line[place] - np.mean([line[place + step] for step in (-3, -2, 2, 3)]))
    assert score(photographs[:1])[0] == pytest.approx(np.mean(found), abs=1e-4)


def test_sides_that_are_no_multiple_are_cut_and_an_image_of_few_periods_is_refused(photographs):
    assert score(photographs[:1, :, :125, :122]) == pytest.approx(score(photographs[:1, :, :120, :120]))
    with pytest.raises(UserError, match="dp2o_grid' cannot score image 'small' of 63 x 128 pixels .*at least 64 pixels"):
        MetricSuite([MetricSpec("dp2o_grid")]).score(photographs[:1, :, :, :63], image_id="small")


@pytest.mark.parametrize("period", [0, 3, 8.0, "8", True])
def test_a_period_that_is_none_is_refused(period):
    with pytest.raises(UserError, match="dp2o_grid.*period"):
        MetricSuite([MetricSpec("dp2o_grid", {"period": period})])
