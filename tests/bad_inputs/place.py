"""A folder to work in, and a program in it."""

import contextlib
import functools
import hashlib
import io
import os
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from bad_inputs.outcomes import MEMORY, MODEL, ROOT, SECONDS, WAIT, Outcome


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
