"""The examples of every program's --help are commands that run as they stand, from a clone, one after the other."""

import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_program

from dp2osr.errors import run

PAGES = [ROOT / "docs/choosing.md"]  # whose commands are checked as those of --help are
PROGRAMS = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]
# Behind a command, so that it takes seconds instead of minutes: the command line overrides what stands before.
SHORTER = {
    "gen_candidates.py": "--max_images 3 --num_candidates 12 --num_inference_steps 1",
    "train_sd2_dpo.py": "--max_train_steps 1 --groups_per_step 1",
    "train_flux_dpo.py": "--max_train_steps 1 --groups_per_step 1 --num_candidates 12",
    "test_sd2b_controlnet.py": "--num_inference_steps 1",
    "test_flux_controlnet.py": "--num_inference_steps 1",
    "scripts/evaluate.py --images": "--bootstrap 20 --exclude_metrics vif ssim",
    "scripts/validate_reward.py": "--num_crops 2",
}
# In the order in which one makes what the next reads; the others need a network, data of the user's, hours, or the whole quickstart.
CHAIN = (
    "gen_candidates.py", "label_rewards.py", "train_sd2_dpo.py", "train_flux_dpo.py", "test_sd2b_controlnet.py", "test_flux_controlnet.py",
    "scripts/inspect_rewards.py", "scripts/inspect_preferences.py", "scripts/export.py", "scripts/export_labels.py",
    "scripts/contact_sheet.py", "scripts/make_lr_pairs.py", "scripts/prepare_data.py", "scripts/user_study.py",
    "scripts/validate_reward.py", "scripts/evaluate.py",
)  # fmt: skip
NOT_HERE = ("--candidates base=runs/quickstart", "RealSR", "RealLR200", "votes-")


def examples(path):
    """The commands in a program's docstring or in a page, each as one line without its comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text, start = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", " "), ""
    else:
        text, start = re.search(r'"""(.*?)"""', text, re.S)[1].replace("\\\\\n", " "), "    "
    lines = [line.strip() for line in text.splitlines() if re.match(rf"{start}(python|accelerate launch) ", line)]
    return [re.sub(r"\s+#.*| +(?= )", "", line) for line in lines]


def test_every_program_of_the_method_has_an_example():
    for name in CHAIN:
        assert examples(ROOT / name), name


@pytest.mark.parametrize("path", [*PROGRAMS, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_name_programs_and_flags_that_exist(path):
    for line in examples(path):
        words = shlex.split(line)
        program = next(word for word in words if word.endswith(".py"))
        assert (ROOT / program).is_file(), line
        command = [word for word in words[words.index(program) + 1 :][:1] if word in ("make", "count")]
        told = run_program(program, *command, "--help", env={"COLUMNS": "200"}).stdout
        for flag in [word for word in words if word.startswith("--") and words.index(word) > words.index(program)]:
            assert re.search(rf"{flag}\b", told), (flag, line)


def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    for entry in ("preset", "configs", "scripts", "dp2osr", *(path.name for path in ROOT.glob("*.py"))):
        os.symlink(ROOT / entry, tmp_path / entry)
    monkeypatch.chdir(tmp_path)
    for name in CHAIN:
        for line in examples(ROOT / name):
            if any(words in line for words in NOT_HERE):
                continue
            words = shlex.split(line)
            place = next(index for index, word in enumerate(words) if word.endswith(".py"))
            program, shorter = words[place], next((more for key, more in SHORTER.items() if line.split(" ", place)[-1].startswith(key)), "")
            monkeypatch.setattr(sys, "argv", [*words[place:], *shlex.split(shorter)])

            def main(program=program):
                runpy.run_path(str(Path(ROOT, program)), run_name="__main__")

            try:
                run(main)
            except SystemExit as stop:
                assert not stop.code, (line, capsys.readouterr().err[-600:])
    for made in (
        "runs/candidates/scores.parquet",
        "runs/dp2o/model.safetensors",
        "runs/sr/.records",
        "runs/sheet.png",
        "runs/study/page.html",
    ):
        assert (tmp_path / made).exists(), made
