"""The container's files: the packages are those of the set-up, what the programs read gets into the image, the entry runs programs.

Nothing is built here. hadolint lints the Dockerfile in continuous integration.
"""

import fnmatch
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.*)$", re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)), re.MULTILINE)
ENTRY = ROOT / "scripts/docker_entry.sh"


def of(name):
    return [words for instruction, words in INSTRUCTIONS if instruction == name]


def is_sent(path):
    """Whether .dockerignore lets a path into the build: the last pattern that fits it or a folder above it decides."""
    parts, sent = path.split("/"), True
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        if any(fits(place.split("/"), pattern.split("/")) for place in above):
            sent = line.startswith("!")
    return sent


def fits(parts, patterns):
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(fits(parts[skipped:], patterns[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and fits(parts[1:], patterns[1:])


def test_the_base_is_pinned_and_the_user_is_not_root():
    [base] = of("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.\d\d", base)
    [user] = of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    names = [name for name, _ in INSTRUCTIONS]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")
    assert of("ENTRYPOINT") == ['["/opt/dp2osr/scripts/docker_entry.sh"]'] and of("WORKDIR") == ["/opt/dp2osr"]


def test_packages_are_installed_as_the_set_up_does():
    [install] = [run for run in of("RUN") if "requirements.txt" in run]
    rule = re.search(r"^WITHOUT_DEPENDENCIES='(.*?)'", (ROOT / "scripts/environment.sh").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert install.count(f"'{rule}'") == 2
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    done = subprocess.run(["grep", "-E", rule, "requirements.txt"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [re.split(r"[^\w-]", line)[0] for line in done.stdout.splitlines()] == ["pyiqa", "facexlib"] and len(lines) > 20
    pip = [part for part in install.split("&&") if "pip install" in part]
    assert len(pip) == 2 and all("-c constraints.txt" in part for part in pip)
    assert ["--no-deps" in part for part in pip] == ["with.txt" not in part or "without" in part for part in pip] == [False, True]
    [editable] = [run for run in of("RUN") if "--editable" in run]
    assert "--no-deps --no-build-isolation --editable ." in editable


def test_what_the_programs_read_gets_into_the_image_and_nothing_of_the_users():
    folders = ["dp2osr", "configs", "studies", "scripts", "preset/metrics", "preset/test", "preset/train"]
    folders += [path.relative_to(ROOT).as_posix() for path in (ROOT / "preset/models").iterdir() if "tiny-" in path.name]
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    needed = [path.relative_to(ROOT).as_posix() for path in [*found, *ROOT.glob("*.py")]]
    needed += [
        "requirements.txt",
        "constraints.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "preset/README.md",
        "preset/models/README.md",
    ]
    assert len(folders) == 15 and len(needed) > 300 and not [path for path in needed if not is_sent(path)]
    for path in (
        ".git/config", ".venv/bin/python", "runs/quickstart/policy/model.safetensors", "my_photographs/a.png", "data/mine/lr/a.png",
        "preset/models/dp2o-sd2/model.safetensors", "preset/models/ram_swin_large_14m.pth", "dp2osr/__pycache__/cli.cpython-312.pyc",
        "tests/conftest.py", "token.txt",
    ):  # fmt: skip
        assert not is_sent(path), path


@pytest.fixture
def entry(tmp_path):
    """The entry as the container runs it: `python` is the one of the environment."""
    (tmp_path / "python").symlink_to(sys.executable)

    def run(*words):
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run([ENTRY, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_the_entry_lists_the_programs_and_runs_what_it_is_given(entry, tmp_path):
    told = entry().stdout
    programs = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py"))]
    for program in programs:
        assert re.search(rf"^  {re.escape(program)} +[A-Z].{{20}}", told, re.MULTILINE), program
    assert entry("--help").stdout == told
    (tmp_path / "one.py").write_text("import os, sys; print(os.getcwd(), sys.argv[1:]); sys.exit(3)")
    done = entry(str(tmp_path / "one.py"), "--a", "b c")
    assert done.stdout == f"{ROOT} ['--a', 'b c']\n" and done.returncode == 3
    assert entry("echo", "x").stdout == "x\n"


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed; .ci/run installs and runs it")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
