"""What the tests of setup share: fixtures and helpers."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash")
ODD_NAME = "it's mine & ours, Bücher $HOME"


def name_of(path):
    return str(path.relative_to(ROOT))


def write_command(path, body):
    path.write_text(f"#!{BASH}\n{body}\n")
    path.chmod(0o755)


def assert_one_line(run, *words):
    assert run.returncode == 2, run
    assert len(run.stderr.splitlines()) == 1, run.stderr
    for word in ("error: ", *words):
        assert word in run.stderr
