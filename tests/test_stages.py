"""Setup: stages."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from clones import BASH, ODD_NAME, ROOT, assert_one_line, name_of, write_command

STUDIES = [path for path in ROOT.glob("studies/*.py") if "__main__" in path.read_text(encoding="utf-8")]
PROGRAMS = sorted([*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"), *STUDIES])
STAGE_CONFIGS = {
    "sample": "gen_candidates.py",
    "test": "gen_candidates.py",
    "label": "label_rewards.py",
    "label_test": "label_rewards.py",
    "train": "train_{}_dpo.py",
    "baseline": "scripts/train_controlnet.py",
    "evaluate": "scripts/evaluate.py",
}


# scripts/run_stages.py is run, by a Python that takes itself for the fake one: the programs that it starts are not
REAL_STAGES = f"""case "$1" in *run_stages.py) exec {sys.executable} -c '
import runpy, sys
sys.executable, sys.argv = sys.argv[1], sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$0" "$@" ;; esac"""


def run_stages(tmp_path, fake_python, rounds="", backbone=None):
    """`run_stages` of scripts/stages.sh with a Python that only notes which programs it was asked for."""
    configs = tmp_path / "configs"
    configs.mkdir(exist_ok=True)
    for name in STAGE_CONFIGS:
        (configs / f"{name}.yaml").write_text(f"backbone: {backbone}  # as said\n" if name == "train" and backbone else "")
    write_command(tmp_path / "python", f"{REAL_STAGES}\n{fake_python}")
    script = f"""
        set -euo pipefail
        PY={tmp_path}/python
        export OMP_NUM_THREADS=2
        source scripts/stages.sh
        run_stages {configs} {tmp_path}/run {rounds}
    """
    return subprocess.run([BASH, "-c", script], cwd=ROOT, capture_output=True, text=True)


NOTE = 'echo "$@" >>{0}/calls; case "$*" in *evaluate*) echo "G = 0.4";; esac'


def programs(calls):
    """The script that each noted command line runs, launched or not."""
    return [next(word for word in call.split() if word.endswith(".py")) for call in calls]


def test_stages_hand_each_folder_to_the_next(tmp_path):
    done = run_stages(tmp_path, NOTE.format(tmp_path))
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    sampled = ["gen_candidates.py", "label_rewards.py"]
    assert programs(calls) == [*sampled, "train_sd2_dpo.py", *sampled, *sampled, "scripts/evaluate.py"]
    out = tmp_path / "run"
    assert f"--candidates_dir {out}/candidates --scores {out}/candidates/scores.parquet --output_dir {out}/policy" in calls[2]
    assert "--controlnet_model_name_or_path" not in calls[3]
    assert f"--output_dir {out}/test/policy --controlnet_model_name_or_path {out}/policy" in calls[5]
    assert f"--candidates base={out}/test/base policy={out}/test/policy" in calls[7]
    assert "[1/8]" in done.stdout
    assert done.stdout.endswith("\n\nG = 0.4\n")


def test_each_round_starts_from_the_policy_of_the_one_before(tmp_path):
    done = run_stages(tmp_path, NOTE.format(tmp_path), rounds=3)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    sampled, out = ["gen_candidates.py", "label_rewards.py"], tmp_path / "run"
    assert programs(calls) == [*(sampled + ["train_sd2_dpo.py"]) * 3, *sampled * 2, "scripts/evaluate.py"]
    assert "--controlnet" not in calls[0] and "--seed" not in calls[0] and "--controlnet" not in calls[2]
    assert f"{out}/candidates-3 --images_offset 2 --controlnet_model_name_or_path {out}/policy-2 --seed 2" in calls[6]
    assert f"--output_dir {out}/policy-3 --controlnet_model_name_or_path {out}/policy-2 --seed 2" in calls[8]
    assert calls[11].endswith(f"--output_dir {out}/test/policy --controlnet_model_name_or_path {out}/policy-3")
    logs = " ".join(f"{out}/{name}/train_log.jsonl" for name in ("policy", "policy-2", "policy-3"))
    assert f"base={out}/test/base policy={out}/test/policy --training_log {logs}" in calls[13]
    assert "[14/14]" in done.stdout
    assert not any("--reference_controlnet" in call for call in calls)


