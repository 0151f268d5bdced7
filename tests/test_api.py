"""The Python API: an image is restored and scored as the programs do it, whatever form it has; a mistake is one line."""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import CONTROLNET, MODEL, ROOT, one_kind
from PIL import Image
from programs import run_program
from test_prompts import released  # noqa: F401 - a fixture

import dp2osr
from dp2osr.errors import UserError
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.reward import hybrid_reward
from dp2osr.rewards.table import read_scores

LR = ROOT / "preset/test/lr/astronaut_00.png"
GT = ROOT / "preset/test/gt/astronaut_00.png"


@pytest.fixture(scope="module")
def model(kind):
    return dp2osr.load(kind.model, controlnet=kind.controlnet)


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory):
    """A plain photograph, one with an opacity, one that lies on its side, and a palette with a transparent colour."""
    folder, photo = tmp_path_factory.mktemp("odd"), Image.open(LR).convert("RGB")
    photo.save(folder / "plain.png")
    clear = photo.crop((0, 0, 24, 20))
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.crop((0, 0, 28, 20)).save(folder / "turned.jpg", exif=exif)
    photo.quantize(8).save(folder / "palette.png", transparency=3)
    return folder


def programs_images(kind, images, output, *flags):
    """{file's name: image} of what the kind's test program writes."""
    run_program(kind.test_program, *kind.model_flags, "--image_path", images, "--output_dir", output, *flags)
    return {path.stem: Image.open(path) for path in output.glob("*.png")}


def assert_same(found, expected):
    assert [image.mode for image in found] == [image.mode for image in expected]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


# -- a model --


def test_a_path_an_open_image_and_an_array_give_the_pixels_that_the_program_writes(kind, model, odd_images, tmp_path):
    flags = ["--upscale", 4, "--sample_times", 2, "--seed", 5]  # steps, guidance and colours: the model's own
    written = programs_images(kind, odd_images, tmp_path, *flags)
    for path in sorted(odd_images.iterdir()):
        expected = [written[f"{path.stem}_{number:02d}"] for number in range(2)]
        options = {"upscale": 4, "samples": 2, "seed": 5}
        assert_same(model.restore(path, **options), expected)
        with Image.open(path) as opened:
            before = opened.copy()
            assert_same(model.restore(opened, image_id=path.stem, **options), expected)
            assert opened.size == before.size and opened.mode == before.mode  # the caller's image is left as it was
        if path.stem == "clear":
            assert_same(model.restore(np.asarray(before), image_id=path.stem, **options), expected)
    assert expected[0].size == (112, 80)[::-1] and written["clear_00"].mode == "RGBA"


@one_kind
def test_each_option_does_what_its_flag_does_and_leaves_nothing_behind(kind, model, tmp_path):
    first = model.restore(LR)
    options = {
        "upscale": 5, "num_inference_steps": 3, "guidance_scale": 2.0, "scheduler": "ddim", "align_method": "adain", "control_scale": 0.7,
        "negative_prompt": "dots", "process_size": 176, "tile_size": 128, "tile_overlap": 40, "vae_tile_size": 64, "seed": 9,
    }  # fmt: skip
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    (tmp_path / "tags.json").write_text(json.dumps({"astronaut_00": "a face"}))
    written = programs_images(kind, LR, tmp_path / "sr", *flags, "--prompt_file", tmp_path / "tags.json")
    found = model.restore(str(LR), prompt="a face", **options)
    assert_same(found, [written["astronaut_00"]])
    assert not np.array_equal(model.restore(str(LR), prompt="", **options)[0], found[0])
    assert_same(model.restore(LR), first)


@one_kind
def test_samples_follow_from_the_seed_and_the_id_and_their_number_alone(kind, model):
    quick = {"num_inference_steps": 2}
    three = model.restore(LR, samples=3, **quick)
    for one, other in zip(model.restore(LR, samples=2, batch_size=1, **quick), three):
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 1  # another batch rounds otherwise
    assert_same(model.restore(Image.open(LR), samples=3, image_id="astronaut_00", **quick), three)
    in_memory = model.restore(Image.open(LR), **quick)
    assert_same(model.restore(np.asarray(Image.open(LR).convert("RGB")), image_id="image", **quick), in_memory)
    for other in (in_memory, model.restore(LR, seed=1, **quick), three[1:]):
        assert not np.array_equal(other[0], three[0])


