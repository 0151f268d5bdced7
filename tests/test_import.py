"""Candidates that others sampled: a folder of images or latents becomes one that scoring and training read."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLING, SHIPPED, assert_one_clear_line, one_kind, run_program, write_made_up_scores
from PIL import Image, ImageEnhance
from safetensors.torch import save_file
from trainings import run_training, weights

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.sampling.decode import decode_group, load_decoder
from dp2osr.sampling.importing import import_candidates, mean_psnr
from dp2osr.sampling.settings import ImportSettings
from dp2osr.sampling.store import CandidateStore


def bring_in(kind, lr, output, *more):
    words = ["--pretrained_model_name_or_path", kind.model, "--image_path", lr, "--output_dir", output, *more]
    return import_candidates(parse(ImportSettings, words))


@pytest.fixture(scope="module")
def pictures(sampled, tmp_path_factory):
    """Two folders of six pictures an image, one a layout: its GT, darker and darker."""
    folder, store = tmp_path_factory.mktemp("theirs"), CandidateStore(sampled)
    for image_id in store.ids():
        (folder / "folders" / image_id).mkdir(parents=True)
        (folder / "flat").mkdir(exist_ok=True)
        for number in range(6):
            image = ImageEnhance.Brightness(Image.open(ROOT / f"preset/train/gt/{image_id}.png").convert("RGB")).enhance(1 - 0.1 * number)
            image.save(folder / "folders" / image_id / f"{number:03d}.png")
            image.save(folder / "flat" / f"{image_id}_{number + 1:02d}.png")
    return folder


def test_training_on_imported_latents_gives_the_weights_of_training_on_the_samples(kind, labelled, trained, lr_folder, tmp_path):
    store = CandidateStore(labelled)
    (tmp_path / "latents").mkdir()
    for image_id, ending in zip(store.ids(), (".safetensors", ".pt", ".npy"), strict=True):
        path, latents = tmp_path / "latents" / f"{image_id}{ending}", store.read(image_id).latents
        if ending == ".safetensors":
            save_file({"latents": latents}, path)
        elif ending == ".pt":
            torch.save(latents, path)
        else:
            np.save(path, latents.numpy())
    bring_in(kind, lr_folder, tmp_path / "imported", "--latents", tmp_path / "latents", "--guidance_scale", 1)
    write_made_up_scores(tmp_path / "imported")
    run_training(kind, tmp_path / "imported", tmp_path / "policy")
    assert all(torch.equal(weights(tmp_path / "policy")[name], value) for name, value in weights(trained).items())


def test_images_of_both_layouts_become_the_same_candidates_near_the_originals(kind, sampled, pictures, lr_folder, tmp_path, capsys):
    kind = SHIPPED[kind.name]
    ones = bring_in(kind, lr_folder, tmp_path / "ones", "--images", pictures / "folders")
    told = capsys.readouterr().out
    others = bring_in(kind, lr_folder, tmp_path / "others", "--images", pictures / "flat", "--first_number", 1)
    assert "3 groups written, 0 already there" in told and "with a PSNR of" in told
    decoder = load_decoder(ones.settings)
    for image_id in ones.ids():
        latents = ones.read(image_id).latents
        assert torch.equal(latents, others.read(image_id).latents)
        assert latents.shape == CandidateStore(sampled).read(image_id).latents.shape
        images = decode_group(decoder, ones.read(image_id), "nofix")
        assert mean_psnr(images, sorted((pictures / "folders" / image_id).iterdir())) > 20


@one_kind
def test_an_imported_folder_says_so_and_gen_candidates_refuses_it(kind, sampled, pictures, lr_folder, tmp_path, capsys):
    output, flags = tmp_path / "imported", ("--images", pictures / "folders")
    bring_in(kind, lr_folder, output, *flags)
    assert json.loads((output / "settings.json").read_text())["imported"]["from"] == "images"
    before = {path: path.stat().st_mtime_ns for path in (output / "groups").rglob("*.safetensors")}
    sampling = ["gen_candidates.py", *kind.model_flags, *SAMPLING, "--image_path", lr_folder, "--output_dir", output]
    assert_one_clear_line(run_program(*sampling, check=False), "imported by scripts/import_candidates.py", "another --output_dir")
    with pytest.raises(UserError, match="sampled by gen_candidates.py"):
        bring_in(kind, lr_folder, sampled, *flags)
    capsys.readouterr()
    bring_in(kind, lr_folder, output, *flags)
    assert "0 groups written, 3 already there" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (output / "groups").rglob("*.safetensors")}


@one_kind
def test_a_candidate_that_was_replaced_is_imported_anew(kind, pictures, lr_folder, tmp_path, capsys):
    import shutil

    theirs = shutil.copytree(pictures / "folders", tmp_path / "theirs")
    store = bring_in(kind, lr_folder, tmp_path / "out", "--images", theirs)
    first = store.ids()[0]
    before = store.read(first).latents
    Image.new("RGB", (128, 128), "red").save(theirs / first / "002.png")
    capsys.readouterr()
    bring_in(kind, lr_folder, tmp_path / "out", "--images", theirs)
    assert "1 group written, 2 already there" in capsys.readouterr().out
    same = (store.read(first).latents == before).flatten(1).all(1)
    assert same.tolist() == [True, True, False, True, True, True]


@one_kind
def test_candidates_that_cannot_be_imported_are_all_named_in_one_line(kind, pictures, lr_folder, tmp_path):
    import shutil

    theirs = shutil.copytree(pictures / "folders", tmp_path / "theirs")
    first, second, third = sorted(path.name for path in theirs.iterdir())
    shutil.rmtree(theirs / first)
    (theirs / second / "004.png").unlink()
    Image.new("RGB", (64, 128)).save(theirs / third / "001.png")
    message = rf"3 of 3 images.*{first}: no candidates.*{second}: has no 4.*{third}: 001.png is 64 x 128, not 128 x 128"
    with pytest.raises(UserError, match=message):
        bring_in(kind, lr_folder, tmp_path / "out", "--images", theirs)
    assert not (tmp_path / "out").exists()
    shutil.copytree(pictures / "folders" / first, theirs / first)
    (theirs / third / "001.png").write_bytes((pictures / "folders" / third / "001.png").read_bytes())
    (theirs / second / "005.png").unlink()
    with pytest.raises(UserError, match=f"1 of 3 images.*{second}: has 4 of 6"):
        bring_in(kind, lr_folder, tmp_path / "out", "--images", theirs)
    (tmp_path / "latents").mkdir()
    np.save(tmp_path / "latents" / f"{first}.npy", np.zeros((6, 4, 7, 7), np.float32))
    (tmp_path / "latents" / f"{second}.pt").write_bytes(b"no tensor")
    with pytest.raises(UserError, match=f"3 of 3.*{first}: {first}.npy is of shape 6 x 4 x 7 x 7.*not readable.*{third}: no latents"):
        bring_in(kind, lr_folder, tmp_path / "out", "--latents", tmp_path / "latents")
    for flags in ([], ["--images", theirs, "--latents", tmp_path / "latents"]):
        with pytest.raises(UserError, match="give one of the two"):
            bring_in(kind, lr_folder, tmp_path / "out", *flags)