def test_the_reference_of_later_rounds_may_stay_the_base(tmp_path):
    (tmp_path / "configs").mkdir()
    run_stages(tmp_path, NOTE.format(tmp_path), rounds="2 fixed", backbone="sd2\ncontrolnet_model_name_or_path: the/base")
    trained = [call for call in (tmp_path / "calls").read_text().splitlines() if "train_sd2_dpo" in call]
    assert "--reference_controlnet" not in trained[0]
    assert trained[1].endswith("policy --seed 1 --reference_controlnet_model_name_or_path the/base")


@pytest.mark.parametrize("backbone", ["sd2", "flux"])
def test_the_settings_say_which_program_trains(tmp_path, backbone):
    run_stages(tmp_path, NOTE.format(tmp_path), backbone=backbone)
    assert programs((tmp_path / "calls").read_text().splitlines())[2] == f"train_{backbone}_dpo.py"


@pytest.mark.parametrize("words", [["--backbone", "sdxl"], ["flux"]])
def test_a_quickstart_of_something_else_is_one_line(words):
    done = subprocess.run([BASH, "scripts/quickstart.sh", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "usage" in done.stderr


FAILURE = """printf '%s\\n' "$@" '' >>"{0}/calls"; case "$*" in *train_sd2*) exit {1};; esac"""


def test_a_failed_stage_ends_the_run_with_its_exit_code(tmp_path):
    failed = run_stages(tmp_path, f'echo "$@" >>{tmp_path}/calls; case "$*" in *train_sd2*) exit 3;; esac')
    assert failed.returncode == 3
    assert "stopped in stage 3/8" in failed.stderr
    assert len((tmp_path / "calls").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("code", "words"),
    [(2, "mend what the error above says"), (1, "may come again"), (137, "memory"), (129, "goes on"), (130, "goes on"), (143, "goes on")],
)
def test_a_stopped_run_promises_to_go_on_only_where_it_does(tmp_path, code, words):
    stopped = run_stages(tmp_path, FAILURE.format(tmp_path, code))
    assert stopped.returncode == code
    last = stopped.stderr.splitlines()[-1]
    assert words in last and f"exit code {code}" in last
    assert ("the same command goes on from here" in last) == (code in (129, 130, 137, 143))


@pytest.fixture
def installed_clone(tmp_path):
    """The shell scripts and settings in a folder with an odd name, and a finished environment whose Python only notes what it was asked."""
    tree = tmp_path / ODD_NAME
    for folder in ("configs/tiny_sd2/quickstart", "configs/tiny_flux/quickstart"):
        shutil.copytree(ROOT / folder, tree / folder)
    (tree / "scripts").mkdir()
    for script in [*ROOT.glob("scripts/*.sh"), ROOT / "scripts/run_stages.py"]:
        shutil.copy(script, tree / "scripts")
    for name in ("requirements.txt", "constraints.txt", ".venv/installed.stamp"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("")
    (tree / ".venv" / "bin").mkdir()
    noting_python(tree)
    return tree


def noting_python(tree, failing="nothing", code=0):
    calls = f'printf \'%s\\n\' "$@" \'\' >>"$CALLS"; case "$*" in *{failing}*) exit {code};; esac'
    write_command(tree / ".venv" / "bin" / "python", f'if [ "$1" = -c ]; then exit 0; fi\n{REAL_STAGES}\n{calls}')


def run_script(tree, command, **variables):
    """`command` from a folder beside the clone, as a user types it; each word of the calls is one line of `calls`."""
    beside = tree.parent / "beside"
    beside.mkdir(exist_ok=True)
    calls = tree.parent / "calls"
    calls.unlink(missing_ok=True)
    env = {key: value for key, value in os.environ.items() if key != "PYTHON"} | {"CALLS": str(calls), "OMP_NUM_THREADS": "1", **variables}
    words = command if isinstance(command, str) else " ".join(map(shlex.quote, map(str, command)))
    return subprocess.run([BASH, "-c", words], cwd=beside, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_folders_of_any_name_are_read_and_written_and_the_command_to_go_on_can_be_pasted(installed_clone, locale):
    full_run = installed_clone / "scripts" / "full_run.sh"
    configs = installed_clone.parent / "beside" / f"configs of {ODD_NAME}"
    shutil.copytree(installed_clone / "configs/tiny_sd2/quickstart", configs)
    noting_python(installed_clone, failing="train_sd2", code=2)
    stopped = run_script(installed_clone, [BASH, full_run, configs.name, f"out of {ODD_NAME}", "1"], LC_ALL=locale)
    assert stopped.returncode == 2, stopped.stderr
    assert len((installed_clone.parent / "calls").read_text().split("\n\n")) - 1 == 3

    noting_python(installed_clone)
    done = run_script(installed_clone, stopped.stderr.strip().split("run again: ")[1], LC_ALL=locale)
    assert done.returncode == 0, done.stderr
    words = (installed_clone.parent / "calls").read_text().splitlines()
    out = configs.parent / f"out of {ODD_NAME}"
    assert str(configs / "sample.yaml") in words and str(out / "candidates") in words
    assert f"policy={out}/test/policy" in words
    assert [path.name for path in configs.parent.iterdir() if path not in (configs, out)] == []
    assert (out / "table.txt").exists()


def test_the_quickstart_runs_in_a_clone_of_any_name(installed_clone):
    noting_python(installed_clone, failing="train_flux", code=130)
    stopped = run_script(installed_clone, [BASH, installed_clone / "scripts" / "quickstart.sh", "--backbone", "flux"])
    assert stopped.returncode == 130, stopped.stderr
    noting_python(installed_clone)
    again = run_script(installed_clone, stopped.stderr.strip().split("from here: ")[1])
    assert again.returncode == 0, again.stderr
    assert "configs/tiny_flux/quickstart/train.yaml" in (installed_clone.parent / "calls").read_text().splitlines()


def output_that_is_a_file(folder):
    (folder / "taken").write_text("a user's\n")
    return folder / "taken", "is a file"


OUTPUTS = {
    "a file": output_that_is_a_file,
    "below a file": lambda folder: (output_that_is_a_file(folder)[0] / "run", "cannot be made (Not a directory)"),
    "cannot be made": lambda folder: (Path("/proc/nothing/run"), "cannot be made"),
    "cannot be written": lambda folder: (Path("/proc/self"), "cannot be written"),
    "a name too long": lambda folder: (folder / ("x" * 300), "cannot be made (File name too long)"),
    "empty": lambda folder: ("", "OUTPUT_DIR is empty"),
}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_folder_that_cannot_be_one_is_one_line_before_anything_is_installed(installed_clone, kind):
    output, words = OUTPUTS[kind](installed_clone.parent)
    shutil.rmtree(installed_clone / ".venv")
    run = run_script(
        installed_clone, [BASH, installed_clone / "scripts/full_run.sh", installed_clone / "configs/tiny_sd2/quickstart", output]
    )
    assert_one_line(run, words)
    assert run.stdout == "" and not (installed_clone / ".venv").exists()


@pytest.mark.parametrize("backbone", ["sd2", "flux"])
def test_all_missing_settings_are_named_at_once_with_a_command_that_copies_them(installed_clone, backbone):
    configs = installed_clone.parent / f"configs of {ODD_NAME}"
    shutil.copytree(installed_clone / f"configs/tiny_{backbone}/quickstart", configs)
    for name in ("sample", "label_test", "evaluate"):
        (configs / f"{name}.yaml").unlink()
    command = [BASH, installed_clone / "scripts/full_run.sh", configs, installed_clone.parent / "out", "1"]
    run = run_script(installed_clone, command)
    assert_one_line(run, "sample.yaml, label_test.yaml, evaluate.yaml missing")
    assert not (installed_clone.parent / "out").exists()
    assert run_script(installed_clone, run.stderr.split("edit: ")[1]).returncode == 0
    original = installed_clone / f"configs/tiny_{backbone}/quickstart/sample.yaml"
    assert (configs / "sample.yaml").read_text() == original.read_text()
    assert run_script(installed_clone, command).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["my", "configs", "out", "1", "moved"], "a path with spaces must be quoted"),
        ([""], "CONFIG_DIR is empty"),
        (["no such folder"], r"no\ such\ folder is not a folder"),
    ],
)
def test_arguments_of_a_full_run_that_cannot_be_are_one_line(installed_clone, words, message):
    assert_one_line(run_script(installed_clone, [BASH, installed_clone / "scripts/full_run.sh", *words]), message)


@pytest.mark.parametrize(
    ("train", "backbone", "base"),
    [
        ("", "sd2", None),
        ("# backbone: flux\nbackbone: null\n", "sd2", None),
        ("{backbone: flux, controlnet_model_name_or_path: the/base}\n", "flux", "the/base"),
        ('\ufeff"backbone": flux  # as said\r\ncontrolnet_model_name_or_path: >-\r\n  the/base\r\n', "flux", "the/base"),
        ("controlnet_model_name_or_path: 'it''s # the base'\nreference_controlnet_model_name_or_path: other\n", "sd2", "it's # the base"),
    ],
)
def test_what_the_stages_read_of_train_yaml_is_what_the_programs_read(tmp_path, train, backbone, base):
    from dp2osr.experiments.all_stages import check_stages

    for name in STAGE_CONFIGS:
        (tmp_path / f"{name}.yaml").write_text(train if name == "train" else "", encoding="utf-8")
    assert check_stages(tmp_path, tmp_path / "out") == (backbone, base)


def test_a_backbone_that_is_none_is_one_line(tmp_path):
    assert_one_line(run_stages(tmp_path, NOTE.format(tmp_path), backbone="'sd3'"), "backbone is 'sd3'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("configs/tiny_*/*/*.yaml"), *ROOT.glob("configs/flux_dev/**/*.yaml"), *ROOT.glob("configs/sd2_base/**/*.yaml")]),
    ids=name_of,
)
def test_stage_settings_are_flags_of_their_program(path):
    program = STAGE_CONFIGS[path.stem].format("flux" if "flux" in str(path.relative_to(ROOT)) else "sd2")
    flags = {word.strip(",") for word in help_of(ROOT / program).stdout.replace("[", " ").replace("]", " ").split()}
    for key in yaml.safe_load(path.read_text()):
        assert f"--{key}" in flags, f"{key} is no flag of {program}"


@functools.cache
def help_of(program, blocked=None):
    env = {**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(filter(None, [blocked, str(ROOT)]))}
    return subprocess.run([sys.executable, str(program), "--help"], cwd="/", env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("program", PROGRAMS, ids=name_of)
def test_help_needs_no_torch(program, tmp_path_factory):
    blocked = tmp_path_factory.getbasetemp() / "no_torch"
    blocked.mkdir(exist_ok=True)
    (blocked / "torch.py").write_text("raise ImportError('torch was imported for --help')\n")
    shown = help_of(program, str(blocked))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("usage: ")
    assert shown.stderr == ""


def test_pytest_leaves_the_testing_programs_alone(tmp_path):
    """test_sd2b_controlnet.py is a program: bare `pytest` must not import it."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_sd2b_controlnet.py").write_text("raise RuntimeError('collected')\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("def test_one():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout


PROCESSES = {"cpu": 1, "single_gpu": 1, "8gpu": 8, "2nodes_8gpu": 16}


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_configs_load(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))  # unknown keys raise
    assert config.num_processes == PROCESSES[name]
    assert config.use_cpu == (name == "cpu")


def test_no_accelerate_config_is_untested():
    assert {path.stem for path in (ROOT / "configs" / "accelerate").glob("*.yaml")} == set(PROCESSES)
