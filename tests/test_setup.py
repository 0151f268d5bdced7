"""The house: install scripts, requirements, launch configs, and what a program owes a user before torch is even imported."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash")
SHELL_SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("scripts/*.sbatch"), ROOT / ".ci" / "run"])
PROGRAMS = sorted([*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py")])
STAGE_CONFIGS = {
    "sample": "gen_candidates.py",
    "test": "gen_candidates.py",
    "label": "label_rewards.py",
    "label_test": "label_rewards.py",
    "train": "train_{}_dpo.py",
    "evaluate": "scripts/evaluate.py",
}


def name_of(path):
    return str(path.relative_to(ROOT))


def write_command(path, body):
    path.write_text(f"#!{BASH}\n{body}\n")
    path.chmod(0o755)


def requirements(file):
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=name_of)
def test_shell_scripts_parse(path):
    subprocess.run([BASH, "-n", str(path)], check=True)


# ---------------------------------------------------------------------------------------------------- requirements


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_every_requirement_has_one_exact_version_within_its_range(python):
    pins = {}
    for pin in requirements("constraints.txt"):
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            assert pins.setdefault(canonicalize_name(pin.name), pin) is pin, f"{pin.name} is pinned twice"
            assert [clause.operator for clause in pin.specifier] == ["=="], f"{pin} is not exact"
    for wanted in requirements("requirements.txt"):
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted.name} is not in constraints.txt"
        assert wanted.specifier.contains(next(iter(pin.specifier)).version), f"{pin} is outside of {wanted}"


# ---------------------------------------------------------------------------------------------------- environment.sh


@pytest.fixture
def clone(tmp_path):
    """A bare tree with only what environment.sh reads, one small requirement, and a disk with room."""
    tree = tmp_path / "clone"
    (tree / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "environment.sh", tree / "scripts")
    (tree / "requirements.txt").write_text("no-such-package>=1  # a comment\n")
    (tree / "constraints.txt").write_text("")
    (tmp_path / "bin").mkdir()
    set_free_disk(tmp_path, gigabytes=500)
    return tree


def set_free_disk(tmp_path, gigabytes):
    write_command(tmp_path / "bin" / "df", f"echo Filesystem; echo /dev/fake 0 0 {gigabytes * 2**20} 0% /")


def source_environment(clone, path=None, **variables):
    """Run `source scripts/environment.sh` offline, with the machine's own pip settings switched off."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_") and key not in ("PYTHON", "OMP_NUM_THREADS")}
    env |= {"PATH": path or f"{clone.parent}/bin:{os.environ['PATH']}", "PIP_CONFIG_FILE": os.devnull}
    env |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", **variables}
    command = 'source scripts/environment.sh; echo "PY=$PY threads=$OMP_NUM_THREADS"'
    return subprocess.run([BASH, "-c", command], cwd=clone, env=env, capture_output=True, text=True, timeout=120)


def assert_one_line(run, *words):
    assert run.returncode == 2, run
    assert len(run.stderr.splitlines()) == 1, run.stderr
    for word in ("error: ", *words):
        assert word in run.stderr


@pytest.mark.parametrize(("variables", "word"), [({"PYTHON": "/nonexistent"}, "PYTHON=/nonexistent"), ({}, "no Python 3.10-3.12")])
def test_without_python_one_line(clone, variables, word):
    empty = clone.parent / "empty"
    empty.mkdir()
    assert_one_line(source_environment(clone, path=str(empty), **variables), word)
    assert not (clone / ".venv").exists()


