"""The examples of every program's --help are commands that run as they stand, from a clone, one after the other."""

import re

import pytest
from conftest import ROOT, run_program
from documented import beginning_of, docstring_commands, from_program, like_a_clone, run_as_shown

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
NOT_HERE = (
    "scripts/evaluate.py --candidates base=runs/quickstart",
    "scripts/prepare_data.py RealSR",
    "scripts/prepare_data.py RealLR200",
    "scripts/user_study.py count",
)


def test_every_program_of_the_method_has_an_example():
    for name in CHAIN:
        assert docstring_commands(ROOT / name), name


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_name_programs_and_flags_that_exist(path):
    for words in docstring_commands(path):
        program, *given = from_program(words)
        assert (ROOT / program).is_file(), words
        told = run_program(program, *[word for word in given[:1] if word in ("make", "count")], "--help", env={"COLUMNS": "200"}).stdout
        for flag in [word for word in given if word.startswith("--")]:
            assert re.search(rf"{flag}\b", told), (flag, words)


def with_few_test_images(folder, count=6):
    """The first of `preset/test` in its place."""
    (folder / "preset/test").unlink()
    for side in ("lr", "gt"):
        (folder / "preset/test" / side).mkdir(parents=True)
        for path in sorted((ROOT / "preset/test" / side).glob("*.png"))[:count]:
            (folder / "preset/test" / side / path.name).symlink_to(path)


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(tmp_path):
    like_a_clone(tmp_path)
    with_few_test_images(tmp_path)
    for name in CHAIN:
        for words in docstring_commands(ROOT / name):
            if not beginning_of(words, NOT_HERE):
                run_as_shown(words, tmp_path, SHORTER)
    for made in (
        "runs/candidates/scores.parquet",
        "runs/dp2o/model.safetensors",
        "runs/sr/.records",
        "runs/sheet.png",
        "runs/study/page.html",
    ):
        assert (tmp_path / made).exists(), made
