"""The stages from Python do what the programs do, and the page and the notebook about them run as they stand."""

import csv
import json
import os
import re
from dataclasses import replace

import pytest
from conftest import CONTROLNET, MODEL, ROOT, one_kind
from programs import run_program
from sr_folders import photographs, protocol  # noqa: F401 - fixtures
from trainings import weights, words

import dp2osr
from dp2osr.errors import UserError
from dp2osr.files import read_json
from dp2osr.rewards.table import read_columns

MODELS = {"pretrained_model_name_or_path": MODEL, "controlnet_model_name_or_path": CONTROLNET}
NOTEBOOK = ROOT / "examples/python_api.ipynb"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def files_of(folder, *patterns):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for pattern in patterns for path in folder.rglob(pattern)}


@one_kind
def test_sample_and_label_make_what_the_programs_make(kind, sampled, lr_folder, tmp_path):
    settings = dp2osr.GenerateSettings(
        **MODELS, image_path=lr_folder, output_dir=tmp_path / "m", num_inference_steps=2, guidance_scale=1, num_candidates=6, batch_size=4,
        seed=3,
    )  # fmt: skip
    assert dp2osr.sample(settings) == tmp_path / "m"
    latents = files_of(tmp_path / "m", "latents.safetensors")
    assert len(latents) == 3 and latents == files_of(sampled, "latents.safetensors")
    (tmp_path / "one.yaml").write_text("fr: [gmsd]\nnr: [piqe]\n")
    table = dp2osr.label(
        dp2osr.LabelSettings(candidates_dir=tmp_path / "m", gt_path=ROOT / "preset/train/gt", reward_config=str(tmp_path / "one.yaml"))
    )
    assert table == tmp_path / "m/scores.parquet"
    run_program("label_rewards.py", "--candidates_dir", sampled, "--gt_path", ROOT / "preset/train/gt", "--reward_config",
                tmp_path / "one.yaml", "--output", tmp_path / "program.parquet")  # fmt: skip
    (columns, about), (expected, expected_about) = read_columns(table), read_columns(tmp_path / "program.parquet")
    assert columns.keys() == expected.keys() and (columns["candidate"] == expected["candidate"]).all()
    for name in ("gmsd", "piqe"):
        assert columns[name][columns["candidate"] >= 0].tolist() == expected[name][expected["candidate"] >= 0].tolist()
    assert about["groups"] == expected_about["groups"] and about["reward_configs"] == expected_about["reward_configs"]


@one_kind
def test_an_interrupted_training_is_an_interrupt_and_goes_on(kind, labelled, trained, tmp_path, monkeypatch, ctrl_c):
    settings = kind.training_settings(words(kind, labelled, tmp_path / "run")[1:])
    with monkeypatch.context() as patch:
        patch.setattr("dp2osr.divergence.Divergence.see", lambda self, step, *rest: step == 1 and os.kill(os.getpid(), ctrl_c))
        with pytest.raises(KeyboardInterrupt):
            dp2osr.train(settings)
    assert (tmp_path / "run/checkpoint-2.pt").exists() and not (tmp_path / "run/model.safetensors").exists()
    dp2osr.train(settings)
    assert all((tensor == weights(trained)[name]).all() for name, tensor in weights(tmp_path / "run").items())


def test_train_makes_the_weights_that_the_program_of_this_kind_makes(kind, labelled, trained, tmp_path):
    settings = kind.training_settings(words(kind, labelled, tmp_path / "run")[1:])
    settings.backbone = None  # as Python leaves it
    assert dp2osr.train(settings) == tmp_path / "run"
    assert all((tensor == weights(trained)[name]).all() for name, tensor in weights(tmp_path / "run").items())
    found, expected = (read_json(folder / "settings.json") for folder in (tmp_path / "run", trained))
    assert {**found, "output_dir": ""} == {**expected, "output_dir": ""}
    other = "flux" if kind.name == "sd2" else "sd2"
    if other == "flux":
        with pytest.raises(UserError, match="--logit_mean: would do nothing with a base model of sd2: it is of flux; leave it out"):
            dp2osr.train(kind.training_settings([*words(kind, labelled, tmp_path / "no")[1:], "--logit_mean", "1"]))


@one_kind
def test_each_training_of_a_process_has_its_own_precision(kind, labelled, tmp_path):
    for precision in ("bf16", "no"):
        flags = ["--mixed_precision", precision, "--max_train_steps", "1"]
        dp2osr.train(kind.training_settings(words(kind, labelled, tmp_path / precision, *flags)[1:]))
    assert not all((tensor == weights(tmp_path / "no")[name]).all() for name, tensor in weights(tmp_path / "bf16").items())