def test_a_shim_that_does_not_run_is_passed_over_and_a_full_disk_is_one_line(clone):
    """The disk is looked at after Python was found: reaching that message shows that the dead shim did not end the search."""
    write_command(clone.parent / "bin" / "python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    write_command(clone.parent / "bin" / "python3.12", f'exec "{sys.executable}" "$@"')
    set_free_disk(clone.parent, gigabytes=3)
    tools = clone.parent / "tools"
    tools.mkdir()
    (tools / "awk").symlink_to(shutil.which("awk"))
    assert_one_line(source_environment(clone, path=f"{clone.parent}/bin:{tools}"), "3 GB free")
    assert not (clone / ".venv").exists()


def make_venv(folder):
    """A virtual environment with this one's pip: ensurepip would take half of the test's time."""
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    shutil.copytree(Path(importlib.util.find_spec("pip").origin).parent, site / "pip")
    return site


def test_no_network_then_recovery_then_a_quick_second_run(clone):
    site = make_venv(clone / ".venv")
    assert_one_line(source_environment(clone), "cannot reach its package index")
    assert not (clone / ".venv" / "installed.stamp").exists()

    # what a kill in the middle of a package leaves behind, and a user's own file
    half = site / "torch-1.0.dist-info"
    half.mkdir()
    (half / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    (site / "mine.py").write_text("")

    (clone / "requirements.txt").write_text("# nothing more\n")
    repaired = source_environment(clone)
    assert repaired.returncode == 0, repaired.stderr
    assert not half.exists()
    assert (site / "mine.py").exists()
    assert f"PY={clone}/.venv/bin/python threads={len(os.sched_getaffinity(0))}" in repaired.stdout

    again = source_environment(clone, OMP_NUM_THREADS="7")
    assert again.stdout == f"PY={clone}/.venv/bin/python threads=7\n"


# ---------------------------------------------------------------------------------------------------- stages


def run_stages(tmp_path, fake_python, rounds="", backbone=None):
    """`run_stages` of scripts/stages.sh with a Python that only notes what it was asked."""
    configs = tmp_path / "configs"
    configs.mkdir(exist_ok=True)
    for name in STAGE_CONFIGS:
        (configs / f"{name}.yaml").write_text(f"backbone: {backbone}  # as said\n" if name == "train" and backbone else "")
    write_command(tmp_path / "python", fake_python)
    script = f"""
        set -euo pipefail
        fail() {{ echo "error: $*" >&2; exit 2; }}
        PY={tmp_path}/python OMP_NUM_THREADS=2
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


def test_a_failed_stage_ends_the_run_with_its_exit_code(tmp_path):
    failed = run_stages(tmp_path, f'echo "$@" >>{tmp_path}/calls; case "$*" in *train_sd2*) exit 3;; esac')
    assert failed.returncode == 3
    assert "stopped in stage 3/8" in failed.stderr
    assert len((tmp_path / "calls").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("configs/tiny_*/*/*.yaml"), *ROOT.glob("configs/flux_dev/*.yaml"), *ROOT.glob("configs/sd2_base/*.yaml")]),
    ids=name_of,
)
def test_stage_settings_are_flags_of_their_program(path):
    program = STAGE_CONFIGS[path.stem].format("flux" if "flux" in str(path.relative_to(ROOT)) else "sd2")
    flags = {word.strip(",") for word in help_of(ROOT / program).stdout.replace("[", " ").replace("]", " ").split()}
    for key in yaml.safe_load(path.read_text()):
        assert f"--{key}" in flags, f"{key} is no flag of {program}"


# ---------------------------------------------------------------------------------------------------- programs


@functools.cache
def help_of(program, blocked=None):
    env = {**os.environ, "COLUMNS": "200"}
    if blocked:
        env["PYTHONPATH"] = blocked
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


# ---------------------------------------------------------------------------------------------------- accelerate


PROCESSES = {"cpu": 1, "single_gpu": 1, "8gpu": 8, "2nodes_8gpu": 16}


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_configs_load(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))  # unknown keys raise
    assert config.num_processes == PROCESSES[name]
    assert config.use_cpu == (name == "cpu")


def test_no_accelerate_config_is_untested():
    assert {path.stem for path in (ROOT / "configs" / "accelerate").glob("*.yaml")} == set(PROCESSES)
