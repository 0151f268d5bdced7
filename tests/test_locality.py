"""Where a policy changed the images: made-up changes of which the answer is known, and the program on two candidate folders."""

import csv

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_one_clear_line, one_kind, run_program
from PIL import Image
from torch.nn import functional as F

from dp2osr import stats
from dp2osr.data.images import pil_to_tensor
from dp2osr.sampling.decode import decode_group, load_decoder
from dp2osr.sampling.store import CandidateStore
from studies.locality import (
    BLOCK,
    FILTER,
    PERIOD,
    blocks,
    concentration,
    correlations,
    explained_by_filters,
    image_change,
    local_detail,
    luma,
    repetition,
)


@pytest.fixture(scope="module")
def photographs():
    """Four GT crops, and three "seeds" of each: the GT, softened, with fine noise."""
    generator, found = torch.Generator().manual_seed(0), []
    for path in sorted((ROOT / "preset/test/gt").glob("*_00.png"))[:4]:
        gt = pil_to_tensor(Image.open(path).convert("RGB"))[:, :96, :96]
        soft = F.avg_pool2d(gt[None], 3, 1, 1, count_include_pad=False)
        found.append((path.stem, gt, (soft + 0.02 * torch.randn(3, *gt.shape, generator=generator)).clamp(0, 1)))
    return found


def changed(photographs, change):
    changes = [image_change(name, None, base, change(gt, base), gt) for name, gt, base in photographs]
    names = np.array([name for name, *_ in photographs])
    return changes, names, stats.bootstrap_weights(names, 200, 0)


def sharpen(gt, base):
    kernel = torch.full((3, 1, 5, 5), -0.02)
    kernel[:, :, 2, 2] += 1.5
    return F.conv2d(base, kernel, padding=2, groups=3)


def test_a_change_that_is_one_filter_is_found_to_be_one(photographs):
    changes, names, weights = changed(photographs, sharpen)
    found = explained_by_filters(changes, names, weights)
    assert found["one filter for all"].value > 0.99 and found["a filter of its own"].value > 0.99


def test_a_change_of_chosen_places_is_no_filter_and_lies_where_it_lies(photographs):
    def at_detail(gt, base):
        detail = torch.from_numpy(local_detail(luma(gt[None])[0].numpy())).float()
        noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(1))
        return base + 0.1 * noise * (detail > detail.quantile(0.9))

    changes, names, weights = changed(photographs, at_detail)
    found = explained_by_filters(changes, names, weights)
    assert abs(found["one filter for all"].value) < 0.02 and found["a filter of its own"].value < 0.2
    assert concentration(changes, weights).value > 0.95
    of_maps = correlations(changes, weights)
    assert of_maps["GT detail"].value > 0.3 and of_maps["GT detail"].low > 0


def test_a_change_that_is_the_same_everywhere_is_spread_evenly(photographs):
    changes, _, weights = changed(photographs, lambda gt, base: base + 0.03)
    assert concentration(changes, weights).value == pytest.approx(0.1, abs=0.01)


def test_a_pattern_of_patches_is_found_in_a_change(photographs):
    """A pattern of 8 pixels' period, of which the image knows nothing, of half the change's power; and noise alone."""
    generator = torch.Generator().manual_seed(1)
    tile = torch.randn(8, 8, generator=generator)
    tile = 0.02 * (tile - tile.mean()) / tile.std(correction=0)

    def noise(base):
        return 0.02 * torch.randn(base.shape[0], 1, *base.shape[-2:], generator=generator).expand_as(base)

    changes, _, weights = changed(photographs, lambda gt, base: base + tile.repeat(12, 12) + noise(base))
    chance = PERIOD**2 / 96**2
    assert abs(repetition(changes, weights).value - (0.5 + 0.5 * chance)) < 0.02
    changes, _, weights = changed(photographs, lambda gt, base: base + noise(base))
    assert abs(repetition(changes, weights).value - chance) < 0.01