def test_restore_writes_the_images_that_the_program_writes_and_either_goes_on_with_the_others(kind, lr_folder, tmp_path, capsys):
    settings = dp2osr.RestoreSettings(
        pretrained_model_name_or_path=kind.model, controlnet_model_name_or_path=kind.controlnet, image_path=lr_folder,
        output_dir=tmp_path / "python", upscale=2, num_inference_steps=2, sample_times=2,
    )  # fmt: skip
    assert dp2osr.restore(settings) == tmp_path / "python"
    program = [kind.test_program, *kind.model_flags, "--image_path", lr_folder, "--upscale", 2, "--num_inference_steps", 2,
               "--sample_times", 2]  # fmt: skip
    run_program(*program, "--output_dir", tmp_path / "program")
    written = files_of(tmp_path / "python", "*.png")
    assert len(written) == 6 and written == files_of(tmp_path / "program", "*.png")
    assert "0 images written, 3 already there" in run_program(*program, "--output_dir", tmp_path / "python").stdout
    capsys.readouterr()
    dp2osr.restore(replace(settings, output_dir=tmp_path / "program"))
    assert "0 images written, 3 already there" in capsys.readouterr().out


def test_evaluate_writes_the_table_that_the_program_writes(photographs, protocol, tmp_path):
    images = [f"{name}={photographs / name}" for name in ("sharp", "soft")]
    common = {"gt_path": str(photographs / "gt"), "protocol": str(protocol), "bootstrap": 50}
    table = dp2osr.evaluate(dp2osr.EvaluateSettings(images=images, output_dir=tmp_path / "python", **common))
    flags = [word for name, value in common.items() for word in (f"--{name}", value)]
    run_program("scripts/evaluate.py", "--images", *images, "--output_dir", tmp_path / "program", *flags)
    rows = [list(csv.reader((tmp_path / name / "per_image.csv").open())) for name in ("python", "program")]
    assert rows[0] == rows[1] and len(rows[0]) > 20 and table.methods[0] == "sharp"
    with pytest.raises(UserError, match="^--no_bicubic: would do nothing with --images; leave it out$"):
        dp2osr.evaluate(dp2osr.EvaluateSettings(images=images, output_dir=tmp_path / "no", no_bicubic=True, **common))


def test_make_pairs_makes_the_pairs_of_the_program(tmp_path):
    common = {"image_path": str(ROOT / "preset/test/gt/astronaut_00.png"), "crop_size": 64, "degradation": "light", "seed": 4}
    assert dp2osr.make_pairs(dp2osr.PairsSettings(**common, output_dir=tmp_path / "python")) == tmp_path / "python"
    flags = [word for name, value in common.items() for word in (f"--{name}", value)]
    run_program("scripts/make_lr_pairs.py", *flags, "--output_dir", tmp_path / "program")
    pairs = files_of(tmp_path / "python", "*.png")
    assert len(pairs) == 2 and pairs == files_of(tmp_path / "program", "*.png")


def test_settings_of_another_program_and_what_is_not_there_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^dp2osr.train takes dp2osr.TrainSettings\(...\), not LabelSettings$"):
        dp2osr.train(dp2osr.LabelSettings(candidates_dir="-"))
    with pytest.raises(UserError, match=f"^{tmp_path}/no"):
        dp2osr.label(dp2osr.LabelSettings(candidates_dir=tmp_path / "no"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output_dir .*file"):
        dp2osr.make_pairs(dp2osr.PairsSettings(image_path=str(ROOT / "preset/test/gt"), output_dir=tmp_path / "file/below"))


@pytest.fixture
def top_of_a_repository(tmp_path, monkeypatch):
    """A folder that has the presets, and nothing else of a checkout."""
    (tmp_path / "preset").symlink_to(ROOT / "preset")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_cells(cells, name):
    space = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{name}, cell {number}", "exec"), space)
    return space


@pytest.mark.slow
def test_the_notebook_runs_as_it_stands(top_of_a_repository):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code) and NOTEBOOK.stat().st_size < 20_000
    space = run_cells(["".join(cell["source"]) for cell in code], NOTEBOOK.name)
    assert len(space["images"]) == 8 and space["scores"]["reward"].max() == space["scores"]["reward"][space["best"]]
    assert space["trained"].controlnet == "runs/notebook/policy" and {path.name for path in top_of_a_repository.iterdir()} == {
        "preset",
        "runs",
    }


def test_the_code_of_the_page_runs_as_it_stands(top_of_a_repository):
    space = run_cells(PYTHON.findall((ROOT / "docs/python.md").read_text(encoding="utf-8")), "python.md")
    assert space["scores"].shape == (8, 9) and space["trained"].kind == "sd2" and space["policy"].is_dir()
