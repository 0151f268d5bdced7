"""The house: install scripts, requirements, launch configs, and what a program owes a user before torch is even imported."""

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from clones import BASH, ODD_NAME, ROOT, assert_one_line, name_of, write_command
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SHELL_SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("scripts/*.sbatch"), ROOT / ".ci" / "run"])


def requirements(file):
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=name_of)
def test_shell_scripts_parse(path):
    subprocess.run([BASH, "-n", str(path)], check=True)


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
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


BACKEND = """
import zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(f"{wheel_directory}/tree-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tree-0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tree\\nVersion: 0\\n")
        wheel.writestr("tree-0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tree-0.dist-info/RECORD", "")
    return "tree-0-py3-none-any.whl"
"""  # a package that is installed without a build's libraries, which are not here


@pytest.fixture
def clone(tmp_path):
    """A bare tree with only what environment.sh reads, one small requirement, and a disk with room."""
    tree = tmp_path / "clone"
    (tree / "scripts").mkdir(parents=True)
    for name in ("environment.sh", "messages.sh"):
        shutil.copy(ROOT / "scripts" / name, tree / "scripts")
    (tree / "requirements.txt").write_text("no-such-package>=1  # a comment\n")
    (tree / "constraints.txt").write_text("")
    (tree / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n')
    (tree / "backend.py").write_text(BACKEND)
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


@pytest.mark.parametrize(("variables", "word"), [({"PYTHON": "/nonexistent"}, "PYTHON=/nonexistent"), ({}, "no Python 3.10-3.13")])
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
    assert_one_line(source_environment(clone, path=tools_only(clone)), "3 GB free")
    assert not (clone / ".venv").exists()


def tools_only(clone):
    """A PATH with what environment.sh calls, and no Python but those that a test puts into `bin`."""
    tools = clone.parent / "tools"
    tools.mkdir()
    for name in ("awk", "mkdir"):
        (tools / name).symlink_to(shutil.which(name))
    return f"{clone.parent}/bin:{tools}"


def pretend_python(clone, version):
    """An interpreter of this version that finds everything it needs, and cannot make a virtual environment."""
    body = f"""
        case "$1" in
            -c) exec "{sys.executable}" -c "import sys; sys.version_info = ({version.replace(".", ", ")}, 0, 'final', 0); $2" ;;
            -V) echo "Python {version}.0" ;;
            *) exit 1 ;;
        esac
    """
    write_command(clone.parent / "bin" / f"python{version}", body)


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_the_only_python_is_taken(clone, version):
    pretend_python(clone, version)
    run = source_environment(clone, path=tools_only(clone))
    assert_one_line(run, f"python{version} cannot make {clone}/.venv")
    assert ("nobody has run the tests" in run.stdout) == (version == "3.14")


@pytest.mark.parametrize("version", ["3.9", "3.15"])
def test_another_python_is_refused(clone, version):
    pretend_python(clone, version)
    assert_one_line(source_environment(clone, path=tools_only(clone)), "no Python 3.10-3.13")
    shutil.rmtree(clone.parent / "tools")
    assert_one_line(source_environment(clone, path=tools_only(clone), PYTHON=f"python{version}"), f"PYTHON=python{version} is not")


def test_of_several_pythons_the_best_tested_is_taken(clone):
    path = tools_only(clone)
    for version in ("3.14", "3.10", "3.13", "3.12", "3.11"):  # each is better than those before it
        pretend_python(clone, version)
        assert_one_line(source_environment(clone, path=path), f"python{version} cannot make")
        shutil.rmtree(clone / ".venv")


def test_a_read_only_clone_is_one_line(clone):
    write_command(clone.parent / "bin" / "mkdir", "echo 'mkdir: cannot create directory: Read-only file system' >&2; exit 1")
    assert_one_line(source_environment(clone), "cannot be made", "Read-only file system", "a folder of your own")
    make_venv(clone / ".venv")  # there, but of other requirements
    assert_one_line(source_environment(clone), "brought up to date", "a folder of your own")


def test_an_environment_in_the_way_is_named_with_a_command_that_moves_it(clone):
    odd = clone.rename(clone.parent / ODD_NAME)
    (odd / ".venv" / "bin").mkdir(parents=True)
    (odd / ".venv" / "bin" / "python").symlink_to("/nonexistent/python")
    run = source_environment(odd)
    assert_one_line(run, "its Python is gone")
    subprocess.run([BASH, "-c", run.stderr.split("again: ")[1]], check=True)
    assert (odd / ".venv.old").is_dir() and not (odd / ".venv").exists()


def test_another_python_than_that_of_the_environment_is_not_passed_over_in_silence(clone):
    make_venv(clone / ".venv")
    (clone / "requirements.txt").write_text("# nothing\n")
    pretend_python(clone, "3.9")
    run = source_environment(clone, PYTHON="python3.9")
    assert run.returncode == 0 and len(run.stderr.splitlines()) == 1
    assert "PYTHON=python3.9 is not" in run.stderr
    assert source_environment(clone, PYTHON=sys.executable).stderr == ""


def test_a_search_path_for_cd_changes_nothing(clone):
    (clone.parent / "elsewhere" / "scripts").mkdir(parents=True)
    make_venv(clone / ".venv")
    (clone / "requirements.txt").write_text("# nothing\n")
    run = source_environment(clone, CDPATH=f"{clone.parent}/elsewhere:{clone.parent}")
    assert run.returncode == 0, run.stderr
    assert f"PY={clone}/.venv/bin/python" in run.stdout


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