def test_filters_are_those_of_least_squares(photographs):
    changes, names, weights = changed(photographs, lambda gt, base: (0.7 * base + 0.3 * gt).clamp(0, 1))
    edge, explained, power = FILTER // 2, [], []
    for _, gt, base in photographs:
        difference = luma((0.7 * base + 0.3 * gt).clamp(0, 1) - base).double().numpy()
        grey = luma(base).double().numpy()
        windows = np.lib.stride_tricks.sliding_window_view(grey, (FILTER, FILTER), axis=(1, 2)).reshape(-1, FILTER**2)
        design = np.concatenate([windows, np.ones((len(windows), 1))], axis=1)
        target = difference[:, edge:-edge, edge:-edge].reshape(-1)
        fitted = design @ np.linalg.lstsq(design, target, rcond=None)[0]
        power.append(np.sum(target**2))
        explained.append(power[-1] - np.sum((target - fitted) ** 2))
    found = explained_by_filters(changes, names, weights)["a filter of its own"]
    assert found.value == pytest.approx(sum(explained) / sum(power), abs=1e-3)


def test_maps_say_where_the_base_was_wrong_and_where_it_was_mended(photographs):
    changes, _, weights = changed(photographs, lambda gt, base: gt.expand_as(base))
    for image in changes:
        assert np.allclose(image.maps["error fell"], image.maps["base error"])
        assert (image.maps["SSIM map fell"] >= -1e-6).all() and np.allclose(image.maps["change"], image.maps["base error"])
    assert correlations(changes, weights)["base error"].value == pytest.approx(1)


def test_blocks_are_means_of_whole_blocks():
    values = np.arange(90.0).reshape(9, 10)
    expected = [values[top : top + BLOCK, left : left + BLOCK].mean() for top in (0, 4) for left in (0, 4)]
    assert blocks(values) == pytest.approx(expected)


def test_the_local_detail_is_the_standard_deviation_of_the_neighbourhood():
    image = np.random.default_rng(0).random((20, 20))
    assert local_detail(image)[9, 8] == pytest.approx(image[6:13, 5:12].std())


def changed_by_hand(base, policy, image_id, count=2):
    """Mean absolute change of the first seeds of an image, (H, W), decoded here."""
    images = []
    for folder in (base, policy):
        store = CandidateStore(folder)
        images.append(decode_group(load_decoder(store.settings), store.read(image_id), store.settings["align_method"])[:count])
    return (images[1] - images[0]).abs().mean(dim=(0, 1)).double().numpy()


@one_kind
def test_the_program_compares_two_folders(kind, sampled, lr_folder, tmp_path):
    other = tmp_path / "policy"
    words = ["--image_path", lr_folder, "--num_candidates", "6", "--batch_size", "4", "--guidance_scale", "1", "--output_dir", other]
    run_program("gen_candidates.py", *kind.model_flags, *words, "--num_inference_steps", "1", "--seed", "3")
    flags = ["--gt_path", ROOT / "preset/train/gt", "--output_dir", tmp_path / "out", "--num_candidates", "2", "--num_shown", "2"]
    run_program("studies/fig6.py", "--candidates", f"base={sampled}", f"policy={other}", *flags)
    rows = {row["what"]: float(row["mean"]) for row in csv.DictReader((tmp_path / "out/locality.csv").open(encoding="utf-8"))}
    changes = [changed_by_hand(sampled, other, path.stem) for path in sorted(lr_folder.iterdir())]
    shares = [np.sort(change.ravel() ** 2)[::-1][: round(change.size / 10)].sum() / np.sum(change**2) for change in changes]
    assert rows["share of the squared change in the tenth of the pixels that change most"] == pytest.approx(np.mean(shares), rel=1e-4)
    assert (tmp_path / "out/fig6.png").stat().st_size > 10_000 and all(
        title in (tmp_path / "out/fig6.svg").read_text(encoding="utf-8") for title in (">LR<", ">policy<", ">GT<", "base|, white 0.")
    )
    run_program("gen_candidates.py", *kind.model_flags, *words[:-1], tmp_path / "seed", "--num_inference_steps", "1", "--seed", "4")
    done = run_program("studies/fig6.py", "--candidates", f"base={sampled}", f"policy={tmp_path / 'seed'}", *flags, check=False)
    assert_one_clear_line(done, "another seed")
