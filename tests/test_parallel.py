"""Worker processes: order, errors, a killed parent."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from parallel_work import die, refuse, square
from programs import is_alive

from dp2osr.errors import UserError
from dp2osr.parallel import process_map


def test_results_come_in_the_items_order():
    for workers in (1, 3):
        assert list(process_map(square, [1, 2, 3, 4], workers, disable=True)) == [1, 4, 9, 16]


def test_a_users_mistake_and_a_dead_worker_are_user_errors():
    with pytest.raises(UserError, match="1 is refused"):
        list(process_map(refuse, [1, 2], 2, disable=True))
    with pytest.raises(UserError, match="worker process died"):
        list(process_map(die, [1, 2], 2, disable=True))


PARENT = """
from dp2osr.parallel import process_map
from parallel_work import tell

if __name__ == "__main__":
    list(process_map(tell, [1, 2], 2, disable=True))
"""


def test_no_worker_outlives_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True, env=environment)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))
