"""Bad and odd inputs, one after another, at the programs that they concern: nothing of a user's is lost, and nothing is silently wrong.

Each case builds its input in a folder of its own, runs a program there as its command line does (in this process, and one case of each kind
as a process of its own), and says what must come of it: one clear line and exit code 2, or results that are right, with what was not done
said. In every case all files that were there are compared by content before and after, and nothing half-written may remain.

    python tests/test_bad_inputs.py --write      # docs/BAD_INPUTS.md, the table of what was given and what came out
    python tests/test_bad_inputs.py WORD ...     # the cases with these words in their ids: those that do not do what they must, and why
"""

import contextlib
import fnmatch
import functools
import hashlib
import io
import json
import os
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

CACHE = Path(tempfile.mkdtemp(prefix="dp2osr-cache-"))
os.environ.setdefault("DP2OSR_CACHE_DIR", str(CACHE))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "BAD_INPUTS.md"
LONGEST_LINE = 160
SECONDS = 15  # of the processor that one program may take before it counts as one that hangs
WAIT = 200  # seconds in all, for one that waits
MEMORY = 8 << 30  # bytes of address space that one program may take beside what this process has

KINDS = {
    1: "Files of the user's",
    2: "Defaults",
    3: "Silence",
    4: "Bad files in a folder",
    5: "YAML and flags",
    6: "Paths, sizes and models that cannot be used",
    7: "Models by hub id",
    8: "Cost",
    9: "Going on",
    10: "Metrics, scores and odd images",
}


# ---------------------------------------------------------------------------------------------------------------------
# What came of a program
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """A program that has ended: exit code, or None and what it raised; its output; the user's files before and after."""

    code: int | None
    out: str
    err: str
    raised: str
    folder: Path
    before: dict
    after: dict
    fits: object = None  # the outcome that the case allows, or None where it is none of them

    @property
    def lines(self):
        """Lines of the output without progress bars and blank ones, stderr last."""
        return [line.strip() for text in (self.out, self.err) for line in plain_lines(text)]

    @property
    def last_error_line(self):
        return (plain_lines(self.err) or [""])[-1]

    def fault(self, may_change, may_appear):
        """(kind of fault, what it is) of what no program may do whatever its input, or None."""
        if self.raised or "Traceback (most recent call last)" in self.out + self.err:
            return "traceback", self.raised or self.last_error_line
        lost = [name for name, content in self.before.items() if self.after.get(name) != content and not matches(name, may_change)]
        if lost:
            return "file lost", f"{', '.join(lost)} (exit code {self.code})"
        new = [name for name, content in self.after.items() if name not in self.before and content != "folder"]
        parts = [name for name in new if re.search(r"\.(part|tmp|old)(/|$)", name)]
        if parts:
            return "half-written", ", ".join(parts)
        extra = [name for name in new if may_appear is not None and not matches(name, may_appear)]
        if extra:
            return "half-written", f"{', '.join(extra)} after an error"
        return None


