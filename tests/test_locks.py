"""Many read a folder, one alone changes it, and who is killed holds nothing."""

import errno
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from programs import HERE

from dp2osr.errors import UserError
from dp2osr.locks import Locks

READER = """
import sys, time
from dp2osr.locks import Locks
with Locks(sys.argv[1]).reading("training"):
    print("reads", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def start_reader(folder, seconds):
    """A process that reads a folder for so long, and prints that it does."""
    words = [sys.executable, "-c", READER, str(folder), str(seconds)]
    return subprocess.Popen(words, env={**os.environ, **HERE}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def read(tmp_path):
    started = []

    def read(seconds):
        started.append(start_reader(tmp_path, seconds))
        return started[-1]

    yield read
    for process in started:
        process.kill()
        process.communicate()


def test_many_read_at_once_and_none_is_alone_meanwhile(tmp_path):
    with Locks(tmp_path).reading("training"), Locks(tmp_path).reading("evaluation"):
        told = r"another job works in this folder \(evaluation on .*, process \d+-\w+, training on .*\); prune.py waits for its end"
        with pytest.raises(UserError, match=told), Locks(tmp_path).alone("prune.py"):
            pass
        with Locks(tmp_path).reading("training"):  # what was refused holds nothing
            pass
    assert not (tmp_path / ".locks").exists()
    with Locks(tmp_path).alone("prune.py"), pytest.raises(UserError, match="another job works"), Locks(tmp_path).alone("prune.py"):
        pass
    assert not (tmp_path / ".locks").exists()


def test_a_reader_that_is_killed_is_none(tmp_path, read):
    reader = read(600)
    assert reader.stdout.readline() == "reads\n"
    with pytest.raises(UserError, match=f"process {reader.pid}-"), Locks(tmp_path).alone("prune.py"):
        pass
    reader.kill()
    reader.wait()
    with Locks(tmp_path).alone("prune.py"):
        pass
    assert not (tmp_path / ".locks").exists()


def test_who_begins_to_read_while_another_is_alone_waits_for_the_end_and_says_so(tmp_path, read):
    with Locks(tmp_path).alone("prune.py"):
        reader = read(0)
        assert select.select([reader.stderr], [], [], 120)[0], "it does not say that it waits"
        assert reader.stderr.readline() == f"{tmp_path}: waits for a job that is alone in this folder (scripts/prune.py)\n"
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(2)
    assert reader.communicate(timeout=120) == ("reads\n", "") and reader.returncode == 0
    assert not (tmp_path / ".locks").exists()


def test_one_that_was_alone_and_is_killed_keeps_nobody_waiting(tmp_path, read):
    words = (
        "import sys; from dp2osr.locks import Locks; held = Locks(sys.argv[1]).alone('x'); held.__enter__(); print(1, flush=True); input()"
    )
    killed = subprocess.Popen([sys.executable, "-c", words, tmp_path], env={**os.environ, **HERE}, stdin=-1, stdout=-1)
    assert killed.stdout.readline()
    killed.kill()
    killed.communicate()
    assert (tmp_path / ".locks/alone.lock").exists()
    assert read(0).communicate(timeout=120) == ("reads\n", "")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSYS])
def test_a_folder_in_which_no_lock_can_be_made_is_read_all_the_same(tmp_path, number, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    owner, name = (FileLock, "acquire") if number == errno.ENOSYS else (Path, "mkdir")
    monkeypatch.setattr(owner, name, refuse)
    with Locks(tmp_path).reading("training"):
        pass
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {tmp_path}: ") and os.strerror(number) in err and err.count("\n") == 1
    with Locks(tmp_path).reading("training", quiet=True), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError  # an error of the reader is its own
