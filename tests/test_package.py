"""The package: every folder of it is installed, with the files that it reads, and works from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile

from conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

READ_FROM_ELSEWHERE = """
from dp2osr.data.degradation_settings import load_degradation
from dp2osr.places import PACKAGE, ROOT
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.metrics import MetricSuite
assert ROOT == PACKAGE, ROOT
load_degradation("resshift")
print(sorted(MetricSuite(load_reward_config("embedded").metrics).specs))
"""


def test_every_package_is_listed():
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    found = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in (ROOT / "dp2osr").rglob("__init__.py")}
    assert found <= set(listed) and all(path.parent.joinpath("__init__.py").exists() for path in (ROOT / "dp2osr").rglob("*.py"))


def test_an_installed_package_finds_its_configs_and_metrics_from_another_folder(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for name in ("dp2osr", "studies", "configs", "preset/metrics"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, source / name)
    words = ["wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(elsewhere)
    environment = {**os.environ, "PYTHONPATH": str(elsewhere)}
    done = subprocess.run([sys.executable, "-c", READ_FROM_ELSEWHERE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "brisque" in done.stdout and "dp2o_rank" in done.stdout