@one_kind
def test_progress_hears_of_every_pass_and_of_how_many_there_will_be(kind, model):
    heard = []
    model.restore(LR, samples=3, batch_size=2, num_inference_steps=4, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(number, 8) for number in range(1, 9)]


def test_a_policy_knows_its_base(kind, trained, tmp_path):
    policy = dp2osr.load(trained)
    assert (policy.kind, policy.model, policy.controlnet) == (kind.name, kind.model, str(trained))
    run_program(kind.test_program, *kind.model_flags[:2], "--controlnet_model_name_or_path", trained, "--image_path", LR, "--upscale", 2,
                "--output_dir", tmp_path)  # fmt: skip
    assert_same(policy.restore(LR, upscale=2), [Image.open(tmp_path / LR.name)])
    assert kind.model in repr(policy) and policy.defaults["num_inference_steps"] == 2
    at_base = dp2osr.load(trained, policy_strength=0).restore(LR, upscale=2)
    assert_same(at_base, dp2osr.load(kind.model, kind.controlnet).restore(LR, upscale=2, **policy.defaults))


def test_a_policy_whose_base_is_gone_says_how_to_name_it(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"pretrained_model_name_or_path": "/no/such/base"}))
    with pytest.raises(UserError, match=r"was trained on /no/such/base, which is not here .*give both: dp2osr.load\(base, controlnet='"):
        dp2osr.load(tmp_path)


@one_kind
def test_ram_tags_each_image_that_comes_without_a_prompt(kind, released, tmp_path):
    ram = {"ram_path": released[0] / "ram.pth", "dape_path": released[0] / "DAPE.pth"}
    tagging = dp2osr.load(kind.model, controlnet=kind.controlnet, **ram)
    quick = {"num_inference_steps": 2, "guidance_scale": 3.0}
    flags = [word for name, value in {**ram, **quick}.items() for word in (f"--{name}", value)]
    written = programs_images(kind, LR, tmp_path, *flags, "--upscale", 4, "--save_prompts")
    assert_same(tagging.restore(LR, **quick), [written["astronaut_00"]])
    tags = (tmp_path / "txt/astronaut_00.txt").read_text().strip()
    assert tags and tagging._prompts.tags == {"astronaut_00": tags}
    assert_same(tagging.restore(LR, prompt=tags, **quick), [written["astronaut_00"]])
    tagging._prompts.tagger.tag = lambda image: f"brightness {image.mean():.2f}"  # the random RAM gives any image the same tags
    for colour, tags in (("black", "brightness 0.00"), ("white", "brightness 1.00")):  # of one id: the tags of the one are not the other's
        tagging.restore(Image.new("RGB", (32, 32), colour), **quick)
        assert tagging._prompts.tags["image"] == tags


@one_kind
def test_memory_that_does_not_suffice_is_refused_before_the_first_pass(kind, model, monkeypatch):
    monkeypatch.setattr("dp2osr.sampling.estimate.free_bytes", lambda device: 10**8)
    with pytest.raises(UserError, match=r"^memory does not suffice for this image: big .*0.1 GB free\); take fewer samples, or leave"):
        model.restore(Image.new("RGB", (512, 512)), samples=64, image_id="big", progress=pytest.fail)


MISTAKES = [
    ({"samples": 0}, "^samples: must be at least 1, not 0$"),
    ({"samples": 1.5}, "^samples: 1.5 is not of type int$"),
    ({"upscale": -1}, "^upscale: must be a finite number above 0, not -1$"),
    ({"upscale": "4"}, "^upscale: '4' is not of type float$"),
    ({"seed": -1}, "^seed: must be at least 0, not -1$"),
    ({"sample": 2}, "^Model.restore: unknown option 'sample'; the nearest known one is 'samples'$"),
    ({"align_method": "foo"}, "^align_method: is 'foo', must be one of adain, wavelet, nofix$"),
    ({"scheduler": 3}, "^scheduler: 3 is not text$"),
    ({"scheduler": "foo"}, "^scheduler foo"),
    ({"prompt": ["a"]}, r"^prompt: \['a'\] is not text$"),
    ({"image_id": ""}, "^image_id: '' is not a name$"),
    ({"progress": 1}, "^progress: is a int; give a function of two numbers"),
    ({"tile_size": 64, "tile_overlap": 64}, "^tile_size 64 tile_overlap 64: "),
    ({"image": "no.png"}, "^image: no.png: no such file$"),
    ({"image": ROOT}, "is a folder; give one image"),
    ({"image": ROOT / "README.md"}, r"README.md: not a readable image"),
    ({"image": None}, "^image: is a NoneType; give a path, a PIL image, or an array of uint8 of the shape"),
    ({"image": np.zeros((8, 8, 3))}, r"^image: is an array of float64; .*from floats in \[0, 1\]"),
    ({"image": np.zeros((3, 8, 8), np.uint8)}, r"^image: is an array of the shape 3 × 8 × 8; .*transpose"),
    ({"image": np.zeros((0, 8, 3), np.uint8)}, "^image: is an array of the shape 0 × 8 × 3"),
    ({"image": Image.new("F", (8, 8))}, "^image: not a readable image .*white is not known"),
    ({"image": Image.new("RGB", (3, 3)), "upscale": 0.1}, "^upscale 0.1: an image of 3 × 3 would have no pixel left$"),
]


