"""Programs of the repository as a user runs them, without the ten seconds in which each would import the libraries.

A server that has imported them forks a process for each program (`multiprocessing`'s forkserver): its own memory, working folder, output
and exit code, and the state of a fresh interpreter but for what the libraries' imports leave.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}  # this checkout, whichever is installed
os.environ.update(HERE)  # of every process that a test starts
QUIET = {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
LIBRARIES = ["torch", "accelerate", "diffusers", "transformers", "pyiqa", "preloaded"]
READ_AT_IMPORT = ("HF_", "PYTHON", "OMP_", "PATH", "TORCH", "CUDA", "http")  # beginnings of variables that libraries read when imported


def run_program(*words, env=None, check=True, cwd=ROOT):
    """Run a program of the repository; returns the finished process."""
    words = [str(word) for word in words]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}  # as in this process: another number rounds differently
    usual = {**os.environ, **threads, **HERE, **QUIET}
    environment = {**usual, **(env or {})}
    other = [name for name in environment if name.startswith(READ_AT_IMPORT) and environment[name] != usual.get(name)]
    forks = words[0].endswith(".py") and not other
    if forks:
        done = run_forked(words, environment, cwd)
    else:
        done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def run_forked(words, environment, cwd):
    """`subprocess.CompletedProcess` of a program in a fork of the server."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/out", f"{folder}/err"]
        process = server().Process(target=_run, args=(words, environment, str(cwd), paths))
        process.start()
        process.join()
        out, err = (Path(path).read_bytes().decode("utf-8", "replace") if os.path.exists(path) else "" for path in paths)
    return subprocess.CompletedProcess([sys.executable, *words], process.exitcode, out, err)


class ForkedProgram:
    """A program that runs in a fork of the server, with what is asked of a `subprocess.Popen`: `wait`, `poll`, `kill`, `terminate`.

    Args:
        words: the program and its flags; log: the file that its output is appended to.

    Attributes:
        pid: its process's.
    """

    def __init__(self, words, log=os.devnull):
        environment = {**os.environ, **HERE, **QUIET, "OMP_NUM_THREADS": "1"}
        self._process = server().Process(target=_run, args=([str(word) for word in words], environment, str(ROOT), [log, log]))
        self._process.start()
        self.pid = self._process.pid

    def wait(self, seconds=None):
        """Its exit code, when it has ended or `seconds` are over: then None."""
        self._process.join(seconds)
        return self._process.exitcode

    def poll(self):
        return self.wait(0)

    def kill(self):
        """SIGKILL; returns when it is gone."""
        self._process.kill()
        self._process.join()

    def terminate(self):
        self._process.terminate()


def run_ranks(count, *words, more=None, cwd=ROOT):
    """Run a program in `count` processes that torch's launcher would have started together; returns the finished processes.

    `more`: {rank: flags that it alone has}.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = []
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(count):
            own = {**launch, "RANK": rank, "LOCAL_RANK": rank}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **HERE, **QUIET, **{key: str(value) for key, value in own.items()}}
            paths = [f"{folder}/{rank}-{name}" for name in ("out", "err")]
            given = [str(word) for word in (*words, *(more or {}).get(rank, ()))]
            started.append((server().Process(target=_run, args=(given, environment, str(cwd), paths)), paths))
            started[-1][0].start()
        while alive := [process.sentinel for process, _ in started if process.is_alive()]:
            wait(alive)
            if any(process.exitcode not in (None, 0) for process, _ in started):  # a launcher ends the others
                end_within(3, [process for process, _ in started])
        for process, paths in started:
            process.join()
            out, err = (Path(path).read_text(encoding="utf-8", errors="replace") for path in paths)
            done.append(subprocess.CompletedProcess(list(words), process.exitcode, out, err))
    return done


def end_within(seconds, processes):
    """Wait until all have ended, at most so long; then kill those that have not."""
    end = time.monotonic() + seconds
    while alive := [process.sentinel for process in processes if process.is_alive()]:
        if not wait(alive, max(0, end - time.monotonic())):
            for process in processes:
                process.kill()
                process.join()


def is_alive(pid):
    """Whether a process runs still; one that has ended stays in the table where nobody waits for it, as under a container's first."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


_SERVER = []


def server():
    """The context whose processes are forks of a process that has imported `LIBRARIES`; started at the first call."""
    if not _SERVER:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        found = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), HERE["PYTHONPATH"]])}  # it looks nowhere else, and fails in silence
        with _environment({**QUIET, **found, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}):
            multiprocessing.forkserver.ensure_running()
        _SERVER.append(context)
    return _SERVER[0]


@contextlib.contextmanager
def _environment(changes):
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(words, environment, cwd, paths):
    """In the fork: the program as `__main__`, its output in two files."""
    assert "preloaded" in sys.modules, "the server has not imported what the programs need"
    for number, path in zip((1, 2), paths, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv, sys.path[0:0] = words, [str((Path(cwd) / words[0]).resolve().parent), str(ROOT)]
    code = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
