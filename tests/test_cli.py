"""Settings: flags, YAML and Python give the same values, and what is wrong is one line, wherever it is from."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from dp2osr.cli import Settings, given, made, parse, refuse_ignored
from dp2osr.errors import UserError
from dp2osr.fields import Count, Finite, Natural, PartOfAName, Positive, RegularExpression, Share, at_least, default_is, metavar


@dataclass(kw_only=True)
class Base(Settings):
    """What several have."""

    model: str
    """A model."""
    seed: Natural = 0
    """Of the run."""


@dataclass(kw_only=True)
class Example(Base):
    """All kinds of fields."""

    steps: Annotated[Count | None, default_is("the model's")] = None
    """Steps."""
    kind: Literal["ddpm", "ddim"] | None = None
    """Kind."""
    overwrite: bool = False
    """Make anew."""
    share: Share = 0.5
    """A share."""
    rate: Positive = 1e-4
    """A rate."""
    shift: Finite = 0.0
    """A shift."""
    window: Annotated[tuple[Share, Share], metavar("LOW HIGH")] = (0.0, 1.0)
    """A range."""
    names: list[str] = field(default_factory=list)
    """Names."""
    sizes: list[Annotated[int, at_least(2)]] | None = None
    """Sizes."""
    suffix: PartOfAName = ""
    """A suffix."""
    pattern: RegularExpression = r"_\d\d$"
    """A pattern."""


def read(*words):
    return parse(Example, ["--model", "m", *words])


def test_flags_have_the_names_and_the_types_of_the_fields():
    found = read(
        "--steps", "3", "--overwrite", "--window", "0.4", "1", "--names", "a", "b", "--sizes", "2", "4", "--seed=7", "--kind", "ddim"
    )
    expected = Example(model="m", steps=3, overwrite=True, window=(0.4, 1.0), names=["a", "b"], sizes=[2, 4], seed=7, kind="ddim")
    assert found == expected
    assert read("--suffix=", "--names").suffix == "" and read("--names").names == []
    assert read("--shift", "-3").shift == -3.0 and read("--suffix", "None").suffix == "None"


def test_the_command_line_wins_wherever_the_yaml_stands_and_the_last_of_two_counts(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("seed: 5\nsteps: 9\nnames: [x, no]\nsuffix: 001\noverwrite: true\nkind:\n")
    for words in (["--config", path, "--steps", "2"], ["--steps", "2", "--config", path], ["--steps", "2", f"--config={path}"]):
        found = read(*words)
        assert (found.seed, found.steps, found.names, found.suffix, found.overwrite, found.kind) == (5, 2, ["x", "no"], "001", True, None)
    assert read("--steps", "2", "--steps", "4").steps == 4
    assert given(Example, ["--model", "m", "--config", path, "--window", "0", "1"]) == {
        "model", "seed", "steps", "names", "suffix", "overwrite", "kind", "window",
    }  # fmt: skip
    assert parse(Example, ["--model", "m"], seed=3).seed == 3 and parse(Example, ["--model", "m", "--seed", "4"], seed=3).seed == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--step", "3"], "error: unknown --step; the nearest known one is '--steps' (see --help)"),
        (["--steps", "0"], "error: argument --steps: must be at least 1, not 0 (see --help)"),
        (["--steps", "1.5"], "error: argument --steps: '1.5' is not a whole number (see --help)"),
        (["--steps", str(2**63)], f"error: argument --steps: must be at most {2**63 - 1}, not {2**63} (see --help)"),
        (["--share", "1.5"], "error: argument --share: must lie between 0 and 1, not 1.5 (see --help)"),
        (["--rate", "inf"], "error: argument --rate: must be a finite number above 0, not inf (see --help)"),
        (["--shift", "nan"], "error: argument --shift: must be a finite number, not nan (see --help)"),
        (["--kind", "foo"], "error: argument --kind: is 'foo', must be one of ddpm, ddim (see --help)"),
        (["--steps"], "error: argument --steps: expected a value (see --help)"),
        (["--window", "0"], "error: argument --window: expected a value (see --help)"),
        (["--suffix", "a/b"], "error: argument --suffix: 'a/b' is no part of a file's name (see --help)"),
        (["stray"], "error: unknown stray (see --help)"),
        (["--config"], "error: argument --config: expected one argument (see --help)"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        read(*words)
    assert stopped.value.code == 2 and capsys.readouterr().err == f"{line}\n"


def test_what_is_required_is_named(capsys):
    with pytest.raises(SystemExit):
        parse(Example, ["--seed", "1"])
    assert capsys.readouterr().err == "error: the following arguments are required: --model (see --help)\n"
    for words in (["--steps", "0"], ["--steps=0"], ["--overwrite", "--names", "a", "--steps", "0"]):  # what is wrong comes first
        with pytest.raises(SystemExit):
            parse(Example, words)
        assert capsys.readouterr().err == "error: argument --steps: must be at least 1, not 0 (see --help)\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("stepps: 3", "unknown setting 'stepps'; the nearest known one is 'steps'"),
        ("steps: 0", "steps: must be at least 1, not 0"),
        ("steps: [1, 2]", "steps: takes one value, not ['1', '2']"),
        ("window: [0]", "window: takes 2 values, not 1"),
        ("window: [0, 2]", "window: must lie between 0 and 1, not 2"),
        ("overwrite: 3", "overwrite: is a switch, true or false, not '3'"),
        ("kind: foo", "kind: is 'foo', must be one of ddpm, ddim"),
        ("sizes: [1]", "sizes: must be at least 2, not 1"),
        ("- a", "must be a list of 'flag: value' lines"),
    ],
)
def test_a_mistake_in_a_yaml_is_one_line_that_names_it(tmp_path, content, reason):
    path = tmp_path / "a.yaml"
    path.write_text(f"{content}\n")
    with pytest.raises(UserError) as error:
        read("--config", path)
    assert str(error.value) == f"{path}: {reason}"


def test_python_is_checked_as_the_command_line_is():
    for field_name, value, reason in (
        ("steps", 0, "must be at least 1"),
        ("steps", 2.5, "not of type int"),
        ("share", 2, "between 0 and 1"),
        ("kind", "foo", "one of ddpm, ddim"),
        ("window", (0.0, 3.0), "between 0 and 1"),
        ("sizes", [1], "at least 2"),
    ):
        with pytest.raises(UserError, match=f"--{field_name}: .*{reason}"):
            Example(model="m", **{field_name: value})
    assert Example(model="m", rate=1).rate == 1


def test_settings_of_a_mapping_name_where_they_are_from():
    assert made(Example, {"model": "m", "steps": 3, "names": ["a"]}, "arm 'x'") == Example(model="m", steps=3, names=["a"])
    with pytest.raises(UserError, match="^arm 'x': the following arguments are required: --model$"):
        made(Example, {"steps": 3}, "arm 'x'")
    with pytest.raises(UserError, match="^arm 'x': steps: must be at least 1, not -1$"):
        made(Example, {"model": "m", "steps": -1}, "arm 'x'")


def test_a_command_chooses_its_settings(capsys):
    commands = {"base": Base, "example": Example}
    assert parse(commands, ["example", "--model", "m", "--steps", "2"]) == Example(model="m", steps=2)
    assert parse(commands, ["base", "--model", "m"]) == Base(model="m")
    for words in ([], ["other"]):
        with pytest.raises(SystemExit):
            parse(commands, words)
        assert capsys.readouterr().err.startswith("error: ")


def test_help_says_what_each_flag_is_and_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Example, ["--help"], description="What it does.")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stopped.value.code == 0
    for words in (
        "What it does.",
        "--config",
        "--steps INT Steps. (default: the model's)",
        "Of the run. (default: 0)",
        "--overwrite Make anew.",
    ):
        assert words in text, text


def test_flags_that_would_do_nothing_are_refused_together():
    refuse_ignored({"a"}, ("b",), "here")
    with pytest.raises(UserError, match="^--a, --b: would do nothing here; leave them out$"):
        refuse_ignored({"a", "b", "c"}, ("a", "b"), "here")
