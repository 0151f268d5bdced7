"""Several ControlNets in one command: each gives what it gives alone, the base is loaded once, pictures show them side by side."""

import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import KINDS, assert_one_clear_line, one_kind, run_program, save_noise
from PIL import Image
from programs import run_ranks
from safetensors.torch import load_file, save_file

from dp2osr.cli import parse
from dp2osr.data.contact_sheet import draw_sheet
from dp2osr.errors import UserError
from dp2osr.rewards.best_of import restore_images
from dp2osr.rewards.settings import BestOfSettings
from dp2osr.sampling import sampler
from dp2osr.sampling.side_by_side import labelled

QUICK = ["--num_inference_steps", "1", "--guidance_scale", "1", "--upscale", "2"]


def other_controlnet(kind, folder, seed):
    """A ControlNet of other weights."""
    shutil.copytree(kind.controlnet, folder)
    [path] = folder.glob("*.safetensors")
    generator = torch.Generator().manual_seed(seed)
    save_file({name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in load_file(path).items()}, path)
    return folder


@pytest.fixture(scope="module")
def policies(kind, tmp_path_factory):
    """Folders of two ControlNets beside the base's."""
    folder = tmp_path_factory.mktemp("policies")
    return [other_controlnet(kind, folder / name, seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("ab"):
        save_noise(tmp_path / f"in/{name}.png", (24, 16), seed)
    return tmp_path


def words(kind, folder, *more, out="out", controlnet=None):
    own = ["--controlnet_model_name_or_path", controlnet] if controlnet else []
    return [*kind.model_flags, *own, *QUICK, "--image_path", folder / "in", "--output_dir", folder / out, *more]


def restored(kind, folder, *more, **where):
    restore_images(parse(BestOfSettings, words(kind, folder, *more, **where)))
    return folder / where.get("out", "out")


def files_below(folder):
    """{path: content} of a folder's files but the logs of who did what."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "logs"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_each_controlnet_gives_what_it_gives_alone_and_the_base_is_loaded_once(kind, policies, folder, monkeypatch):
    loaded, encoders = [], []
    load = sampler.load_backbone

    def counted(*args, **more):
        loaded.append(load(*args, **more))
        load_text = loaded[-1].load_text_encoders
        monkeypatch.setattr(loaded[-1], "load_text_encoders", lambda: (encoders.append(1), load_text()))
        return loaded[-1]

    monkeypatch.setattr(sampler, "load_backbone", counted)
    out = restored(kind, folder, "--compare_with", *policies)
    assert len(loaded) == len(encoders) == 1
    base = f"c-tiny-{kind.name}"
    assert sorted(path.name for path in out.iterdir()) == [base, "comparison", "first", "second"]
    for label, controlnet in {base: kind.controlnet, "first": policies[0], "second": policies[1]}.items():
        alone = files_below(restored(kind, folder, out=f"alone-{label}", controlnet=controlnet))
        assert files_below(out / label) == alone and {"a.png", "b.png", "settings.json"} <= alone.keys()
    pictures = [np.asarray(Image.open(out / label / "a.png")) for label in (base, "first", "second")]
    assert not np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[1], pictures[2])


@one_kind
def test_a_picture_shows_lr_and_the_results_in_order_a_row_a_sample(kind, policies, folder):
    out = restored(kind, folder, "--sample_times", 2, "--compare_with", policies[0])
    sheet = np.asarray(Image.open(out / "comparison/a.png"))
    lr = np.asarray(Image.open(folder / "in/a.png")).repeat(2, axis=0).repeat(2, axis=1)
    high, wide = lr.shape[:2]
    for m in range(2):
        y = 16 + m * (high + 4)
        row = [lr, *(np.asarray(Image.open(out / label / f"a_{m:02d}.png")) for label in (f"c-tiny-{kind.name}", "first"))]
        for place, picture in enumerate(row):
            assert np.array_equal(sheet[y : y + high, place * (wide + 4) : place * (wide + 4) + wide], picture)
    assert sheet[:16].min() < 100  # titles


def test_a_long_title_is_cut_and_a_large_one_is_larger():
    rows = [[Image.new("RGB", (40, 10), "blue")] * 2]
    short, long = (np.asarray(draw_sheet(rows, [title, ""])) for title in ("LR", "a very long name of a model"))
    assert (short[:16, 44:] == 255).all() and (long[:16, 44:] == 255).all() and (long[:16, 20:40] < 255).any()
    large = np.asarray(draw_sheet(rows, ["LR", ""], head=32))
    assert large.shape[0] == short.shape[0] + 16 and (large[:32] < 128).sum() > 2 * (short[:16] < 128).sum()


@one_kind
def test_a_second_run_does_what_is_left(kind, policies, folder, capsys):
    out = restored(kind, folder, "--compare_with", policies[0])
    before, told = files_below(out), capsys.readouterr().out
    assert told.count("2 images written, 0 already there") == 2 and f"{out}/comparison: 2 comparisons written, 0 already there" in told
    restored(kind, folder, "--compare_with", policies[0])
    told = capsys.readouterr().out
    assert told.count("0 images written, 2 already there") == 2 and "0 comparisons written, 2 already there" in told
    (out / "first/a.png").unlink()
    (out / "comparison/b.png").unlink()
    restored(kind, folder, "--compare_with", policies[0])
    told = capsys.readouterr().out
    assert (
        "first: 1 image written, 1 already there" in told and "1 comparison written, 1 already there" in told and files_below(out) == before
    )
    restored(kind, folder, "--compare_with", *policies)  # one more: it alone is sampled, and the pictures have a column more
    told = capsys.readouterr().out
    assert told.count("0 images written, 2 already there") == 2 and "second: 2 images written" in told and "2 comparisons written" in told
    assert Image.open(out / "comparison/a.png").width > Image.open(out / "second/a.png").width * 4


@one_kind
def test_what_cannot_be_is_one_line_before_anything_is_sampled(kind, policies, folder, tmp_path):
    def refused(line, *more):
        with pytest.raises(UserError, match=line):
            restored(kind, folder, *more)
        assert not (folder / f"out/c-tiny-{kind.name}").exists()

    refused("first: is the same ControlNet as ", "--compare_with", policies[0], policies[0])
    refused("no_such_model", "--compare_with", policies[0], tmp_path / "no_such_model")
    other = KINDS["flux" if kind.name == "sd2" else "sd2"]
    refused("c-tiny-", "--compare_with", other.controlnet)
    refused("has no settings.json of a preference training beside it", "--compare_with", policies[0], "--policy_strength", "0.5")
    (folder / "out/comparison").mkdir(parents=True)
    (folder / "out/comparison/a.png").write_bytes(b"mine")
    refused(r"a\.png: is there and no result of this program", "--compare_with", policies[0])
    done = run_program(kind.test_program, *words(kind, folder, "--compare_with", "x", "x"), check=False)
    assert_one_clear_line(done, "--compare_with x: is the same ControlNet as x")


@one_kind
def test_other_flags_go_on_working(kind, policies, folder):
    more = ["--keep", "best", "--sample_times", 2, "--tile_size", 64, "--format", "jpg", "--suffix", "_x", "--recursive"]
    base = ["--policy_strength", "1.5", "--base_controlnet_model_name_or_path", kind.controlnet]
    (folder / "in/sub").mkdir()
    shutil.move(folder / "in/b.png", folder / "in/sub/b.png")
    alone = files_below(restored(kind, folder, *more, *base, out="alone", controlnet=policies[0]))
    for _ in range(2):  # what lies among the inputs the second time are results, no inputs
        out = restored(kind, folder, *more, *base, "--compare_with", *policies, out="in/out")
    assert files_below(out / "first") == alone
    table = list(csv.DictReader((out / "second/best_x.csv").open(encoding="utf-8")))
    assert len(table) == 4 and {row["image"] for row in table} == {"a", "sub__b"}
    assert sorted(path.relative_to(out).as_posix() for path in (out / "comparison").rglob("*.png")) == [
        "comparison/a_x.png",
        "comparison/sub/b_x.png",
    ]


@one_kind
def test_two_ranks_share_the_images_and_the_pictures_are_drawn_once(kind, policies, folder):
    done = run_ranks(2, kind.test_program, *words(kind, folder, "--compare_with", policies[0]))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr[-2000:]
    told = "".join(process.stdout for process in done)
    assert told.count("images written") == 2 and told.count("comparisons written") == 1
    once = restored(kind, folder, "--compare_with", policies[0], out="once")
    ours, theirs = files_below(folder / "out"), files_below(once)
    assert {name: found for name, found in ours.items() if name.endswith(".png")} == {
        name: found for name, found in theirs.items() if name.endswith(".png")
    }


def test_a_controlnet_is_called_by_what_tells_it_from_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("a/policy", "b/policy", "best"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "a/policy/checkpoint-000100.pt").touch()
    (tmp_path / "c-flux").mkdir()
    (tmp_path / "c-flux/model.safetensors").touch()

    def names(*paths):
        return list(labelled(paths))

    assert names("a/policy", "best/", "lab/some-controlnet", "c-flux/model.safetensors") == ["policy", "best", "some-controlnet", "c-flux"]
    assert names("a/policy", "b/policy", "a/policy/checkpoint-000100.pt") == ["a_policy", "b_policy", "checkpoint-000100"]
    assert names("hub/a", "../x") == ["a", "x"]
    for twice in (("a/policy", "./a/policy/"), ("hub/a", "hub/a")):
        with pytest.raises(UserError, match="is the same ControlNet as"):
            names(*twice)
    with pytest.raises(UserError, match="has the name of the pictures' sub-folder, comparison"):
        names("a/policy", "b/comparison")


def test_a_yaml_and_python_name_several(tmp_path, folder):
    path = tmp_path / "several.yaml"
    path.write_text("compare_with: [one, two]\n")
    given = parse(BestOfSettings, words(KINDS["sd2"], folder, "--config", path))
    assert given.compare_with == ["one", "two"]
