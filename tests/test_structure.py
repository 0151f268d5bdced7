"""The house: no two modules import each other, stages import what comes before them alone, files and functions stay short."""

import ast
import re
from functools import cache

import pytest
from conftest import ROOT

# From the bottom up: a folder or module imports those above it in this list alone, and its own floor's others never.
FLOORS = [
    {"threads", "markdown"},
    {"errors", "places", "commands", "fields"},
    {"device", "divergence", "parallel", "launch", "flops", "digests", "files"},
    {"outputs", "results", "locks"},
    {"sharing"},
    {"cli"},
    {"hub"},
    {"schema"},
    {"data"},
    {"backbones"},
    {"provenance"},
    {"prompts"},
    {"sampling"},
    {"rewards"},
    {"stats", "preference"},
    {"training", "evaluation"},
    {"planning", "experiments", "publishing"},
    {"checkup", "api"},
    {"demo"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
SHOWN = [
    path.relative_to(ROOT).as_posix()
    for folder in ("dp2osr", "scripts", "bench", "studies", "integrations", "tests")
    for path in (ROOT / folder).rglob("*.py")
]


@cache
def imports_of(path):
    """Modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dp2osr"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("dp2osr")}
    return found


def is_module(name):
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def module_of(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


PACKAGE = {module_of(path): path for path in SHOWN if path.startswith("dp2osr/")}


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imports_of(path) & PACKAGE.keys() - {name} for name, path in PACKAGE.items()}
    while graph:
        ends = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert ends, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in ends}


def test_no_import_runs_back_up():
    wrong = []
    for name, path in PACKAGE.items():
        own = name.split(".")[1] if "." in name else ""
        for needed in imports_of(path):
            other = needed.split(".")[1] if "." in needed else ""
            if own and other and own != other and FLOOR[other] >= FLOOR[own]:
                wrong.append(f"{name} imports {needed}")
    assert not wrong


def test_the_picture_on_the_architecture_page_is_true():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", page, re.MULTILINE))
    stages = {path.parent.name for path in (ROOT / "dp2osr").glob("*/__init__.py")}
    found = set()
    for name, path in PACKAGE.items():
        own = name.split(".")[1] if "." in name else ""
        found |= {(own, other) for needed in imports_of(path) if (other := needed.split(".")[1]) in stages - {own} and own in stages}
    assert drawn == found
    named = set(re.findall(r"`(?:dp2osr/)?((?:[a-z_]+/)+[a-z_0-9]+\.py)[:`]", page))
    assert named and not [name for name in named if not (ROOT / "dp2osr" / name).exists() and not (ROOT / name).exists()]
    small = {path.name for path in (ROOT / "dp2osr").glob("*.py")} - {"__init__.py"}
    assert small == set(re.findall(r"`(\w+\.py)`", " ".join(re.findall(r"^\|([^|]*)\|", page, re.MULTILINE))))


def test_no_two_modules_have_one_name_nor_one_of_the_standard_library():
    import sys

    names = [path.rsplit("/", 1)[1].removesuffix(".py") for path in PACKAGE.values() if not path.endswith("__init__.py")]
    of_stages = {"settings"}  # each stage's
    assert {name for name in names if names.count(name) > 1} <= of_stages
    assert not set(names) & set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", SHOWN)
def test_files_and_functions_are_short(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert not long and text.count("\n") <= 350, f"{path}: {text.count(chr(10))} lines {long}"
