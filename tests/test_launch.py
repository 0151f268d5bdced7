"""Several processes on one machine: the work is shared out, a mistake stays one line, nothing outlives the launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, assert_one_clear_line, run_program
from test_parallel import is_alive

SCRIPT = """
import os, sys, time

sys.path.insert(0, {root!r})
from dp2osr.errors import UserError, run

def main():
    line = f"rank {{os.environ.get('RANK')}} of {{os.environ.get('WORLD_SIZE')}} {{os.environ['OMP_NUM_THREADS']}} {{os.getpid()}}\\n"
    os.write(1, line.encode())  # in one piece: two processes share the pipe
    if "refuse" in sys.argv:
        raise UserError("this.png: cannot be read; remove it")
    if "wait" in sys.argv:
        time.sleep(600)
    if "long_step" in sys.argv:
        from dp2osr.training.signals import noted_signals

        with noted_signals():
            os.write(1, b"noting\\n")
            time.sleep(600)

run(main)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(root=str(ROOT)), encoding="utf-8")
    return path


def test_two_processes_halve_the_threads(script):
    done = run_program("-m", "dp2osr.launch", script, env={"OMP_NUM_THREADS": "4"})
    assert sorted(line.rsplit(" ", 1)[0] for line in done.stdout.splitlines()) == ["rank 0 of 2 2", "rank 1 of 2 2"]


def test_one_thread_is_one_process(script):
    done = run_program("-m", "dp2osr.launch", script, env={"OMP_NUM_THREADS": "1"})
    assert done.stdout.startswith("rank None of None 1 ")


def test_a_mistake_is_one_line_and_exit_code_2(script):
    done = run_program("-m", "dp2osr.launch", script, "refuse", env={"OMP_NUM_THREADS": "2"}, check=False)
    assert_one_clear_line(done, "this.png")
    assert set(done.stderr.splitlines()) == {"error: this.png: cannot be read; remove it"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_launcher(script, how):
    launcher = subprocess.Popen(
        [sys.executable, "-m", "dp2osr.launch", script, "wait"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    processes = [int(launcher.stdout.readline().split()[-1]) for _ in range(2)]
    assert all(map(is_alive, processes))
    launcher.send_signal(how)
    assert launcher.wait(timeout=60) != 0
    deadline = time.monotonic() + 30
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, processes))


def test_a_second_ctrl_c_ends_all_at_once_however_long_a_step_takes(script, ctrl_c):
    launcher = subprocess.Popen(
        [sys.executable, "-m", "dp2osr.launch", script, "long_step"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    lines = [launcher.stdout.readline().split() for _ in range(4)]
    processes = [int(line[-1]) for line in lines if line[0] == "rank"]
    launcher.send_signal(ctrl_c)
    assert "Ctrl-C: this step is finished" in launcher.stderr.readline() + launcher.stderr.readline()
    time.sleep(0.5)
    assert len(processes) == 2 and all(map(is_alive, processes)) and launcher.poll() is None
    launcher.send_signal(ctrl_c)
    assert launcher.wait(timeout=30) == 130
    deadline = time.monotonic() + 30
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, processes))
    assert launcher.stderr.read().strip() == "stopped at once; what is whole is kept, the same command does what is left"