@one_kind
@pytest.mark.parametrize(("options", "line"), MISTAKES, ids=[line[:40] for _, line in MISTAKES])
def test_what_cannot_be_restored_is_one_line(kind, model, options, line):
    with pytest.raises(UserError, match=line) as error:
        model.restore(**{"image": LR, **options})
    assert "\n" not in str(error.value) and "--" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model": MODEL}, "is a base model and needs a ControlNet; give controlnet="),
        ({"model": CONTROLNET}, "has no settings.json of a training, .*give both"),
        ({"model": "runs/nothing.pt"}, "no such file or folder"),
        ({"model": "of/a-hub"}, "is no folder here; a base model of a hub needs a ControlNet"),
        ({"model": 3}, "^model: 3 is not a path$"),
        ({"model": CONTROLNET, "controlnet": CONTROLNET}, "model_index.json"),
        ({"model": MODEL, "controlnet": str(ROOT / "preset/models/c-tiny-flux")}, "is a FluxControlNetModel, not a ControlNetModel"),
        ({"model": MODEL, "controlnet": CONTROLNET, "device": "moon"}, "^device: 'moon' cannot be used here"),
        (
            {"model": MODEL, "controlnet": CONTROLNET, "mixed_precision": "fp8"},
            "^mixed_precision: is 'fp8', must be one of no, fp16, bf16$",
        ),
        ({"model": MODEL, "controlnet": CONTROLNET, "max_sequence_length": 9}, "^max_sequence_length 9: is not read"),
        ({"model": MODEL, "control_net": CONTROLNET}, "^load: unknown option 'control_net'; the nearest known one is 'controlnet'$"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(options, line):
    with pytest.raises(UserError, match=line) as error:
        dp2osr.load(**options)
    assert "\n" not in str(error.value) and "--" not in str(error.value)


# -- a reward --


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    """A folder of four candidates as images, scored by the program with the embedded reward."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "lr").mkdir()
    Image.open(LR).save(folder / "lr" / LR.name)
    words = ["--pretrained_model_name_or_path", MODEL, "--controlnet_model_name_or_path", CONTROLNET, "--image_path", folder / "lr"]
    run_program("gen_candidates.py", *words, "--output_dir", folder / "m", "--num_candidates", 4, "--num_inference_steps", 2,
                "--save_images", "all")  # fmt: skip
    run_program("label_rewards.py", "--candidates_dir", folder / "m", "--gt_path", GT.parent, "--reward_config", "embedded")
    return folder / "m"


def pictures(candidates):
    return sorted(candidates.rglob("[0-9]*.png"))


@pytest.fixture(scope="module")
def embedded():
    return dp2osr.Reward("embedded")


def test_scores_and_the_reward_are_those_that_the_programs_give_these_candidates(candidates, embedded):
    config = load_reward_config("embedded")
    table = read_scores(candidates / "scores.parquet", config)
    images = pictures(candidates)
    assert len(images) == 4
    scores = embedded.score(images, gt=GT)
    assert list(scores.columns) == [*(spec.name for spec in config.metrics), "reward"]
    for spec in config.metrics:
        assert np.array_equal(scores[spec.name], table.scores[spec.name][0]), spec.name
    expected = hybrid_reward(table.scores, table.lower_better, config)[0]
    assert np.array_equal(scores["reward"], expected) and np.ptp(expected) > 0.1
    assert embedded.best(images, GT) == expected.argmax()
    forms = [Image.open(images[0]), np.asarray(Image.open(images[1])), str(images[2]), images[3]]
    assert embedded.score(forms, gt=np.asarray(Image.open(GT).convert("RGB"))).equals(scores)
    assert embedded.score(np.stack([np.asarray(Image.open(path)) for path in images]), [GT] * 4).equals(scores)


def test_each_image_may_have_its_own_true_image(candidates, tmp_path):
    (tmp_path / "two.yaml").write_text("fr: [gmsd]\nnr: [piqe]\n")
    reward = dp2osr.Reward(tmp_path / "two.yaml")
    images, other = pictures(candidates)[:2], GT.with_name("chelsea_00.png")
    each = reward.score(images, gt=[GT, other])
    assert each["gmsd"].tolist() == [reward.score(images[0], GT)["gmsd"][0], reward.score(images[1], other)["gmsd"][0]]
    assert sorted(each["reward"]) == sorted(  # min-max over two images: each metric gives its half to one of them
        [0.5 * (each["gmsd"][0] < each["gmsd"][1]) + 0.5 * (each["piqe"][0] < each["piqe"][1]),
         0.5 * (each["gmsd"][1] < each["gmsd"][0]) + 0.5 * (each["piqe"][1] < each["piqe"][0])]
    )  # fmt: skip


def test_a_reward_of_nr_metrics_needs_no_true_image_and_one_image_has_none_to_be_better_than(candidates):
    reward = dp2osr.Reward("nr_only")
    assert set(reward.metrics.values()) == {"NR"} and reward.lower_better["piqe"] and not reward.lower_better["dp2o_rank"]
    alone = reward.score(pictures(candidates)[0])
    assert len(alone) == 1 and alone["reward"][0] == 0


def test_what_cannot_be_scored_is_one_line(embedded, candidates):
    image = pictures(candidates)[0]
    for call, line in (
        (lambda: embedded.score(image), "dp2o_lpips, dp2o_dists, fsim, gmsd compare with the true image; pass gt=, .*Reward.'nr_only'"),
        (lambda: embedded.score([], GT), "^images: is an empty list"),
        (lambda: embedded.score(3, GT), "^images: is a int; give a path"),
        (lambda: embedded.score([image, None], GT), "^image 1: is a NoneType"),
        (lambda: embedded.score([image, LR], GT), "different sizes .image 0 128 × 128, image 1 32 × 32 pixels"),
        (lambda: embedded.score(image, LR), "astronaut_00.png: is 32 × 32 pixels, the images are 128 × 128; give the true image"),
        (lambda: embedded.score([image] * 3, [GT] * 2), "^gt: are 2 images for 3; give one, or one an image$"),
        (lambda: embedded.best(image, "no.png"), "^gt: no.png: no such file$"),
        (lambda: embedded.score(Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))), "cannot score|too small|at least"),
        (lambda: dp2osr.Reward("embeded"), "did you mean 'embedded'"),
        (lambda: dp2osr.Reward(3), "neither a name in configs/rewards nor the path of a YAML"),
        (lambda: dp2osr.Reward(batch_size=0), "^batch_size: must be at least 1, not 0$"),
        (lambda: dp2osr.Reward(metric_dir="x"), "^Reward: unknown option 'metric_dir'; the nearest known one is 'metrics_dir'$"),
        (lambda: dp2osr.Reward(device="moon"), "^device: 'moon' cannot be used here"),
    ):
        with pytest.raises(UserError, match=line) as error:
            call()
        assert "\n" not in str(error.value) and "--" not in str(error.value), error.value


# -- the package --


def test_importing_the_package_reads_none_of_what_it_gives():
    code = "import sys; before = set(sys.modules); import dp2osr; dir(dp2osr); print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    read = {name.partition(".")[0] for name in done.stdout.split()}
    assert not read & {"torch", "numpy", "PIL", "tyro", "pandas", "diffusers"} and "dp2osr.api" not in done.stdout


def test_every_name_that_the_package_gives_is_there_and_type_checkers_see_it():
    tree = ast.parse((ROOT / "dp2osr/__init__.py").read_text(encoding="utf-8"))
    checking = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checking.body for alias in node.names}
    assert seen == dp2osr._MODULES and sorted(seen) == sorted(dp2osr.__all__) and set(dp2osr.__all__) <= set(dir(dp2osr))
    for name in dp2osr.__all__:
        assert getattr(dp2osr, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'dp2osr' has no attribute 'nothing'"):
        _ = dp2osr.nothing
