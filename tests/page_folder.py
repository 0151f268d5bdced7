"""A folder in which the pages' commands run: what they name is there, small and made up, or a link to what another command made."""

import json
import os
import shutil
import tarfile
from io import BytesIO

import numpy as np
import pandas as pd
from conftest import ROOT
from documented import like_a_clone
from PIL import Image, ImageFilter

# What a command names, and what stands in for it: models of this repository, or what commands of train.md made.
LINKS = {
    "preset/models/stable-diffusion-2-base": "tiny-sd2",
    "black-forest-labs/FLUX.1-dev": "../preset/models/tiny-flux",
    **{f"preset/models/{name}-sd2/model.safetensors": "../c-tiny-sd2/diffusion_pytorch_model.safetensors" for name in ("c", "dp2o")},
    "preset/models/dp2o-flux/model.safetensors": "../c-tiny-flux/diffusion_pytorch_model.safetensors",
    "preset/test_inp": "../my_photographs",
    "preset/train": "../data/train",
    "preset/test": "../data/held_out",
    "data/photographs": "../photographs/held_out",
    "lr": "RealSR/lr",
    "gt": "data/train/gt",
    "runs/quickstart/policy": "../policy",
    "runs/full/policy-3": "../policy",
    "runs/quickstart/test": "../test",
    "runs/held_out": "test",
}
SHARDS = 128


def picture(number, size):
    """A piece of one of the crops for training, `size` pixels wide and high."""
    crops = sorted((ROOT / "preset/train/gt").glob("*.png"))
    with Image.open(crops[40 * number % len(crops)]) as crop:
        return crop.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def furnish(folder, ram):
    """`folder` as a reader's clone with photographs, results of others and released models; `ram` has RAM's and DAPE's small files."""
    like_a_clone(folder)
    for name in ("train", "test"):
        (folder / "preset" / name).unlink()
    for place, target in LINKS.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, folder / place)
    for number, name in enumerate(("train/one", "train/two", "train/three", "held_out/four", "held_out/five")):
        save(picture(number, (128, 128)), folder / f"photographs/{name}.png")
    save(picture(5, (128, 128)), folder / "my_photographs/six.png")
    results_of_others(folder)
    shards(folder / "data/shards")
    for place in (folder, folder / "preset/models"):
        shutil.copy(ram / "ram.pth", place / "ram_swin_large_14m.pth")
        for name in ("DAPE.pth", "ram_tag_list.txt", "ram_tag_list_threshold.txt"):
            shutil.copy(ram / name, place / name)
    (folder / "metrics").mkdir()
    (folder / "data/tags.json").write_text(json.dumps({f"photo{number}": "a wall" for number in range(SHARDS)}), encoding="utf-8")
    (folder / "data/held_out").mkdir()
    (folder / "data/held_out/tags.json").write_text(json.dumps({"four_00": "grass", "five_00": "a door"}), encoding="utf-8")
    (folder / "my_reward.yaml").write_text("fr: [{lpips: {better: lower}}]\nnr: [{niqe: {better: lower}}]\n", encoding="utf-8")
    flags = "top_n: 1\nnum_candidates: 2\ngroups_per_step: 1\n"
    models = "pretrained_model_name_or_path: preset/models/tiny-sd2\ncontrolnet_model_name_or_path: preset/models/c-tiny-sd2\n"
    (folder / "my_train.yaml").write_text(models + flags, encoding="utf-8")
    return folder


def results_of_others(folder):
    """A test set of two pairs, methods' results on it, candidates and their scores."""
    for number, name in enumerate("ab"):
        gt = picture(number, (128, 128))
        save(gt, folder / f"RealSR/gt/{name}.png")
        save(gt.resize((32, 32)), folder / f"RealSR/lr/{name}.png")
        save(gt.resize((512, 512)), folder / f"StableSR_testsets/RealSRVal_crop128/test_HR/{name}.png")
        save(gt, folder / f"StableSR_testsets/RealSRVal_crop128/test_LR/{name}.png")
        for radius, method in enumerate(("seesr", "c-sd2", "dp2o-sd2", "ours"), 1):
            save(gt.filter(ImageFilter.GaussianBlur(radius)), folder / f"results/{method}/{name}.png")
        for sample in range(2):
            save(gt.filter(ImageFilter.GaussianBlur(sample)), folder / f"their_images/{name}_{sample:02d}.png")
    scores = np.random.default_rng(0).random((4, 2))
    table = pd.DataFrame({"image_id": list("aabb"), "candidate": [0, 1, 0, 1], "lpips": scores[:, 0], "niqe": scores[:, 1]})
    table.to_csv(folder / "theirs.csv", index=False)


def shards(folder):
    """As many WebDataset shards as baselines.md names, of one photograph each, all the same."""
    folder.mkdir(parents=True)
    content = BytesIO()
    picture(0, (128, 128)).save(content, "JPEG")
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number:04d}.tar", "w") as shard:
            info = tarfile.TarInfo(f"photo{number}.jpg")
            info.size = len(content.getvalue())
            shard.addfile(info, BytesIO(content.getvalue()))


def vote(folder):
    """What a participant sends back: votes for the method that stands first in each trial of the page made before."""
    key = json.loads((folder / "study/page.key.json").read_text(encoding="utf-8"))
    trials = {trial: list(shown["candidates"]) for trial, shown in key["trials"].items()}
    votes = [{"trial": trial, "shown": shown, "choice": shown[0]} for trial, shown in trials.items()]
    (folder / "votes-1.json").write_text(json.dumps({"study": key["study"], "participant": "one", "votes": votes}), encoding="utf-8")