def plain_lines(text):
    """Lines without progress bars (the last state of a line that was drawn over) and without blank ones."""
    lines = [line.split("\r")[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line.strip() and not re.search(r"\d+%\|.*\||\d+it \[|\[\d\d:\d\d", line)]


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Refused:
    """Exit code 2 and one line `error: ...` that holds all of `says` (regular expressions); nothing is written but what `writes` allows."""

    says: tuple
    writes: tuple = ()
    never: tuple = ()  # what the line must not say

    def fault(self, outcome):
        common = outcome.fault((), self.writes)
        if common and common[0] != "half-written":
            return common
        if outcome.code == 0:
            return "silent", f"exit code 0; said: {' / '.join(outcome.lines[-2:])[:200] or 'nothing'}"
        line = outcome.last_error_line
        if outcome.code != 2 or not line.startswith("error: "):
            return "unclear", f"exit code {outcome.code}: {line[:200]}"
        lacking = [word for word in self.says if not re.search(word, line, re.IGNORECASE)]
        if lacking:
            return "unclear", f"the line lacks {', '.join(lacking)}: {line[:300]}"
        told = [word for word in self.never if re.search(word, line, re.IGNORECASE)]
        return ("unclear", f"the line says {', '.join(told)}: {line[:300]}") if told else common


@dataclass(frozen=True)
class Done:
    """Exit code 0; the output holds all of `says`; `there` exists, `absent` does not; `check(folder)` finds nothing wrong.

    `replaces` are files that may differ afterwards, as the program's own records may; `renewed` files that must; `note` says in the table
    what was checked.
    """

    says: tuple = ()
    there: tuple = ()
    absent: tuple = ()
    replaces: tuple = ()
    renewed: tuple = ()
    check: object = None
    note: str = ""

    def fault(self, outcome):
        common = outcome.fault((*BOOKKEEPING, *self.replaces, *self.renewed), None)
        if common:
            return common
        if outcome.code != 0:
            return "unclear", f"exit code {outcome.code}: {outcome.last_error_line[:300]}"
        said = "\n".join(outcome.lines)
        lacking = [word for word in self.says if not re.search(word, said, re.IGNORECASE)]
        if lacking:
            return "silent", f"says nothing of {', '.join(lacking)}; said: {' / '.join(outcome.lines[-2:])[:200] or 'nothing'}"
        absent = [name for name in self.there if not os.path.lexists(outcome.folder / name)]
        there = [name for name in self.absent if os.path.lexists(outcome.folder / name)]
        if absent or there:
            return "silent", f"{', '.join(absent) or 'nothing'} is missing, {', '.join(there) or 'nothing'} is there that should not be"
        stale = [name for name in outcome.before if matches(name, self.renewed) and outcome.after.get(name) == outcome.before[name]]
        if stale:
            return "silent", f"{', '.join(stale)} is what it was before"
        wrong = self.check and self.check(outcome.folder)
        return ("silent", wrong) if wrong else None


BOOKKEEPING = ("*settings*.json", "*/.records/*", "*train_log.jsonl", "*scores.jsonl", "*.sqlite")


def refused(*says, writes=(), never=()):
    return Refused(says, writes, never)


def done(*says, **more):
    return Done(says, **more)


# ---------------------------------------------------------------------------------------------------------------------
# A folder to work in, and a program in it
# ---------------------------------------------------------------------------------------------------------------------


class Place:
    """A case's folder, the working directory of its program; helpers put inputs into it."""

    def __init__(self, folder, program):
        self.folder, self.program = Path(folder), program

    def path(self, name):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def text(self, name, content, encoding="utf-8"):
        self.path(name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return name

    def image(self, name, size=(8, 8), mode="RGB", seed=None, format=None, **options):
        noise(size, seed=name if seed is None else seed).convert(mode).save(self.path(name), format=format, **options)
        return name

    def images(self, *names, **options):
        for name in names:
            self.image(name, **options)

    def shared(self, tree):
        """A copy of a tree that several cases begin with."""
        shutil.copytree(tree(), self.folder, dirs_exist_ok=True, symlinks=True)

    def run(self, *argv, program=None):
        """A command that comes before the one of the case, and must work."""
        outcome = run_here(program or self.program, argv, self.folder)
        assert outcome.code == 0, f"the command before it: {outcome.raised or outcome.last_error_line}"
        return outcome

    def fail(self, *argv, program=None):
        """A command that comes before the one of the case, and must fail."""
        outcome = run_here(program or self.program, argv, self.folder)
        assert outcome.code == 2, f"the command before it: {outcome.code} {outcome.raised or outcome.last_error_line}"


def noise(size, seed=0, low=0, high=256):
    """An RGB image of noise, the same for the same seed."""
    number = int.from_bytes(hashlib.sha256(str(seed).encode("utf-8", "surrogateescape")).digest()[:4], "little")
    return Image.fromarray(np.random.default_rng(number).integers(low, high, (size[1], size[0], 3), dtype=np.uint8))


def contents(folder):
    """{relative path: what is there}: the hash of a file, the target of a link, the kind of anything else."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


class HangsError(BaseException):
    """A program that does not come to an end; no program catches this."""


def run_here(program, argv, folder):
    """Run a program in this process as `python PROGRAM ARGV` in `folder` does; `Outcome`."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    before, raised = contents(folder), ""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))  # as Python's own
    with contextlib.ExitStack() as stack:
        for manager in (
            mock.patch.object(sys, "argv", [program, *map(str, argv)]),
            mock.patch.object(socket, "getaddrinfo", side_effect=socket.gaierror(-2, "Name or service not known")),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            inside(folder),
            limits(),
        ):
            stack.enter_context(manager)
        try:
            runpy.run_path(str(ROOT / program), run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        except HangsError:
            code, raised = None, f"no end after {SECONDS} s"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            code, raised = (
                None,
                f"{type(error).__name__}: {' '.join(str(error).split())[:160]} ({Path(place.filename).name}:{place.lineno})",
            )
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "replace"))
    return Outcome(code, *texts, raised, Path(folder), before, contents(folder))


@contextlib.contextmanager
def inside(folder):
    """`folder` as the working directory (contextlib.chdir came with Python 3.11)."""
    earlier = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(earlier)


@functools.cache
def warm_up():
    """Import what takes seconds once, outside of any program's limits."""
    import pyiqa  # noqa: F401
    import torch

    torch.set_num_threads(1)
    from dp2osr.backbones import load_backbone

    load_backbone(MODEL)


@contextlib.contextmanager
def limits():
    """A bound on time and on memory: a program that exceeds them fails, not the machine."""

    def stop(*_):
        raise HangsError

    warm_up()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 0
    earlier = {name: signal.signal(name, stop) for name in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAIT)
    try:
        if used:
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for name, handler in earlier.items():
            signal.signal(name, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run_process(program, argv, folder, env):
    """Run a program as a process of its own; `Outcome`."""
    before = contents(folder)
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    environment = {**os.environ, **nowhere, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **env}
    try:
        ended = subprocess.run(
            [sys.executable, str(ROOT / program), *map(str, argv)],
            cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=WAIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(None, "", "", f"no end after {WAIT} s", Path(folder), before, contents(folder))
    return Outcome(ended.returncode, ended.stdout, ended.stderr, "", Path(folder), before, contents(folder))


# ---------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------

TEST, GEN, PAIRS = "test_sd2b_controlnet.py", "gen_candidates.py", "scripts/make_lr_pairs.py"
FLUX, LABEL, TRAIN = "test_flux_controlnet.py", "label_rewards.py", "train_sd2_dpo.py"
FOLDERS = (TEST, GEN, PAIRS)  # the programs that take a folder of images and make a result of each


@dataclass(frozen=True, eq=False)
class Case:
    """A bad or odd input.

    Attributes:
        kind: of `KINDS`.
        given: what is given, in words.
        program: path from the repository's root.
        build: called with a `Place`; makes the input there and returns the command line.
        outcomes: what may come of it (`Refused`, `Done`): each loses nothing and is not silent.
        process: run as a process of its own.
        env: further environment of that process.
    """

    kind: int
    given: str
    program: str
    build: object
    outcomes: tuple
    process: bool = False
    env: dict = field(default_factory=dict)

    @property
    def id(self):
        words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", self.given.encode("ascii", "replace").decode()).strip("-")
        return f"{self.kind}-{Path(self.program).stem}-{words}"[:120]


CASES = []


def case(kind, given, programs, *outcomes, process=None, env=None):
    """Register a function `place → command line` as a case for each of the programs; `process` names the one run as a process."""
    programs = (programs,) if isinstance(programs, str) else programs

    def register(build):
        for program in programs:
            CASES.append(Case(kind, given, program, build, outcomes, program == process, env or {}))
        return build

    return register


MODEL, CONTROLNET = str(ROOT / "preset/models/tiny-sd2"), str(ROOT / "preset/models/c-tiny-sd2")
BASE = ["--pretrained_model_name_or_path", MODEL]
QUICK = ["--num_inference_steps", "1", "--guidance_scale", "1"]
SAMPLE = [*BASE, "--controlnet_model_name_or_path", CONTROLNET, *QUICK, "--upscale", "2"]


def command(place, *more, given="in", into="out", controlnet=None):
    """The command line of one of `FOLDERS` for the images in `given`."""
    folders = ["--image_path", given, "--output_dir", into]
    if place.program == PAIRS:
        return [*folders, "--degradation", "bicubic", *more]
    model = [*BASE, "--controlnet_model_name_or_path", controlnet] if controlnet else SAMPLE[:4]
    count = ["--num_candidates", "2"] if place.program == GEN else []
    return [*model, *SAMPLE[4:], *count, *folders, *more]


def result(program, stem, into="out"):
    """Where one of `FOLDERS` leaves the result of an image."""
    return {TEST: f"{into}/{stem}.png", GEN: f"{into}/groups/{stem}", PAIRS: f"{into}/lr/{stem}.png"}[program]


# -- trees that several cases begin with ------------------------------------------------------------------------------


def tree(build):
    """A function that builds a folder once and returns it afterwards."""

    @functools.cache
    def built():
        folder = Path(tempfile.mkdtemp(prefix="tree-", dir=CACHE))
        build(folder)
        return folder

    return built


@tree
def two_images(folder):
    Place(folder, TEST).images("in/a.png", "in/b.png")


@tree
def sr_results(folder):
    """Two LR images in `in`, and their SR images in `out`."""
    place = Place(folder, TEST)
    place.images("in/a.png", "in/b.png")
    place.run(*command(place))


@tree
def candidates(folder):
    """LR images in `in`, GT in `gt`, two candidates of each in `candidates`, with made-up scores and `candidates/reward.yaml`."""
    from conftest import write_made_up_scores

    place = Place(folder, GEN)
    place.images("in/a.png", "in/b.png")
    place.images("gt/a.png", "gt/b.png", size=(16, 16))
    place.run(*command(place, into="candidates"))
    write_made_up_scores(folder / "candidates")


@tree
def scored(folder):
    """The same with scores of the NR half of the embedded reward, as label_rewards.py writes them."""
    shutil.copytree(candidates(), folder, dirs_exist_ok=True)
    (folder / "candidates/scores.parquet").unlink()
    Place(folder, LABEL).run("--candidates_dir", "candidates", "--reward_config", "nr_only")


@tree
def methods(folder):
    """LR images in `lr`, GT in `gt`, and two methods' SR images in `x` and `y`."""
    place = Place(folder, TEST)
    for name in ("a.png", "b.png"):
        place.image(f"lr/{name}")
        for kind in ("gt", "x", "y"):
            place.image(f"{kind}/{name}", size=(32, 32))
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")


@tree
def photographs(folder):
    Place(folder, PAIRS).images("hr/p.png", "hr/q.png", size=(48, 48))


@tree
def large_photographs(folder):
    Place(folder, PAIRS).images("hr/p.png", "hr/q.png", size=(144, 144))


TRAINING = [
    *BASE, "--controlnet_model_name_or_path", CONTROLNET, "--candidates_dir", "candidates", "--output_dir", "out", "--max_train_steps", "1",
    "--groups_per_step", "1", "--top_n", "1", "--report_to", "none", "--validation_steps", "0",
]  # fmt: skip
REWARD = ["--reward_config", "candidates/reward.yaml"]
EVALUATE = ["--images", "x=x", "y=y", "--gt_path", "gt", "--protocol", "psnr.yaml", "--output_dir", "out"]


def same_bytes(place, *names):
    """A check that files are what they are now."""
    earlier = {name: (place.folder / name).read_bytes() for name in names}
    return lambda folder: "; ".join(f"{name} has changed" for name in names if (folder / name).read_bytes() != earlier[name])


def broken_controlnet(place, value, name="c"):
    """A copy of the tiny ControlNet with one weight that is `value`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(CONTROLNET, place.path(name))
    [file] = (place.folder / name).glob("*.safetensors")
    tensors = load_file(file)
    next(tensor for key, tensor in sorted(tensors.items()) if key.endswith("weight") and tensor.dim() == 4)[:] = value
    save_file(tensors, file)
    return name


# -- 1: files of the user's -------------------------------------------------------------------------------------------

WAY_OUT = r"--output_dir|--suffix"


@case(1, "the output folder is the input folder, `--overwrite`", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    return command(place, "--overwrite", into="in")


@case(1, "the output folder is the input folder", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    return command(place, into="in")


@case(1, "the output folder is a link to the input folder", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    (place.folder / "link").symlink_to("in")
    return command(place, "--overwrite", into="link")


@case(1, "the output folder is `x/../in`, the input folder `./in/`", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    place.path("x/y").mkdir()
    return command(place, "--overwrite", given="./in/", into="x/../in")


@case(1, "one image, and its own folder for the result", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    return command(place, "--overwrite", given="in/a.png", into="in")


@case(1, "`out/a.png` is a link to the input `in/a.png`, `--overwrite`", TEST, refused("a.png"))
def _(place):
    place.shared(two_images)
    place.path("out/a.png").symlink_to("../in/a.png")
    return command(place, "--overwrite")


@case(1, "`out/a.png` is a hard link to the input `in/a.png`, `--overwrite`", TEST, refused("a.png"))
def _(place):
    place.shared(two_images)
    os.link(place.folder / "in/a.png", place.path("out/a.png"))
    return command(place, "--overwrite")


@case(1, "the input folder for output, `--suffix _sr`", TEST, done(there=("in/a_sr.png", "in/b_sr.png"), note="results beside the inputs"))
def _(place):
    place.shared(two_images)
    return command(place, "--suffix", "_sr", into="in")


@case(
    1, "the same once more: the input folder holds results too", TEST,
    done(absent=("in/a_sr_sr.png",), note="results are not taken as inputs"), done("a_sr"), refused("a_sr"),
)  # fmt: skip
def _(place):
    place.shared(two_images)
    place.run(*command(place, "--suffix", "_sr", into="in"))
    return command(place, "--suffix", "_sr", into="in")


@case(1, "photographs in `out/gt`, where the GT goes", PAIRS, refused("out"), process=PAIRS)
def _(place):
    place.images("out/gt/a.png", "out/gt/b.png", size=(16, 16))
    return command(place, given="out/gt")


@case(1, "pairs made before, and their GT folder as the photographs", PAIRS, refused("out"))
def _(place):
    place.shared(photographs)
    place.run(*command(place, "--crop_size", "16", given="hr"))
    return command(place, "--crop_size", "16", given="out/gt")


@case(1, "a file of the user's has the name of a result", FOLDERS, refused("odd"))
def _(place):
    place.images("in/a.png", "in/odd.png", size=(16, 16))
    if place.program == GEN:
        place.text("out/groups/odd/notes.txt", "mine")
    else:
        place.image(result(place.program, "odd"), size=(99, 99))
    return command(place)


@case(1, "the same, `--overwrite`", TEST, refused("odd"))
def _(place):
    place.images("in/a.png", "in/odd.png")
    place.image("out/odd.png", size=(99, 99))
    return command(place, "--overwrite")


@case(1, "a result that was retouched since, `--overwrite`", TEST, refused("a.png"))
def _(place):
    place.shared(sr_results)
    place.image("out/a.png", size=(16, 16), seed="retouched")
    return command(place, "--overwrite")


@case(1, "a misspelt scheduler, `--overwrite`, earlier results", TEST, refused("ddmp", "scheduler"))
def _(place):
    place.shared(sr_results)
    return command(place, "--overwrite", "--scheduler", "ddmp")


@case(1, "a missing ControlNet, `--overwrite`, earlier results", TEST, refused("nowhere"))
def _(place):
    place.shared(sr_results)
    return command(place, "--overwrite", controlnet="nowhere")


@case(1, "an unreadable image, `--overwrite`, earlier results", TEST, refused("b.png"))
def _(place):
    place.shared(sr_results)
    place.text("in/b.png", "no image")
    return command(place, "--overwrite")


def _replaced(place):
    place.images("in/a.png", "in/b.png", size=(8, 8))
    place.run(*command(place))
    place.image("in/a.png", size=(12, 8), seed="new")


@case(1, "an input that was replaced since, by one of another size", TEST, done(renewed=("out/a.png",), note="made anew"))
def _(place):
    _replaced(place)
    return command(place)


@case(1, "an input that was replaced since, by one of the same size", TEST, done(renewed=("out/a.png",), note="made anew"))
def _(place):
    place.shared(sr_results)
    place.image("in/a.png", seed="new")
    return command(place)


@case(
    1,
    "an input that was replaced since",
    GEN,
    done(renewed=("out/groups/a/l*",), replaces=("out/groups/a/*",), note="its group is made anew"),
)
def _(place):
    _replaced(place)
    return command(place)


@case(1, "an input that was replaced since", PAIRS, done(renewed=("out/gt/a.png", "out/lr/a.png"), note="its pair is made anew"))
def _(place):
    _replaced(place)
    return command(place)


@case(
    1, "a first command that failed for a misspelt scheduler, now corrected", (TEST, GEN), done(note="nothing of the first is in the way")
)
def _(place):
    place.shared(two_images)
    place.fail(*command(place, "--scheduler", "ddmp"))
    return command(place)


@case(1, "a first command that failed for a wrong ControlNet, now corrected", (TEST, GEN), done(note="nothing of the first is in the way"))
def _(place):
    place.shared(two_images)
    with contextlib.suppress(AssertionError):  # the line is another case's matter
        place.fail(*command(place, controlnet=str(ROOT / "preset/models/c-tiny-sd2-8")))
    return command(place)


@case(1, "a first command that failed for a NaN weight, now corrected", (TEST, GEN), done(note="nothing of the first is in the way"))
def _(place):
    place.shared(two_images)
    place.fail(*command(place, controlnet=broken_controlnet(place, float("nan"))))
    return command(place)


@case(1, "results of other settings", TEST, refused("seed", "--overwrite"))
def _(place):
    place.shared(sr_results)
    return command(place, "--seed", "1")


@case(1, "results of other settings, `--overwrite`", TEST, done(renewed=("out/?.png",), note="replaced"))
def _(place):
    place.shared(sr_results)
    return command(place, "--seed", "1", "--overwrite")


@case(1, "`--overwrite` with a ControlNet of NaN", TEST, refused("finite|NaN"))
def _(place):
    place.shared(sr_results)
    return command(place, "--overwrite", controlnet=broken_controlnet(place, float("nan")))


def _without_records(place):
    place.shared(sr_results)
    shutil.rmtree(place.folder / "out/.records", ignore_errors=True)


@case(1, "results from before there were records", TEST, refused("--adopt"))
def _(place):
    _without_records(place)
    return command(place)


@case(1, "results from before there were records, `--adopt`", TEST, done(note="kept"))
def _(place):
    _without_records(place)
    return command(place, "--adopt")


@case(1, "candidates of another program's kind: the folder of test results", GEN, refused("out"))
def _(place):
    place.shared(sr_results)
    return command(place)


@case(1, "an output folder with files of the user's of other names", FOLDERS, done(there=("out/notes.txt",), note="left alone"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("out/notes.txt", "mine")
    if place.program == PAIRS:
        place.text("out/lr/notes.txt", "mine")
    return command(place)


@case(1, "a settings.json of the user's own in the output folder", FOLDERS, refused("settings.json"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("out/settings.json", '{"colour": "blue", "size": 3}')
    return command(place)


@case(1, "`--output_dir` is the folder of the ControlNet that is trained", TRAIN, refused("--output_dir|c:|c/"))
def _(place):
    place.shared(candidates)
    shutil.copytree(CONTROLNET, place.folder / "c")
    argv = [*TRAINING, *REWARD]
    argv[3], argv[argv.index("out")] = "c", "c"
    return argv


@case(1, "a `table.md` of the user's in the output folder", "scripts/evaluate.py", refused("table.md"), done(note="left alone"))
def _(place):
    place.shared(methods)
    place.text("out/table.md", "mine")
    return EVALUATE


@case(1, "`--output` is one of the GT images", "scripts/contact_sheet.py", refused("gt/a.png"))
def _(place):
    place.shared(candidates)
    return ["--candidates", "x=candidates", "--gt_path", "gt", "--output", "gt/a.png"]


@case(1, "`--output` is a file of the user's", "scripts/validate_reward.py", refused("notes.json"))
def _(place):
    place.text("notes.json", '{"mine": 1}')
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")
    place.images("in/a.png", size=(64, 64))
    return ["psnr.yaml", "--image_path", "in", "--resolution", "32", "--num_crops", "2", "--output", "notes.json"]


@case(1, "`--output` is a page of the user's", "scripts/user_study.py", refused("page.html"))
def _(place):
    place.shared(methods)
    place.text("page.html", "<p>mine</p>")
    return ["make", "--images", "x=x", "y=y", "--lr_path", "lr", "--output", "page.html"]


@case(1, "a `manifest.csv` of the user's own among the photographs", "scripts/prepare_data.py", refused("manifest.csv"))
def _(place):
    place.shared(photographs)
    place.text("hr/manifest.csv", "shot,camera\n1,Canon\n")
    return ["HR", "--source", "hr", "--min_side", "8"]


@case(1, "`data/RealSR` holds files of the user's", "scripts/prepare_data.py", refused("RealSR"))
def _(place):
    place.images("set/test_LR/a.png", size=(128, 128))
    place.images("set/test_HR/a.png", size=(512, 512))
    place.text("data/RealSR/notes.txt", "mine")
    return ["RealSR", "--source", "set", "--any_count"]


@case(1, "`--output` is a table of other columns", LABEL, refused("mine.parquet"))
def _(place):
    import pyarrow as pa
    import pyarrow.parquet as pq

    place.shared(candidates)
    pq.write_table(pa.table({"age": [1, 2]}), place.path("mine.parquet"))
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--output", "mine.parquet"]


# -- 2: defaults ------------------------------------------------------------------------------------------------------


@case(2, "the tiny models and no sampling settings", TEST, done(r"steps.*3|3 steps|steps 3", note="the models' own settings, said"))
def _(place):
    place.images("in/a.png")
    return [*SAMPLE[:4], "--image_path", "in", "--output_dir", "out"]


@case(2, "no `--upscale`", TEST, done(r"8 ?[x×] ?8|upscale", note="the size is said"))
def _(place):
    place.images("in/a.png")
    return [*SAMPLE[:4], *QUICK, "--image_path", "in", "--output_dir", "out"]


@case(2, "no reward named, the default's weights not to be had", LABEL, refused("embedded"))
def _(place):
    place.shared(candidates)
    place.path("weights").mkdir()
    (place.folder / "candidates/scores.parquet").unlink()
    return ["--candidates_dir", "candidates", "--gt_path", "gt", "--metrics_dir", "weights"]


@case(
    2, "no reward named, scores made with `nr_only`", "scripts/inspect_preferences.py",
    done("nr_only", "winners", note="the reward of the scores, said"), process="scripts/inspect_preferences.py",
)  # fmt: skip
def _(place):
    place.shared(scored)
    return ["--candidates_dir", "candidates", "--top_n", "1"]


@case(2, "no reward named, scores made with `nr_only`", TRAIN, done("nr_only", note="the reward of the scores, said"))
def _(place):
    place.shared(scored)
    return TRAINING


# -- 3: silence -------------------------------------------------------------------------------------------------------


@case(3, "a prompt file that names none of the images", (TEST, GEN), refused("prompts.json"))
def _(place):
    place.shared(two_images)
    place.text("prompts.json", '{"c": "a tree", "d": "a house"}')
    return command(place, "--prompt_file", "prompts.json")


@case(
    3,
    "a prompt file that names one of two images",
    (TEST, GEN),
    done("prompts.json|prompt", r"\bb\b", "1"),
    refused(r"\bb\b", "prompts.json"),
)
def _(place):
    place.shared(two_images)
    place.text("prompts.json", '{"a": "a tree"}')
    return command(place, "--prompt_file", "prompts.json")


def _tags_are_used(folder):
    found = (folder / "out/txt/a.txt").read_text(encoding="utf-8")
    return "" if "a tree" in found else f"the prompt of a.png is {found!r}"


@case(
    3,
    "a prompt file that names images by their files, `a.png`",
    TEST,
    done(check=_tags_are_used, note="its prompts are used"),
    refused("a.png"),
)
def _(place):
    place.shared(two_images)
    place.text("prompts.json", '{"a.png": "a tree", "b.png": "a house"}')
    return command(place, "--prompt_file", "prompts.json", "--save_prompts")


@case(3, "an empty prompt file, `{}`", TEST, refused("prompts.json"))
def _(place):
    place.shared(two_images)
    place.text("prompts.json", "{}")
    return command(place, "--prompt_file", "prompts.json")


@case(3, "a ControlNet with NaN weights", (TEST, GEN), refused("finite|NaN", writes=("out/settings.json",)))
def _(place):
    place.shared(two_images)
    return command(place, controlnet=broken_controlnet(place, float("nan")))


@case(3, "a ControlNet with infinite weights", TEST, refused("finite|NaN|inf", writes=("out/settings.json",)))
def _(place):
    place.shared(two_images)
    return command(place, controlnet=broken_controlnet(place, float("inf")))


@case(3, "an autoencoder with NaN weights", TEST, refused("finite|NaN", writes=("out/settings.json",)))
def _(place):
    from safetensors.torch import load_file, save_file

    place.shared(two_images)
    shutil.copytree(Path(MODEL) / "vae", place.folder / "vae")
    [file] = (place.folder / "vae").glob("*.safetensors")
    tensors = load_file(file)
    tensors["decoder.conv_out.weight"][:] = float("nan")
    save_file(tensors, file)
    return command(place, "--pretrained_vae_model_name_or_path", "vae")


@case(3, "`--control_scale 1e30`", TEST, refused("finite|NaN|--control_scale", writes=("out/settings.json",)))
def _(place):
    place.shared(two_images)
    return command(place, "--control_scale", "1e30")


@case(3, "candidates with NaN latents, from an earlier version", LABEL, refused("finite|NaN"), done("finite|NaN"))
def _(place):
    from safetensors.torch import load_file, save_file

    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    file = place.folder / "candidates/groups/a/latents.safetensors"
    latents = load_file(file)["latents"]
    latents[0] = float("nan")
    save_file({"latents": latents}, file)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only"]


@case(3, "a GIF among the images", FOLDERS, done(r"b\.gif", note="said"), process=PAIRS)
def _(place):
    place.images("in/a.png", "in/b.gif", size=(16, 16))
    return command(place)


@case(3, "HEIC, AVIF, JPEG 2000 and JFIF files among the images", FOLDERS, done("HEIC", "AVIF", "JP2", "JFIF", note="said"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    for name in ("c.HEIC", "d.avif", "e.jp2"):
        place.text(f"in/{name}", b"\0\0\0\x18ftyp")
    noise((16, 16)).save(place.path("in/f.jfif"), format="JPEG")
    return command(place)


@case(3, "images in a sub-folder", FOLDERS, done(r"sub", note="said"))
def _(place):
    place.images("in/a.png", "in/sub/b.png", "in/sub/c.png", size=(16, 16))
    return command(place)


@case(3, "images in a sub-folder, `--recursive`", TEST, done(there=("out/a.png", "out/sub/a.png"), note="mirrored in the output"))
def _(place):
    place.images("in/a.png", "in/sub/a.png")
    return command(place, "--recursive")


@case(
    3,
    "images in a sub-folder, `--recursive`",
    (GEN, PAIRS),
    done(there=("out",), check=lambda folder: _two_results(folder), note="both are done"),
)
def _(place):
    place.images("in/a.png", "in/sub/b.png", size=(16, 16))
    return command(place, "--recursive")


def _two_results(folder):
    found = len(list(folder.glob("out/groups/**/latents.safetensors"))) or len(list(folder.glob("out/lr/**/*.png")))
    return "" if found == 2 else f"{found} results of two images"


@case(3, "a TIFF of three pages", FOLDERS, done(r"a\.tiff?", "page|frame", note="said"), refused(r"a\.tif"))
def _(place):
    pages = [noise((16, 16), seed) for seed in range(3)]
    pages[0].save(place.path("in/a.tif"), save_all=True, append_images=pages[1:])
    return command(place)


@case(3, "an animated PNG", TEST, done(r"a\.png", "page|frame", note="said"), refused(r"a\.png"))
def _(place):
    pages = [noise((8, 8), seed) for seed in range(3)]
    pages[0].save(place.path("in/a.png"), save_all=True, append_images=pages[1:])
    return command(place)


@case(3, "a hidden image, `.photo.png`", FOLDERS, done(r"\.photo\.png", note="said"))
def _(place):
    place.images("in/a.png", "in/.photo.png", size=(16, 16))
    return command(place)


@case(3, "`.PNG` and `.JPEG` in capitals", TEST, done(there=("out/a.png", "out/b.png"), note="both are done"))
def _(place):
    place.image("in/a.PNG")
    place.image("in/b.JPEG", format="JPEG")
    return command(place)


@case(3, "a folder of GIFs alone", FOLDERS, done(r"a\.gif", r"b\.gif", note="done and said"))
def _(place):
    place.images("in/a.gif", "in/b.gif")
    return command(place)


@case(3, "`--report_to wandb` without wandb", TRAIN, refused("wandb"))
def _(place):
    place.shared(candidates)
    argv = [*TRAINING, *REWARD]
    argv[argv.index("none")] = "wandb"
    return argv


@case(3, "`HR` with `--output_dir`", "scripts/prepare_data.py", refused("--output_dir"), done(there=("made",)))
def _(place):
    place.shared(photographs)
    return ["HR", "--source", "hr", "--min_side", "8", "--output_dir", "made"]


@case(3, "a test set with `--min_side`, which is of `HR`", "scripts/prepare_data.py", refused("--min_side"), done("--min_side"))
def _(place):
    place.images("set/test_LR/a.png", size=(128, 128))
    place.images("set/test_HR/a.png", size=(512, 512))
    return ["RealSR", "--source", "set", "--any_count", "--min_side", "64"]


@case(
    3,
    "photographs that are all smaller than `--min_side`",
    "scripts/prepare_data.py",
    refused("--min_side|512"),
    done("0 images.*2|2.*smaller"),
)
def _(place):
    place.shared(photographs)
    return ["HR", "--source", "hr"]


@case(3, "`--prompt_file` with `--prompt_source none`", TEST, refused("--prompt_file"), done("--prompt_file"))
def _(place):
    place.shared(two_images)
    place.text("prompts.json", '{"a": "a tree", "b": "a house"}')
    return command(place, "--prompt_source", "none", "--prompt_file", "prompts.json")


@case(3, "`--images_offset` without `--max_images`", GEN, refused("--images_offset"), done("--images_offset"))
def _(place):
    place.shared(two_images)
    return command(place, "--images_offset", "1")


@case(3, "`--negative_prompt` where guidance is off", TEST, refused("--negative_prompt"), done("--negative_prompt"))
def _(place):
    place.shared(two_images)
    return command(place, "--negative_prompt", "blur")


@case(
    3,
    "`--images` with `--reward_config`, which is of `--candidates`",
    "scripts/evaluate.py",
    refused("--reward_config"),
    done("--reward_config"),
)
def _(place):
    place.shared(methods)
    return [*EVALUATE, "--reward_config", "default"]


@case(3, "`--candidates` with `--channel`, which is of `--images`", "scripts/evaluate.py", refused("--channel"))
def _(place):
    place.shared(candidates)
    return [
        "--candidates", "x=candidates", "y=candidates", "--gt_path", "gt", "--output_dir", "out", *REWARD, "--channel", "y", "--no_bicubic",
    ]  # fmt: skip


@case(3, "`--logit_mean`, which is of FLUX", TRAIN, refused("--logit_mean"), done("--logit_mean"))
def _(place):
    place.shared(candidates)
    return [*TRAINING, *REWARD, "--logit_mean", "1"]


@case(3, "validation images without `--validation_gt_path`, validation off", TRAIN, refused("--validation"), done("--validation"))
def _(place):
    place.shared(candidates)
    return [*TRAINING, *REWARD, "--validation_image_path", "in"]


# -- 4: bad files in a folder -----------------------------------------------------------------------------------------


def broken_link(place):
    place.path("in/link.png").symlink_to("nowhere.png")
    return r"link\.png"


def link_to_itself(place):
    place.path("in/loop.png").symlink_to("loop.png")
    return r"loop\.png"


def empty_file(place):
    place.text("in/empty.png", "")
    return r"empty\.png"


def text_as_jpeg(place):
    place.text("in/text.jpg", "this is no photograph")
    return r"text\.jpg"


def truncated_png(place):
    place.image("in/cut.png", size=(64, 64))
    path = place.folder / "in/cut.png"
    path.write_bytes(path.read_bytes()[:2000])
    return r"cut\.png"


def truncated_jpeg(place):
    place.image("in/short.jpg", size=(64, 64))
    path = place.folder / "in/short.jpg"
    path.write_bytes(path.read_bytes()[:-800])
    return r"short\.jpg"


def two_of_one_name(place):
    place.image("in/twin.png", size=(16, 16))
    place.image("in/twin.jpg", size=(16, 16))
    return r"twin\.(png|jpg)"


def named_pipe(place):
    os.mkfifo(place.path("in/pipe.png"))
    return r"pipe\.png"


def bomb(place):
    """A PNG of 400 bytes whose header promises 60,000 × 60,000 pixels."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    place.text(
        "in/bomb.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    return r"bomb\.png"


BAD_FILES = {
    "a broken link": (broken_link, FOLDERS),
    "a link to itself": (link_to_itself, (TEST,)),
    "an empty file, `empty.png`": (empty_file, FOLDERS),
    "a text file named `text.jpg`": (text_as_jpeg, FOLDERS),
    "a truncated PNG": (truncated_png, FOLDERS),
    "a truncated JPEG": (truncated_jpeg, FOLDERS),
    "`twin.png` beside `twin.jpg`": (two_of_one_name, FOLDERS),
    "a PNG whose header promises 60,000 × 60,000 pixels": (bomb, (TEST, PAIRS)),
}


def _add_bad_files():
    def build(place, spoil):
        place.images("in/a.png", size=(16, 16))
        spoil(place)
        return command(place)

    for given, (spoil, programs) in BAD_FILES.items():
        name = {two_of_one_name: "twin"}.get(spoil) or re.search(r"in/(\w+)\.", "".join(map(str, spoil.__code__.co_consts)))[1]
        case(4, f"{given} among the images", programs, refused(name))(functools.partial(build, spoil=spoil))


_add_bad_files()


@case(4, "a named pipe, `pipe.png`, among the images", TEST, refused("pipe"), done("pipe"))
def _(place):
    place.images("in/a.png")
    named_pipe(place)
    return command(place)


ALL_BAD = (broken_link, empty_file, text_as_jpeg, truncated_png, two_of_one_name)
THEIR_NAMES = ("link", "empty", "text", "cut", "twin")


@case(4, "a broken link, an empty, a text, a truncated file and a twin", FOLDERS, refused(*THEIR_NAMES), process=PAIRS)
def _(place):
    place.images("in/a.png", size=(16, 16))
    for spoil in ALL_BAD:
        spoil(place)
    return command(place)


@case(
    4,
    "the same, `--skip_unreadable`",
    FOLDERS,
    done("empty", "text", "link", "cut", r"\b[4-6]\b", note="the others are done, the count is said"),
)
def _(place):
    place.images("in/a.png", "in/b.png", size=(16, 16))
    for spoil in ALL_BAD:
        spoil(place)
    return command(place, "--skip_unreadable")


@case(4, "unreadable images alone, `--skip_unreadable`", FOLDERS, refused("in|image"))
def _(place):
    empty_file(place)
    text_as_jpeg(place)
    return command(place, "--skip_unreadable")


@case(4, "macOS's `._a.png` beside `a.png`", FOLDERS, done(note="no image of its own"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/._a.png", b"\0\x05\x16\x07" + bytes(60))
    return command(place)


@case(4, "a folder named `thumbs.png`", FOLDERS, done(note="no image"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.path("in/thumbs.png/x").mkdir()
    return command(place)


@case(4, "two photographs below `--crop_size`", PAIRS, refused("small", "tiny", "--crop_size"))
def _(place):
    place.images("in/a.png", size=(64, 64))
    place.images("in/small.png", "in/tiny.png", size=(16, 16))
    return command(place, "--crop_size", "32")


@case(
    4,
    "two photographs below `--crop_size`, `--skip_unreadable`",
    PAIRS,
    done("small", "tiny", there=("out/lr/a_00.png",), note="said"),
    refused("small", "tiny", "--crop_size"),
)
def _(place):
    place.images("in/a.png", size=(64, 64))
    place.images("in/small.png", "in/tiny.png", size=(16, 16))
    return command(place, "--crop_size", "32", "--skip_unreadable")


@case(4, "no such folder", FOLDERS, refused("nowhere"))
def _(place):
    return command(place, given="nowhere")


@case(4, "an empty folder", FOLDERS, refused("in"))
def _(place):
    place.path("in/x").parent.mkdir(exist_ok=True)
    return command(place)


@case(4, "one file that is no image", FOLDERS, refused("notes.txt"))
def _(place):
    place.text("notes.txt", "a list")
    return command(place, given="notes.txt")


@case(4, "a manifest of which two files are gone", PAIRS, refused("gone", "lost"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/manifest.csv", "file\na.png\ngone.png\nlost.png\n")
    return command(place, given="in/manifest.csv")


@case(4, "two broken GT images", LABEL, refused(r"a\.png", r"b\.png"))
def _(place):
    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    place.text("gt/a.png", "no image")
    place.text("gt/b.png", "")
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")
    return ["--candidates_dir", "candidates", "--gt_path", "gt", "--reward_config", "psnr.yaml"]


@case(4, "two broken SR images", "scripts/evaluate.py", refused("x/a", "y/b", writes=("out/scores.jsonl",)))
def _(place):
    place.shared(methods)
    place.text("x/a.png", "no image")
    place.text("y/b.png", "")
    return EVALUATE


@case(4, "a broken photograph", "scripts/validate_reward.py", refused(r"a\.png"))
def _(place):
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")
    place.images("in/b.png", size=(64, 64))
    place.text("in/a.png", "no image")
    return ["psnr.yaml", "--image_path", "in", "--resolution", "32"]


def controlnet_training(*more, channels=True):
    sizes = ["--conditioning_channels", "8", "16", "32"] if channels else []
    run = ["--pool_size", "1", "--train_batch_size", "1", "--max_train_steps", "1", "--resolution", "32", "--window", "8"]
    return [*BASE, "--train_dir", "hr", "--output_dir", "out", *run, *sizes, *more]


@case(4, "two broken photographs", "scripts/train_controlnet.py", refused("x.png", "y.png"))
def _(place):
    place.shared(photographs)
    place.text("hr/x.png", "no image")
    place.text("hr/y.png", "")
    return controlnet_training()


@case(4, "photographs smaller than `--resolution`", "scripts/train_controlnet.py", refused("p.png|--resolution"))
def _(place):
    place.shared(photographs)
    return controlnet_training("--resolution", "128")


VAE = ["--train_dir", "hr", "--val_dir", "hr", "--output_dir", "out", "--max_train_steps", "1", "--train_batch_size", "1"]


@case(4, "photographs smaller than `--resolution`", "studies/train_vae.py", refused("p.png|--resolution"))
def _(place):
    place.shared(photographs)
    return VAE


@case(4, "no such folder of photographs", "scripts/train_rank_metric.py", refused("nowhere"))
def _(place):
    return ["--train_dir", "nowhere", "--val_dir", "nowhere", "--output", "rank.safetensors"]


@case(4, "an archive that was cut short", "scripts/prepare_data.py", refused("set.zip"))
def _(place):
    place.images("set/test_LR/a.png", "set/test_HR/a.png", size=(64, 64))
    shutil.make_archive(str(place.folder / "set"), "zip", place.folder / "set")
    path = place.folder / "set.zip"
    path.write_bytes(path.read_bytes()[:-200])
    return ["RealSR", "--source", "set.zip", "--any_count"]


@case(4, "an image that is broken in an archive's folder", "scripts/prepare_data.py", refused("a.png"))
def _(place):
    place.text("set/test_LR/a.png", "no image")
    place.images("set/test_HR/a.png", size=(512, 512))
    return ["RealSR", "--source", "set", "--any_count"]


# -- 5: YAML and flags ------------------------------------------------------------------------------------------------


def settings_are(**wanted):
    """A check of a candidate folder's settings."""

    def check(folder):
        found = json.loads((folder / "out/settings.json").read_text(encoding="utf-8"))
        return "; ".join(f"{key} is {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if found.get(key) != value)

    return check


def yaml_case(given, content, *outcomes, program=GEN, encoding="utf-8", more=(), process=False):
    def build(place):
        place.images("in/a.png")
        place.text("run.yaml", content, encoding)
        return command(place, "--config", "run.yaml", *more)

    case(5, given, program, *outcomes, process=program if process else None)(build)


yaml_case("`mixed_precision: no`", "mixed_precision: no\n", done(check=settings_are(mixed_precision="no"), note="fp32"))
yaml_case(
    "`negative_prompt: no`",
    "negative_prompt: no\n",
    done(check=settings_are(negative_prompt="no"), note="the prompt is the word"),
    more=("--guidance_scale", "1.5"),
)
yaml_case("`suffix: 001`", "suffix: 001\n", done(there=("out/a001.png",), note="`a001.png`"), program=TEST)
yaml_case("`suffix: 1e3`, `1_0` and other words that look like numbers", "suffix: 1_0\n", done(there=("out/a1_0.png",)), program=TEST)
yaml_case("`negative_prompt: ~`", "negative_prompt: ~\n", done(note="the default"))
yaml_case("a key that is given twice", "seed: 1\nbatch_size: 2\nseed: 2\n", refused("run.yaml", "seed", "twice|line 3"))
yaml_case("a YAML with a byte-order mark", "\ufeffseed: 7\n", done(check=settings_are(seed=7), note="read"))
yaml_case("a YAML in UTF-16", "seed: 7\n", done(check=settings_are(seed=7), note="read"), refused("run.yaml"), encoding="utf-16")
yaml_case("a YAML in Latin-1", "negative_prompt: fl\xe4chig\n", refused("run.yaml"), encoding="latin-1")
yaml_case("an unknown key that is near to none", "learning_rate: 1\n", refused("run.yaml", "learning_rate", never=("variant", "nearest")))
yaml_case("a misspelt key", "gudance_scale: 1\n", refused("gudance_scale", "guidance_scale"))
yaml_case("`batch_size: many`", "batch_size: many\n", refused("batch_size", "many"))
yaml_case("`num_inference_steps: 1.5`", "num_inference_steps: 1.5\n", refused("num_inference_steps", r"1\.5"))
yaml_case("a list for one value", "seed: [1, 2]\n", refused("seed"))
yaml_case("a mapping for one value", "seed: {a: 1}\n", refused("seed"))
yaml_case("a tab for indentation", "seed: 1\n\tbatch_size: 2\n", refused("run.yaml", "line"))
yaml_case("a YAML that is a list", "- seed\n- 1\n", refused("run.yaml"))
yaml_case("a YAML that is a word", "seed\n", refused("run.yaml"))
yaml_case("an empty YAML", "", done(check=settings_are(seed=0), note="no settings"))
yaml_case("`align_method: Wavelet`", "align_method: Wavelet\n", refused("align_method", "wavelet"))
yaml_case("`save_prompts: 1` for a switch", "save_prompts: 1\n", refused("save_prompts", "true"), program=TEST)


@case(5, '`overwrite: "false"`, earlier results of other settings', TEST, refused("--overwrite"))
def _(place):
    place.shared(sr_results)
    place.text("run.yaml", 'overwrite: "false"\nseed: 1\n')
    return command(place, "--config", "run.yaml")


@case(5, "`--conf run.yaml`, an abbreviation", GEN, refused("--conf"), process=GEN)
def _(place):
    place.images("in/a.png")
    place.text("run.yaml", "seed: 1\n")
    return command(place, "--conf", "run.yaml")


@case(5, "`--config` is a folder", GEN, refused("in"))
def _(place):
    place.images("in/a.png")
    return command(place, "--config", "in")


@case(5, "`--config` is a photograph", GEN, refused("a.png"))
def _(place):
    place.images("in/a.png")
    return command(place, "--config", "in/a.png")


@case(5, "`--config` is missing", GEN, refused("nowhere.yaml"))
def _(place):
    place.images("in/a.png")
    return command(place, "--config", "nowhere.yaml")


@case(5, "a manifest with Excel's byte-order mark", PAIRS, done(there=("out/lr/a.png",), note="read"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/manifest.csv", "\ufefffile,width\na.png,16\n")
    return command(place, given="in/manifest.csv")


@case(5, "a manifest with semicolons, as Excel writes it in many countries", PAIRS, refused("manifest.csv"), done(there=("out/lr/a.png",)))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/manifest.csv", "file;width\na.png;16\n")
    return command(place, given="in/manifest.csv")


@case(5, "a manifest without a column `file`", PAIRS, refused("manifest.csv", "file"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/manifest.csv", "name,width\na.png,16\n")
    return command(place, given="in/manifest.csv")


def prompts_case(given, content, *outcomes, encoding="utf-8"):
    def build(place):
        place.images("in/a.png")
        place.text("prompts.json", content, encoding)
        return command(place, "--prompt_file", "prompts.json", "--save_prompts")

    case(5, given, TEST, *outcomes)(build)


prompts_case("prompts with a byte-order mark", '\ufeff{"a": "a tree"}', done(check=_tags_are_used, note="read"))
prompts_case("prompts in UTF-16", '{"a": "a tree"}', done(check=_tags_are_used, note="read"), refused("prompts.json"), encoding="utf-16")
prompts_case("prompts that are a list", '["a tree"]', refused("prompts.json"))
prompts_case("prompts that are no JSON", "a: a tree", refused("prompts.json"))
prompts_case("prompts that are numbers", '{"a": 3}', refused("prompts.json"))
prompts_case("prompts that name an image twice", '{"a": "a house", "a": "a tree"}', refused("prompts.json", "a"))


def reward_case(given, content, *outcomes):
    def build(place):
        place.shared(candidates)
        place.text("reward.yaml", content)
        return ["--candidates_dir", "candidates", "--reward_config", "reward.yaml", "--top_n", "1"]

    case(5, given, "scripts/inspect_preferences.py", *outcomes)(build)


reward_case("a reward with a key given twice", "fr: [gmsd]\nnr: []\nfr: [piqe]\n", refused("reward.yaml", "fr|line 3"))
reward_case("a reward with a byte-order mark", "\ufefffr: [gmsd]\nnr: []\n", done("winners", note="read"))
reward_case("a reward with a metric for a list, `fr: gmsd`", "fr: gmsd\nnr: []\n", refused("reward.yaml", "fr"))
reward_case('a reward with `fr_weight: "0.5"`', 'fr: [gmsd]\nnr: [piqe]\nfr_weight: "0.5"\n', refused("reward.yaml", "fr_weight"))
reward_case("a reward with a misspelt key", "fr: [gmsd]\nnr: []\nwieghts: {gmsd: 2}\n", refused("wieghts", "weights"))
reward_case("a reward of nothing", "fr: []\nnr: []\n", refused("reward.yaml"))
reward_case("a reward with `weights: {gmsd: .nan}`", "fr: [gmsd]\nnr: []\nweights: {gmsd: .nan}\n", refused("reward.yaml", "weights"))


@case(5, "a degradation with a misspelt key", PAIRS, refused("mine.yaml", "scael"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    text = (ROOT / "configs/degradation/bicubic.yaml").read_text(encoding="utf-8")
    place.text("mine.yaml", re.sub(r"(?m)^scale", "scael", text))
    return ["--image_path", "in", "--output_dir", "out", "--degradation", "mine.yaml"]


ABSURD = {
    TEST: [
        ("--upscale", "nan"), ("--upscale", "0"), ("--upscale", "-1"), ("--upscale", "inf"), ("--upscale", "1e-9"), ("--seed", "-1"),
        ("--seed", "1e99"), ("--num_inference_steps", "0"), ("--num_inference_steps", "100000"), ("--guidance_scale", "nan"),
        ("--batch_size", "0"), ("--batch_size", "1e99"), ("--tile_size", "0"), ("--tile_size", "1"), ("--tile_overlap", "-1"),
        ("--vae_tile_size", "0"), ("--sample_times", "0"), ("--process_size", "0"), ("--process_size", "nan"),
    ],
    GEN: [("--num_candidates", "0"), ("--num_candidates", "1000000000000"), ("--max_images", "0"), ("--control_scale", "nan")],
    PAIRS: [
        ("--crop_size", "nan"), ("--crop_size", "-4"), ("--crop_size", "6"), ("--crops_per_image", "0"), ("--min_detail", "nan"),
        ("--num_workers", "0"),
    ],
    TRAIN: [
        ("--learning_rate", "nan"), ("--learning_rate", "inf"), ("--beta", "nan"), ("--beta", "1e999"), ("--top_n", "0"), ("--top_n", "2"),
        ("--max_train_steps", "0"), ("--guidance_scale", "nan"), ("--max_grad_norm", "nan"), ("--adam_weight_decay", "inf"),
        ("--seed", "99999999999999999999999999"), ("--num_candidates", "99"), ("--label_smoothing", "0.9"), ("--lora_rank", "-1"),
    ],
    "scripts/train_controlnet.py": [
        ("--full_window_share", "nan"), ("--weight_decay", "nan"), ("--learning_rate", "nan"), ("--learning_rate", "-1"),
        ("--lr_scheduler", "cosin"), ("--drop_share", "2"), ("--image_weight", "nan"), ("--conditioning_channels", "0"),
        ("--lr_warmup_steps", "-5"), ("--window", "999"),
    ],
    "studies/train_vae.py": [("--learning_rate", "nan"), ("--kl_weight", "nan"), ("--block_out_channels", "0"), ("--resolution", "33")],
}  # fmt: skip


def _add_absurd():
    def build(place, flag, value):
        if place.program in (TEST, GEN, PAIRS):
            place.images("in/a.png", size=(16, 16))
            crop = ["--crop_size", "16"] if flag in ("--crops_per_image", "--min_detail") else []
            return command(place, *crop, flag, value)
        if place.program == TRAIN:
            place.shared(candidates)
            return [*TRAINING, *REWARD, flag, value]
        place.shared(photographs if "controlnet" in place.program else large_photographs)
        return [*(controlnet_training() if "controlnet" in place.program else [*VAE, "--resolution", "32"]), flag, value]

    for program, flags in ABSURD.items():
        for flag, value in flags:
            case(5, f"`{flag} {value}`", program, refused(flag))(functools.partial(build, flag=flag, value=value))


_add_absurd()


@case(5, "an unknown flag near a known one", LABEL, refused("--reward_confg", "--reward_config"))
def _(place):
    return ["--candidates_dir", "x", "--reward_confg", "embedded"]


@case(5, "`--zoom 0`", "scripts/contact_sheet.py", refused("--zoom"))
def _(place):
    place.shared(candidates)
    return ["--candidates", "x=candidates", "--gt_path", "gt", "--output", "sheet.png", "--zoom", "0"]


@case(5, "`--columns 0`", "scripts/contact_sheet.py", refused("--columns"))
def _(place):
    place.shared(candidates)
    return ["--candidates", "x=candidates", "--gt_path", "gt", "--output", "sheet.png", "--columns", "0"]


@case(5, "`--top_n 0`", "scripts/inspect_preferences.py", refused("--top_n"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", *REWARD, "--top_n", "0"]


@case(5, "`--num_candidates -1`", "scripts/inspect_preferences.py", refused("--num_candidates"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", *REWARD, "--top_n", "1", "--num_candidates", "-1"]


@case(5, "`--memory_limit -1`", LABEL, refused("--memory_limit"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--memory_limit", "-1"]


@case(5, "`--sizes 64`, of two candidates", "scripts/suggest_nm.py", refused("--sizes|64"))
def _(place):
    place.shared(candidates)
    return [*TRAINING, *REWARD, "--sizes", "64"]


@case(5, "`--bootstrap 0`", "scripts/evaluate.py", refused("--bootstrap"))
def _(place):
    place.shared(methods)
    return [*EVALUATE, "--bootstrap", "0"]


@case(5, "`--crop_suffix '['`", "scripts/evaluate.py", refused("--crop_suffix"))
def _(place):
    place.shared(methods)
    return [*EVALUATE, "--crop_suffix", "["]


@case(5, "`--center_crop` larger than the images", "scripts/evaluate.py", refused("--center_crop", writes=("out/scores.jsonl",)))
def _(place):
    place.shared(methods)
    return [*EVALUATE, "--center_crop", "64"]


# -- 6: paths, sizes and models that cannot be used -------------------------------------------------------------------

NOWHERE = {"a file": "file", "below a file": "file/x", "below /proc": "/proc/x"}


def _add_outputs():
    def build(place, prepare, argv, into):
        place.text("file", "mine")
        prepare(place)
        return [into + word[3:] if word == "OUT" or word.startswith("OUT.") else word for word in argv(place)]

    def of(given, tree, program, argv, where="below a file", flag="--output_dir"):
        into = NOWHERE[where]
        build_it = functools.partial(build, prepare=lambda place: place.shared(tree), argv=argv, into=into)
        case(
            6, f"{given} {where}", program, refused("file|/proc/x"), process=PAIRS if (program, where) == (PAIRS, "below a file") else None
        )(build_it)

    for program in FOLDERS:
        for where in NOWHERE:
            of(
                "an output folder that is" if where == "a file" else "an output folder",
                two_images,
                program,
                lambda p: command(p, into="OUT"),
                where,
            )
    training = [word if word != "out" else "OUT" for word in [*TRAINING, *REWARD]]
    of("an output folder", candidates, TRAIN, lambda p: training)
    of("an output folder", candidates, TRAIN, lambda p: training, "below /proc")
    of("an output folder", candidates, "scripts/suggest_nm.py", lambda p: [*training, "--sizes", "2"])
    of("an output folder", photographs, "scripts/train_controlnet.py", lambda p: [*controlnet_training(), "--output_dir", "OUT"])
    of("an output folder", large_photographs, "studies/train_vae.py", lambda p: [*VAE, "--output_dir", "OUT", "--resolution", "32"])
    of("an output folder", methods, "scripts/evaluate.py", lambda p: [*EVALUATE, "--output_dir", "OUT"])
    of(
        "an output folder",
        candidates,
        "scripts/inspect_rewards.py",
        lambda p: ["--candidates_dir", "candidates", *REWARD, "--output_dir", "OUT"],
    )
    of(
        "an output folder",
        photographs,
        "scripts/prepare_data.py",
        lambda p: ["RealLR200", "--source", "hr", "--any_count", "--output_dir", "OUT"],
    )
    of("a metrics folder", two_images, "scripts/fetch_metrics.py", lambda p: ["--reward_config", "nr_only", "--metrics_dir", "OUT"])
    of(
        "a table",
        candidates,
        LABEL,
        lambda p: ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--output", "OUT.parquet"],
        "below /proc",
    )
    study = ["make", "--images", "x=x", "y=y", "--lr_path", "lr", "--output"]
    of("a page", methods, "scripts/user_study.py", lambda p: [*study, "OUT.html"])
    sheet = ["--candidates", "x=candidates", "--gt_path", "gt", "--output"]
    of("a picture", candidates, "scripts/contact_sheet.py", lambda p: [*sheet, "OUT.png"])
    check = [str(ROOT / "configs/rewards/fr_only.yaml"), "--image_path", "hr", "--resolution", "32", "--num_crops", "2", "--output"]
    of("a file of numbers", photographs, "scripts/validate_reward.py", lambda p: [*check, "OUT.json"])
    of(
        "a model folder",
        photographs,
        "studies/make_tiny_sd2.py",
        lambda p: ["--vae", f"{MODEL}/vae", "--manifest", MANIFEST, "--output_dir", "OUT"],
    )
    of(
        "a model folder",
        photographs,
        "studies/make_tiny_flux.py",
        lambda p: ["--vae", f"{MODEL}/vae", "--manifest", MANIFEST, "--output_dir", "OUT"],
    )


MANIFEST = str(ROOT / "configs/tiny_sd2/photographs.csv")
_add_outputs()


@case(6, "`--output` is a folder", LABEL, refused("gt"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--output", "gt"]


@case(6, "an image whose name has 250 bytes", FOLDERS, done(note="done"), refused("name|long"))
def _(place):
    place.images(f"in/{'n' * 246}.png", size=(16, 16))
    return command(place)


@case(6, "an image whose name has 120 letters, 245 bytes", TEST, done(there=(f"out/{'ä' * 120}.png",)), refused("name|long"))
def _(place):
    place.images(f"in/{'ä' * 120}.png")
    return command(place)


@case(6, "a `--suffix` that makes names too long", TEST, refused("name|long|suffix"))
def _(place):
    place.images(f"in/{'n' * 240}.png")
    return command(place, "--suffix", "_super_resolved")


@case(6, "a `--suffix` with a slash", TEST, refused("--suffix"))
def _(place):
    place.images("in/a.png")
    return command(place, "--suffix", "/../../b")


@case(6, "a ControlNet of another width", (TEST, GEN), refused("c-tiny-sd2-8"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=str(ROOT / "preset/models/c-tiny-sd2-8"))


@case(6, "a ControlNet of another width", TRAIN, refused("c-tiny-sd2-8"))
def _(place):
    place.shared(candidates)
    return [*TRAINING, *REWARD, "--controlnet_model_name_or_path", str(ROOT / "preset/models/c-tiny-sd2-8")]


@case(6, "a ControlNet of FLUX for SD2", TEST, refused("c-tiny-flux"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=str(ROOT / "preset/models/c-tiny-flux"))


@case(6, "a base model for a ControlNet", TEST, refused("tiny-sd2"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=MODEL)


@case(6, "a ControlNet's file that was cut short", TEST, refused("safetensors"))
def _(place):
    place.images("in/a.png")
    shutil.copytree(CONTROLNET, place.folder / "c")
    [file] = (place.folder / "c").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100_000])
    return command(place, controlnet="c")


@case(6, "a text file for a ControlNet", TEST, refused("notes.txt"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=place.text("notes.txt", "mine"))


def _model_copy(place, *without):
    shutil.copytree(MODEL, place.folder / "model", ignore=shutil.ignore_patterns(*without))
    argv = command(place)
    return ["model" if word == MODEL else word for word in argv]


@case(6, "a base model without its UNet's weights", TEST, refused("model/unet"))
def _(place):
    place.images("in/a.png")
    argv = _model_copy(place)
    for file in (place.folder / "model/unet").glob("*.safetensors"):
        file.unlink()
    return argv


@case(6, "a base model with a broken configuration", TEST, refused("model/vae"))
def _(place):
    place.images("in/a.png")
    argv = _model_copy(place)
    place.text("model/vae/config.json", "{")
    return argv


@case(6, "a base model without a tokenizer", TEST, refused("model/tokenizer"))
def _(place):
    place.images("in/a.png")
    return _model_copy(place, "tokenizer")


@case(6, "an empty folder for a base model", TEST, refused("empty"))
def _(place):
    place.images("in/a.png")
    place.path("empty/x").parent.mkdir(exist_ok=True)
    return ["empty" if word == MODEL else word for word in command(place)]


@case(6, "SD2 for the program of FLUX", FLUX, refused("tiny-sd2", "sd2|StableDiffusion"))
def _(place):
    place.images("in/a.png")
    return [*SAMPLE, "--image_path", "in", "--output_dir", "out"]


@case(6, "`--variant fp16` of a model that has none", TEST, refused("fp16"))
def _(place):
    place.images("in/a.png")
    return command(place, "--variant", "fp16")


@case(6, "a scheduler of diffusers that does not fit", TEST, refused("scheduler"))
def _(place):
    place.images("in/a.png")
    return command(place, "--scheduler", "ScoreSdeVpScheduler")


@case(6, "`--scheduler UNet2DConditionModel`", TEST, refused("scheduler"))
def _(place):
    place.images("in/a.png")
    return command(place, "--scheduler", "UNet2DConditionModel")


@case(6, "another autoencoder's folder that is none", TEST, refused("in"))
def _(place):
    place.images("in/a.png")
    return command(place, "--pretrained_vae_model_name_or_path", "in")


@case(
    6,
    "no `--conditioning_channels` for the tiny model",
    "scripts/train_controlnet.py",
    refused("--conditioning_channels"),
    done(there=("out/controlnet",)),
)
def _(place):
    place.shared(photographs)
    return controlnet_training(channels=False)


@case(6, "a ControlNet's checkpoint that was cut short", TEST, refused("checkpoint-1.pt"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=place.text("checkpoint-1.pt", b"PK\3\4" + bytes(200)))


@case(6, "no such candidate folder", (LABEL, TRAIN, "scripts/inspect_preferences.py"), refused("nowhere"))
def _(place):
    if place.program == TRAIN:
        return [*TRAINING, *REWARD, "--candidates_dir", "nowhere"]
    return ["--candidates_dir", "nowhere", "--reward_config", "nr_only"]


@case(6, "a folder of images for a candidate folder", (LABEL, "scripts/inspect_rewards.py"), refused("in", "candidate"))
def _(place):
    place.images("in/a.png")
    return ["--candidates_dir", "in", *(["--output_dir", "out"] if "inspect" in place.program else [])]


@case(6, "a missing `--prompt_file`", TEST, refused("nowhere.json"))
def _(place):
    place.images("in/a.png")
    return command(place, "--prompt_file", "nowhere.json")


@case(6, "a text file for RAM's weights", TEST, refused("ram.pth"))
def _(place):
    place.images("in/a.png")
    place.text("ram_tag_list.txt", "tree\n")
    place.text("ram_tag_list_threshold.txt", "0.5\n")
    return command(place, "--ram_path", place.text("ram.pth", "mine"))


@case(6, "no wheel", "scripts/convert_brisque.py", refused("nowhere.whl"))
def _(place):
    return ["--wheel", "nowhere.whl", "--output", "b.safetensors"]


@case(6, "a wheel that is no archive", "scripts/convert_brisque.py", refused("b.whl"))
def _(place):
    return ["--wheel", place.text("b.whl", "mine"), "--output", "b.safetensors"]


@case(6, "the wheel of another package", "scripts/convert_brisque.py", refused("b.whl"))
def _(place):
    place.text("w/x.txt", "mine")
    shutil.make_archive(str(place.folder / "b"), "zip", place.folder / "w")
    (place.folder / "b.zip").rename(place.folder / "b.whl")
    return ["--wheel", "b.whl", "--output", "b.safetensors"]


@case(6, "no checkpoint", "scripts/convert_ram.py", refused("nowhere.pth"))
def _(place):
    return ["--ram_path", "nowhere.pth", "--output", "ram.safetensors"]


@case(6, "a checkpoint that is a text file", "scripts/convert_ram.py", refused("ram.pth"))
def _(place):
    place.text("ram_tag_list.txt", "tree\n")
    place.text("ram_tag_list_threshold.txt", "0.5\n")
    return ["--ram_path", place.text("ram.pth", "mine"), "--output", "ram.safetensors"]


@case(6, "no manifest", "scripts/fetch_photographs.py", refused("nowhere.csv"))
def _(place):
    return ["--manifest", "nowhere.csv", "--output_dir", "out", "--work_dir", "work"]


@case(6, "a manifest of other columns", "scripts/fetch_photographs.py", refused("mine.csv"))
def _(place):
    return ["--manifest", place.text("mine.csv", "shot,camera\n1,Canon\n"), "--output_dir", "out", "--work_dir", "work"]


@case(6, "no autoencoder", "studies/make_tiny_sd2.py", refused("nowhere"))
def _(place):
    return ["--vae", "nowhere", "--manifest", MANIFEST, "--output_dir", "out"]


@case(6, "no autoencoder", "studies/make_tiny_flux.py", refused("nowhere"))
def _(place):
    return ["--vae", "nowhere", "--manifest", MANIFEST, "--output_dir", "out"]


@case(6, "a folder without sample.yaml", "scripts/plan.py", refused("sample.yaml"))
def _(place):
    place.path("run/x").parent.mkdir(exist_ok=True)
    return ["run", "--num_gpus", "1"]


@case(6, "a sample.yaml with a misspelt key", "scripts/plan.py", refused("sample.yaml", "sede"))
def _(place):
    place.text("run/sample.yaml", f"pretrained_model_name_or_path: {MODEL}\nsede: 1\n")
    place.text("run/train.yaml", "")
    return ["run", "--num_gpus", "1"]


@case(6, "an experiment that is not there", "scripts/reproduce.py", refused("nowhere"))
def _(place):
    return ["fig4", "--experiment", "nowhere.yaml", "--output_dir", "out", "--plan"]


@case(6, "an experiment with a misspelt key", "scripts/reproduce.py", refused("mine.yaml"))
def _(place):
    return ["fig4", "--experiment", place.text("mine.yaml", "nmae: x\n"), "--output_dir", "out", "--plan"]


@case(6, "a metrics folder with a file that was cut short", LABEL, refused("x.pth"))
def _(place):
    place.shared(candidates)
    place.text("weights/x.pth", "abc")
    place.text("weights/manifest.json", '{"x.pth": {"bytes": 9, "sha256": "00"}}')
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--metrics_dir", "weights"]


# -- 7: models by hub id ----------------------------------------------------------------------------------------------


@case(7, "a ControlNet by a hub id that cannot be reached", TEST, refused("somebody/c-none", "hub"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet="somebody/c-none")


@case(7, "a folder that is mistyped", TEST, refused("models/c-tiny", "folder|no such|not there"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet="./models/c-tiny")


@case(7, "a base model by a hub id that cannot be reached", TEST, refused("somebody/none", "hub"))
def _(place):
    place.images("in/a.png")
    return ["somebody/none" if word == MODEL else word for word in command(place)]


@case(
    7, "a ControlNet by hub id, in the hub's cache, offline", TEST, done(there=("out/a.png",), note="loaded from the cache"),
    process=TEST, env={"HF_HUB_CACHE": "hub", "HF_HUB_OFFLINE": "1"},
)  # fmt: skip
def _(place):
    place.images("in/a.png")
    snapshot = place.folder / "hub/models--somebody--c-tiny/snapshots" / ("0" * 40)
    shutil.copytree(CONTROLNET, snapshot)
    place.text("hub/models--somebody--c-tiny/refs/main", "0" * 40)
    return command(place, controlnet="somebody/c-tiny")


# -- 8: cost ----------------------------------------------------------------------------------------------------------


@case(8, "`--upscale 100000`", TEST, refused("--upscale|memory|GB"))
def _(place):
    place.images("in/a.png", size=(64, 64))
    return command(place, "--upscale", "100000")


@case(8, "`--upscale 100000`", GEN, refused("--upscale|memory|GB"))
def _(place):
    place.images("in/a.png", size=(64, 64))
    return command(place, "--upscale", "100000")


@case(
    8,
    "an image of 2 × 150 pixels",
    TEST,
    refused(r"a\.png|600|memory"),
    done(r"9,?600|19,?200|19200|38,?400|memory|minutes?|seconds?| s\b"),
)
def _(place):
    place.images("in/a.png", size=(2, 150))
    return command(place, "--upscale", "4")


@case(8, "an image of 1 × 30,000 pixels", TEST, refused(r"a\.png|30,?000|memory|GB"))
def _(place):
    place.images("in/a.png", size=(1, 30_000))
    return command(place, "--upscale", "4")


@case(8, "`--process_size 1000000`", TEST, refused("--process_size|memory|GB"))
def _(place):
    place.images("in/a.png")
    return command(place, "--process_size", "1000000")


@case(8, "a PNG whose header promises 60,000 × 60,000 pixels, alone", PAIRS, refused("bomb"), process=PAIRS)
def _(place):
    bomb(place)
    return command(place)


# -- 9: going on ------------------------------------------------------------------------------------------------------


def latents_of(path):
    from safetensors.torch import load_file

    return load_file(path)["latents"]


def _first_two_are_the_same(folder):
    import torch

    grown, earlier = (latents_of(folder / name / "groups/a/latents.safetensors") for name in ("out", "earlier"))
    if len(grown) != 3:
        return f"{len(grown)} candidates, not 3"
    return "" if torch.equal(grown[:2], earlier) else "the first two candidates are others"


@case(
    9,
    "two candidates an image are there, three are wanted",
    GEN,
    done(check=_first_two_are_the_same, replaces=("out/groups/*",), note="M grows"),
)
def _(place):
    place.shared(two_images)
    place.run(*command(place))
    shutil.copytree(place.folder / "out", place.folder / "earlier")
    return command(place, "--num_candidates", "3")


@case(9, "two candidates an image are there, one is wanted", GEN, done("2"), refused("num_candidates", "2"))
def _(place):
    place.shared(two_images)
    place.run(*command(place))
    return command(place, "--num_candidates", "1")


@case(9, "candidates of other settings", GEN, refused("seed", "--output_dir|output folder"))
def _(place):
    place.shared(two_images)
    place.run(*command(place))
    return command(place, "--seed", "1")


@case(9, "pairs of other settings", PAIRS, refused("seed", "--output_dir|output folder"), process=PAIRS)
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.run(*command(place))
    return command(place, "--seed", "1")


def _two_steps(folder):
    lines = (folder / "out/train_log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line).get("step") for line in lines]
    return "" if max(steps) == 2 else f"steps {steps}"


TRAINED = ("out/config.json", "out/*.safetensors", "out/checkpoint*", "out/*.pt")


@case(9, "one step is trained, two are wanted", TRAIN, done(check=_two_steps, replaces=TRAINED, note="goes on"))
def _(place):
    place.shared(candidates)
    place.run(*TRAINING, *REWARD, "--lr_scheduler", "constant")
    return [*TRAINING, *REWARD, "--lr_scheduler", "constant", "--max_train_steps", "2"]


@case(9, "a training of other settings", TRAIN, refused("beta", "--force"))
def _(place):
    place.shared(candidates)
    place.run(*TRAINING, *REWARD)
    return [*TRAINING, *REWARD, "--beta", "10"]


@case(9, "a checkpoint that was cut short", TRAIN, refused("checkpoint"), done("checkpoint", replaces=TRAINED))
def _(place):
    place.shared(candidates)
    place.run(*TRAINING, *REWARD)
    for path in (place.folder / "out").rglob("checkpoint-*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:1000])
    return [*TRAINING, *REWARD, "--max_train_steps", "2"]


@case(9, "a settings.json that was cut short", (TEST, GEN), refused("settings.json"))
def _(place):
    place.shared(two_images)
    place.run(*command(place))
    path = place.folder / "out/settings.json"
    path.write_bytes(path.read_bytes()[:40])
    return command(place)


@case(9, "what a killed run left half-written", GEN, done(there=("out/groups/a/latents.safetensors",), note="left aside"))
def _(place):
    place.shared(two_images)
    place.text("out/groups/.a.123.part/latents.safetensors", "half")
    return command(place)


@case(
    9,
    "a group whose latents were cut short",
    (LABEL, TRAIN),
    refused("latents.safetensors", "groups/a", writes=("out/settings.json", "out/train_log.jsonl")),
)
def _(place):
    place.shared(candidates)
    path = place.folder / "candidates/groups/a/latents.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    if place.program == TRAIN:
        return [*TRAINING, *REWARD, "--groups_per_step", "2"]
    (place.folder / "candidates/scores.parquet").unlink()
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only"]


@case(
    9,
    "a reward that was not scored, in a folder with spaces",
    "scripts/inspect_preferences.py",
    refused(r"'my candidates'|my\\ candidates"),
)
def _(place):
    place.shared(candidates)
    (place.folder / "candidates").rename(place.folder / "my candidates")
    return ["--candidates_dir", "my candidates", "--reward_config", "nr_only", "--top_n", "1"]


@case(9, "candidates without scores, in a folder with spaces", "scripts/evaluate.py", refused(r"label_rewards\.py", r"'my candidates'"))
def _(place):
    place.shared(candidates)
    (place.folder / "candidates").rename(place.folder / "my candidates")
    (place.folder / "my candidates/scores.parquet").unlink()
    return ["--candidates", "x=my candidates", "--gt_path", "gt", "--output_dir", "out", "--reward_config", "nr_only"]


# -- 10: metrics, scores and odd images -------------------------------------------------------------------------------

INSPECT = ["--candidates_dir", "candidates", *REWARD, "--top_n", "1"]


@case(10, "a column added to the scores with pandas", "scripts/inspect_preferences.py", done("winners", note="read"))
def _(place):
    pandas = pytest.importorskip("pandas")
    place.shared(candidates)
    path = place.folder / "candidates/scores.parquet"
    frame = pandas.read_parquet(path)
    frame["mine"] = np.arange(len(frame)) / 10
    frame.to_parquet(path)
    return INSPECT


@case(10, "a score table that was cut short", ("scripts/inspect_preferences.py", TRAIN, LABEL), refused("scores.parquet"))
def _(place):
    place.shared(candidates)
    path = place.folder / "candidates/scores.parquet"
    path.write_bytes(path.read_bytes()[:300])
    if place.program == TRAIN:
        return [*TRAINING, *REWARD]
    return INSPECT if "inspect" in place.program else ["--candidates_dir", "candidates", "--reward_config", "nr_only"]


@case(10, "scores of other candidates", "scripts/inspect_preferences.py", refused("candidates"))
def _(place):
    place.shared(scored)
    place.run(*command(Place(place.folder, GEN), "--seed", "1", into="other"), program=GEN)
    shutil.copy(place.folder / "candidates/scores.parquet", place.folder / "other/scores.parquet")
    return ["--candidates_dir", "other", "--reward_config", "nr_only", "--top_n", "1"]


@case(10, "scores of a group that was made anew since", "scripts/inspect_preferences.py", refused("a"), done("a"))
def _(place):
    place.shared(scored)
    place.image("in/a.png", seed="new")
    shutil.rmtree(place.folder / "candidates/groups/a")
    place.run(*command(Place(place.folder, GEN), into="candidates"), program=GEN)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--top_n", "1"]


@case(10, "a NaN score", "scripts/inspect_preferences.py", done("NaN", r"\ba\b", note="said"))
def _(place):
    from dp2osr.rewards.table import read_columns, write_scores

    place.shared(candidates)
    path = place.folder / "candidates/scores.parquet"
    columns, metadata = read_columns(path)
    columns = {name: values.copy() for name, values in columns.items()}
    columns["gmsd"][0] = np.nan
    write_scores(path, columns, metadata)
    return INSPECT


@case(10, "`nr: [brisque]` and no network", LABEL, refused("brisque", "parameters"))
def _(place):
    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    place.text("mine.yaml", "fr: []\nnr: [brisque]\n")
    place.path("weights").mkdir()
    return ["--candidates_dir", "candidates", "--reward_config", "mine.yaml", "--metrics_dir", "weights"]


@case(10, "a metric that is misspelt", LABEL, refused("psnrr", "psnr"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--extra_metrics", "psnrr"]


@case(10, "a metric that is misspelt", "scripts/fetch_metrics.py", refused("musik"))
def _(place):
    place.text("mine.yaml", "fr: []\nnr: [musik]\n")
    return ["--reward_config", "mine.yaml", "--metrics_dir", "weights"]


@case(10, "no network", "scripts/fetch_metrics.py", refused("musiq"))
def _(place):
    place.text("mine.yaml", "fr: []\nnr: [musiq]\n")
    return ["--reward_config", "mine.yaml", "--metrics_dir", "weights"]


@case(10, "a reward that is misspelt", "scripts/validate_reward.py", refused("embeded", "embedded"))
def _(place):
    return ["embeded"]


@case(10, "FR metrics without `--gt_path`", LABEL, refused("--gt_path"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", "--reward_config", "fr_only"]


PSNR = ["--candidates_dir", "candidates", "--gt_path", "gt", "--reward_config", "psnr.yaml"]


def _to_score(place):
    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")


@case(10, "GT of another size", LABEL, refused("a.png", "20 x 20|20 × 20", "16 x 16|16 × 16"))
def _(place):
    _to_score(place)
    place.image("gt/a.png", size=(20, 20))
    return PSNR


@case(
    10, "the second GT has another size", LABEL, refused("b.png", "20 x 20|20 × 20", writes=("candidates/scores.parquet.parts/a.parquet",))
)
def _(place):
    _to_score(place)
    place.image("gt/b.png", size=(20, 20))
    return PSNR


@case(10, "no GT of either image", LABEL, refused(r"\ba\b", r"\bb\b"))
def _(place):
    _to_score(place)
    shutil.rmtree(place.folder / "gt")
    place.image("gt/c.png", size=(16, 16))
    return PSNR


@case(10, "no GT of one image", ("scripts/contact_sheet.py", "scripts/inspect_rewards.py"), refused(r"\bb\b", "gt"))
def _(place):
    place.shared(candidates)
    (place.folder / "gt/b.png").unlink()
    if "contact" in place.program:
        return ["--candidates", "x=candidates", "--gt_path", "gt", "--output", "sheet.png"]
    return ["--candidates_dir", "candidates", *REWARD, "--gt_path", "gt", "--output_dir", "out"]


@case(10, "candidate folders of other images", "scripts/contact_sheet.py", refused("b|other"))
def _(place):
    place.shared(candidates)
    place.image("lr/a.png", seed="in/a.png")
    place.run(*command(Place(place.folder, GEN), given="lr", into="other"), program=GEN)
    return ["--candidates", "x=candidates", "y=other", "--gt_path", "gt", "--output", "sheet.png"]


@case(10, "a score table that is missing", "scripts/inspect_rewards.py", refused("scores.parquet", "label_rewards"))
def _(place):
    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    return ["--candidates_dir", "candidates", *REWARD, "--output_dir", "out"]


@case(10, "SR images without GT, and GT without SR images", "scripts/evaluate.py", refused(r"\bc\b", r"\bd\b"))
def _(place):
    place.shared(methods)
    place.image("x/c.png", size=(32, 32))
    place.image("gt/d.png", size=(32, 32))
    return EVALUATE


@case(10, "SR images of other sizes", "scripts/evaluate.py", refused("x/a.png", "y/b.png", writes=("out/scores.jsonl",)))
def _(place):
    place.shared(methods)
    place.image("x/a.png", size=(30, 32))
    place.image("y/b.png", size=(16, 16))
    return EVALUATE


def _suffixed(place):
    place.shared(methods)
    for name in "ab":
        (place.folder / f"x/{name}.png").rename(place.folder / f"x/{name}_sr.png")


@case(10, "SR images with a suffix, `a_sr.png`", "scripts/evaluate.py", refused("--suffix"), done(there=("out/table.md",)))
def _(place):
    _suffixed(place)
    return EVALUATE


@case(10, "SR images with a suffix, `--suffix _sr`", "scripts/evaluate.py", done(there=("out/table.md",), note="paired"))
def _(place):
    _suffixed(place)
    return [*EVALUATE, "--suffix", "_sr"]


@case(10, "a folder given twice", "scripts/evaluate.py", refused("twice"))
def _(place):
    place.shared(methods)
    return ["--images", "x=x", "x=./x", *EVALUATE[3:]]


@case(10, "`--images x`, not NAME=DIR", "scripts/evaluate.py", refused("NAME=DIR|--images"))
def _(place):
    place.shared(methods)
    return ["--images", "x", *EVALUATE[3:]]


@case(10, "a name with a line break in `--images`", "scripts/evaluate.py", done(there=("out/table.md",)), refused("--images"))
def _(place):
    place.shared(methods)
    return ["--images", "x|\ny=x", *EVALUATE[3:]]


STUDY = ["make", "--images", "x=x", "y=y", "--lr_path", "lr", "--output", "page.html"]


@case(10, "one method", "scripts/user_study.py", refused("--images", "2"))
def _(place):
    place.shared(methods)
    return [*STUDY[:3], *STUDY[4:]]


@case(10, "a method without one of the images", "scripts/user_study.py", refused(r"\bb\b"))
def _(place):
    place.shared(methods)
    (place.folder / "y/b.png").unlink()
    return STUDY


@case(10, "no LR images", "scripts/user_study.py", refused("lr"))
def _(place):
    place.shared(methods)
    shutil.rmtree(place.folder / "lr")
    return STUDY


def _votes(place, content):
    place.shared(methods)
    place.run(*STUDY)
    return ["count", "--key", "page.key.json", place.text("votes.json", content)]


@case(10, "votes that are no JSON", "scripts/user_study.py", refused("votes.json"))
def _(place):
    return _votes(place, "first")


@case(10, "votes of another study", "scripts/user_study.py", refused("votes.json"))
def _(place):
    return _votes(place, '{"study": "other", "participant": "p", "votes": {}}')


@case(10, "votes that are a list", "scripts/user_study.py", refused("votes.json"))
def _(place):
    return _votes(place, "[1, 2]")


@case(10, "no key", "scripts/user_study.py", refused("nowhere"))
def _(place):
    return ["count", "--key", "nowhere.key.json", place.text("votes.json", "{}")]


@case(10, "LR and HR images without their other halves", "scripts/prepare_data.py", refused("a|b"))
def _(place):
    place.images("set/test_LR/a.png", size=(128, 128))
    place.images("set/test_HR/b.png", size=(512, 512))
    return ["RealSR", "--source", "set", "--any_count"]


@case(10, "HR images that are not four times their LR images", "scripts/prepare_data.py", refused("a.png", "4 times|4"))
def _(place):
    place.images("set/test_LR/a.png", size=(128, 128))
    place.images("set/test_HR/a.png", size=(500, 512))
    return ["RealSR", "--source", "set", "--any_count"]


@case(
    10,
    "a manifest of other files to compare with",
    "scripts/prepare_data.py",
    refused("other.csv", "a.png|p.png", writes=("hr/manifest.csv",)),
)
def _(place):
    place.shared(photographs)
    place.text("other.csv", "file,width,height,sha256\na.png,1,1,00\n")
    return ["HR", "--source", "hr", "--min_side", "8", "--manifest", "other.csv"]


# -- odd images --


def is_image(name, size, mode=None, near=None, tolerance=45):
    """A check of a result: its size, mode, and mean colour, which adain takes from the LR."""

    def check(folder):
        image = Image.open(folder / name)
        if image.size != size or mode and image.mode != mode:
            return f"{name}: {image.size} {image.mode}, not {size} {mode or ''}"
        if near is None:
            return ""
        mean = np.asarray(image.convert("RGB"), float).mean((0, 1))
        return "" if np.abs(mean - near).max() <= tolerance else f"{name}: mean colour {mean.round()}, not {near}"

    return check


def odd_image(given, save, size=(16, 16), mode="RGB", near=None, name="a.png", program=TEST):
    def build(place):
        save(place.path(f"in/{name}"))
        return command(place)

    case(10, given, program, done(check=is_image("out/a.png", size, mode, near), note="right in size and colour"))(build)


RED = (200, 60, 60)


def reddish(size=(8, 8)):
    return Image.fromarray(
        np.clip(np.asarray(noise(size, "red", -20, 20) if False else noise(size, "red", 0, 40), int) + RED - np.array(20), 0, 255).astype(
            np.uint8
        )
    )


def _save_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    reddish((8, 4)).save(path, exif=exif)


odd_image("a grey image", lambda path: reddish().convert("L").save(path), near=(104, 104, 104))
odd_image("a CMYK JPEG", lambda path: reddish().convert("CMYK").save(path, quality=95), near=RED, name="a.jpg")
odd_image(
    "16 bits, grey",
    lambda path: Image.fromarray(np.full((8, 8), 30_000, np.uint16) + np.arange(8, dtype=np.uint16) * 500).save(path),
    near=(123,) * 3,
)
odd_image("a palette", lambda path: reddish().convert("P").save(path), near=RED)
odd_image("a palette with a transparent colour", lambda path: reddish().convert("P").save(path, transparency=0), mode="RGBA")
odd_image("grey with opacity", lambda path: reddish().convert("LA").save(path), mode="RGBA")
odd_image("colour with opacity", lambda path: reddish().convert("RGBA").save(path), mode="RGBA", near=RED)
odd_image("black and white, 1 bit", lambda path: reddish().convert("1").save(path))
odd_image("a photograph that its EXIF data turns", _save_rotated, size=(8, 16), near=RED, name="a.jpg")
odd_image("an image of 1 × 1", lambda path: reddish((1, 1)).save(path), size=(2, 2))
odd_image("an image of 1 × 7", lambda path: reddish((1, 7)).save(path), size=(2, 14))
odd_image("one colour", lambda path: Image.new("RGB", (8, 8), RED).save(path), near=RED)
odd_image("black", lambda path: Image.new("RGB", (8, 8)).save(path), near=(0, 0, 0))


@case(10, "a TIFF of floating-point pixels", FOLDERS, refused("a.tif"))
def _(place):
    Image.fromarray(np.random.default_rng(0).random((16, 16)).astype(np.float32)).save(place.path("in/a.tif"))
    return command(place)


@case(
    10,
    "grey, 16-bit, palette and CMYK photographs",
    PAIRS,
    done(check=lambda folder: _pairs_are_right(folder), note="right"),
    process=PAIRS,
)
def _(place):
    red = reddish((16, 16))
    red.convert("L").save(place.path("in/grey.png"))
    red.convert("P").save(place.path("in/palette.png"))
    red.convert("CMYK").save(place.path("in/cmyk.jpg"), quality=95)
    Image.fromarray(np.full((16, 16), 30_000, np.uint16)).save(place.path("in/deep.png"))
    return command(place)


def _pairs_are_right(folder):
    wanted = {"grey": (104,) * 3, "palette": RED, "cmyk": RED, "deep": (117,) * 3}
    checks = [
        is_image(f"out/{kind}/{name}.png", size, "RGB", near, 12)
        for name, near in wanted.items()
        for kind, size in (("gt", (16, 16)), ("lr", (4, 4)))
    ]
    return "; ".join(filter(None, (check(folder) for check in checks)))


@case(10, "an image of 1 × 1", PAIRS, refused("a.png"))
def _(place):
    place.image("in/a.png", size=(1, 1))
    return command(place)


ODD_NAMES = {
    "spaces, brackets, a per cent sign and a quote": "a [b] 100% c'd",
    "letters that are not ASCII": "größe 写真 📷",
    "a line break": "a\nb",
    "a dash at the beginning": "-a",
    "dots": "a.b.png",
    "a byte that is no UTF-8": os.fsdecode(b"a\xff"),
    "a backslash": "a\\b",
}


def _add_names():
    def build(place, stem):
        place.image(f"in/{stem}.png", size=(16, 16))
        return command(place)

    for given, stem in ODD_NAMES.items():
        for program in FOLDERS if given in ("a line break", "a byte that is no UTF-8") else (TEST, GEN):
            there = (result(program, stem),)
            case(10, f"a name with {given}", program, done(there=there), refused("name|in/"))(functools.partial(build, stem=stem))


_add_names()


@case(10, "names with spaces, a quote and Chinese, all the way to the scores", LABEL, done("2 groups", note="scored"))
def _(place):
    for stem in ("a b'c", "写真"):
        place.image(f"in/{stem}.png")
        place.image(f"gt/{stem}.png", size=(16, 16))
    place.run(*command(Place(place.folder, GEN), into="candidates"), program=GEN)
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")
    return PSNR


@case(10, "names that are `groups`, `settings` and `txt`", TEST, done(there=("out/settings.png", "out/txt.png", "out/txt/txt.txt")))
def _(place):
    place.images("in/settings.png", "in/txt.png", "in/groups.png")
    return command(place, "--save_prompts")


@case(10, "`a.png` and `a_00.png`, two samples of each", TEST, done(there=("out/a_00.png", "out/a_01.png", "out/a_00_00.png")))
def _(place):
    place.images("in/a.png", "in/a_00.png")
    return command(place, "--sample_times", "2")


# ---------------------------------------------------------------------------------------------------------------------
# The tests
# ---------------------------------------------------------------------------------------------------------------------

OUTCOMES = {}  # case → its `Outcome`, of this process


def attempt(case, folder):
    """(`Outcome`, fault or None): the outcome that comes nearest counts."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    place = Place(folder, case.program)
    argv = case.build(place)
    outcome = run_process(case.program, argv, folder, case.env) if case.process else run_here(case.program, argv, folder)
    OUTCOMES[case] = outcome
    faults = [wanted.fault(outcome) for wanted in case.outcomes]
    if None in faults:
        outcome.fits = case.outcomes[faults.index(None)]
    return outcome, None if outcome.fits else faults[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_bad_input_loses_nothing_and_is_not_silent(case, tmp_path):
    _, fault = attempt(case, tmp_path / "work")
    assert fault is None, f"{case.program}: {case.given}: {fault[0]}: {fault[1]}"


def test_every_kind_has_a_case_in_a_process_of_its_own():
    assert {case.kind for case in CASES if case.process} == set(KINDS)
    assert len({case.id for case in CASES}) == len(CASES)
    assert len({case.given for case in CASES}) >= 80


def test_the_table_in_docs_is_that_of_this_module():
    text = TABLE.read_text(encoding="utf-8")
    lacking = [given for (_, given), cases in rows(CASES).items() if f"| {cell(given)} | {programs_of(cases)} |" not in text]
    assert not lacking, f"python tests/test_bad_inputs.py --write: lacks {lacking[:5]}"
    assert len(re.findall(r"(?m)^\| \d+ \|", text)) == len(rows(CASES))


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------

ABOUT = """# Bad and odd inputs

{inputs} inputs at {programs} programs, {runs} runs: **{traceback} tracebacks, {lost} files lost, {silent} silent wrong results**{rest}.
`python tests/test_bad_inputs.py --write` makes this file; the test suite repeats every run.

In every run all files that were there are compared by content before and after, and nothing half-written may remain. The programs run
in the process of the tests, each kind once as a process of its own (*process*). *refused*: exit code 2 and one line, nothing written.
*done*: exit code 0, with what was checked. What the programs said stands below each table, under the row's number.
"""


def said(outcome):
    """The line that tells what came out: the error, or the line that says what the case asks for, or the last one."""
    if outcome.raised:
        return shorten(outcome.raised)
    if outcome.code:
        return shorten(outcome.last_error_line)
    words = outcome.fits.says if outcome.fits else ()
    telling = [line for line in outcome.lines if any(re.search(word, line, re.IGNORECASE) for word in words)]
    return shorten(telling[-1] if telling else outcome.lines[-1] if outcome.lines else "(nothing)")


def shorten(line):
    """Without the paths and the figures of this machine, and long names cut."""
    line = line.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    line = re.sub(r"/[^\s:,;()]*?/work/", "", line)
    line = line.replace(str(Path.home()), "~")
    line = re.sub(r"(\S)\1{20,}", r"\1…", line)
    return re.sub(r"[\d.,]+ ?(GB|MB|minutes?|seconds?|hours?|s|min|h)\b", r"… \1", line)


def comparable(text):
    """Without what another version of Python or of a library, or another machine, says otherwise."""
    return re.sub(r"\s+", "", re.sub(r"\([^()]*\)", "", re.sub(r"\d[\d.,]*", "#", text)))


def cell(text):
    return text.replace("|", "\\|").replace("\n", " ")


def rows(cases):
    """{(kind, what is given): its cases}, a row each."""
    found = {}
    for case in cases:
        found.setdefault((case.kind, case.given), []).append(case)
    return found


def programs_of(cases):
    return ", ".join(f"`{Path(case.program).name}`" + (" *process*" if case.process else "") for case in cases)


def in_short(outcome, fault):
    """What came out, for the table's cell."""
    if fault:
        return f"**{fault[0]}**"
    return "refused" if outcome.code else ": ".join(filter(None, ["done", outcome.fits.note]))


def table_text(results):
    """Markdown of {case: (outcome, fault)}, its text no wider than `LONGEST_LINE`."""
    faults = [fault[0] for _, fault in results.values() if fault]
    known = {"traceback": "traceback", "lost": "file lost", "silent": "silent"}
    counts = {name: faults.count(word) for name, word in known.items()}
    others = len(faults) - sum(counts.values())
    lines = ABOUT.format(
        inputs=len({case.given for case in results}),
        programs=len({case.program for case in results}),
        runs=len(results),
        rest=f", {others} other faults" if others else "",
        **counts,
    ).splitlines()
    number = 0
    for kind, title in KINDS.items():
        lines += ["", f"## {title}", "", "| | given | program | what came out |", "|---|---|---|---|"]
        told = []
        for (_, given), cases in rows(case for case in results if case.kind == kind).items():
            number += 1
            came = ", ".join(dict.fromkeys(in_short(*results[case]) for case in cases))
            lines.append(f"| {number} | {cell(given)} | {programs_of(cases)} | {came} |")
            messages = {comparable(message): message for message in (said(results[case][0]) for case in cases)}
            for message in messages.values():
                told += textwrap.wrap(f"{number:3}  {message}", LONGEST_LINE - 5, subsequent_indent="     ", break_on_hyphens=False)
        lines += ["", "```text", *told, "```"]
    return "\n".join(lines) + "\n"


def main():
    """The table, or with words only the cases whose id has one of them."""
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    wanted = [word for word in sys.argv[1:] if not word.startswith("--")]
    results = {}
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as folder:
        for index, each in enumerate(case for case in CASES if not wanted or any(word in case.id for word in wanted)):
            try:
                results[each] = attempt(each, Path(folder) / str(index) / "work")
            except AssertionError as error:  # a command before it
                results[each] = Outcome(None, "", "", str(error), Path(folder), {}, {}), ("setting up", str(error))
            fault = results[each][1]
            if fault or "--all" in sys.argv:
                print(f"{each.kind:2} | {Path(each.program).name} | {each.given} | {': '.join(fault) if fault else 'ok'}", flush=True)
    faults = [fault[0] for _, fault in results.values() if fault]
    print(f"{len(results)} runs, {len(faults)} faults: " + ", ".join(f"{faults.count(name)} {name}" for name in sorted(set(faults))))
    if "--write" in sys.argv:
        TABLE.write_text(table_text(results), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(CACHE, ignore_errors=True)
