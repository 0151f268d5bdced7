"""Work shared by ranks and jobs: each item once, nobody waits for a slow one, and a process that is killed leaves its item to others."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SAMPLING, one_kind
from programs import HERE, ForkedProgram, run_ranks
from test_sampling import digest

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.locks import Locks
from dp2osr.results import Results
from dp2osr.sampling.generate import generate_candidates
from dp2osr.sampling.restore import begin_folder
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.sampling.store import CandidateStore
from dp2osr.sharing import Launch, WorkLog, share

WORKER = """
import os, sys, time
from pathlib import Path
from dp2osr.locks import Locks
from dp2osr.sharing import Launch, share
folder, items, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
launch = Launch()
if launch.rank == 1:
    seconds *= 20
launch.agree("start", {"seed": os.environ.get("SEED")})
for item in share(launch, "work", [f"item {number}" for number in range(items)], Locks(folder), str):
    if not (folder / item).exists():
        with (folder / "begun").open("a") as file:
            file.write(f"{launch.rank} {item} {os.getpid()}\\n")
        time.sleep(seconds)
        (folder / item).write_text(str(launch.rank))
print("last" if launch.is_last("work") else "ended", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts the worker: (folder, items, seconds an item, processes, environment) → Popen."""
    script, started = tmp_path / "worker.py", []
    script.write_text(WORKER)

    def start(folder, items, seconds, processes=1, **environment):
        folder.mkdir(exist_ok=True)
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"] if processes > 1 else []
        words = [sys.executable, *torchrun, str(script), str(folder), str(items), str(seconds)]
        env = {**os.environ, **HERE, "OMP_NUM_THREADS": "1", **environment}
        started.append(subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def begun(folder):
    """[(rank, item)] in the order in which they were begun."""
    lines = (folder / "begun").read_text().splitlines() if (folder / "begun").exists() else []
    return [(int(line.split()[0]), " ".join(line.split()[1:3])) for line in lines]


def test_a_rank_that_is_twenty_times_slower_takes_at_most_two_of_21(start, tmp_path):
    launch = start(tmp_path / "shared", 21, 0.1, processes=2)
    out, err = launch.communicate(timeout=120)
    assert launch.returncode == 0, err
    assert out.split().count("last") == 1 and out.split().count("ended") == 1
    done = begun(tmp_path / "shared")
    assert sorted(Counter(item for _, item in done).values()) == [1] * 21
    assert sum(rank == 1 for rank, _ in done) <= 2


def test_jobs_do_each_item_once_and_take_over_from_those_that_are_killed(start, tmp_path):
    folder = tmp_path / "shared"
    jobs = [start(folder, 12, 0.5) for _ in range(3)]
    for number in (1, 2):  # each in the middle of an item
        wait_for(lambda number=number: len(begun(folder)) >= 3 * number)
        jobs[number].send_signal(signal.SIGKILL)
        jobs[number].wait()
    out, err = jobs[0].communicate(timeout=120)
    assert jobs[0].returncode == 0, err
    assert all((folder / f"item {number}").exists() for number in range(12))
    twice = [item for item, times in Counter(item for _, item in begun(folder)).items() if times > 1]
    assert len(twice) <= 2  # what the killed ones had begun


def test_what_another_job_holds_is_waited_for_at_the_end_and_made_if_it_is_gone(tmp_path, start):
    folder = tmp_path / "shared"
    holder = start(folder, 1, 600)
    wait_for(lambda: begun(folder))
    other = start(folder, 3, 0.01)
    wait_for(lambda: (folder / "item 2").exists())
    time.sleep(0.3)
    assert other.poll() is None and not (folder / "item 0").exists()
    holder.kill()
    _, err = other.communicate(timeout=60)
    assert other.returncode == 0, err
    assert (folder / "item 0").exists()


def test_ranks_that_know_different_things_say_so_before_the_first_item(start, tmp_path):
    ports = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    first = start(tmp_path / "shared", 2, 0.01, RANK="0", SEED="1", **ports)
    second = start(tmp_path / "shared", 2, 0.01, RANK="1", SEED="2", **ports)
    _, err = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert second.returncode != 0
    assert "rank 1 of 2 does not have what rank 0 has: seed is '2' here and '1' on rank 0" in err


def test_a_second_call_in_one_launch_takes_all_items_again(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr("torch.distributed.rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    for _ in range(2):
        launch = Launch({"WORLD_SIZE": "2", "RANK": "0"})
        assert list(launch.take("work", 3)) == [0, 1, 2]
        assert launch.of_first("found", lambda: 7) == 7 and not launch.is_last("work")


def test_the_ranks_go_on_when_the_one_that_held_the_store_has_ended(tmp_path, monkeypatch):
    class Gone:
        def add(self, name, amount):
            raise RuntimeError("Connection was likely closed")

    launch = Launch({"WORLD_SIZE": "2", "RANK": "1"})
    launch.store = Gone()
    assert list(share(launch, "work", ["a", "b", "c"], Locks(tmp_path), str)) == ["a", "b", "c"]


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch, capsys):
    import errno

    import filelock

    def none(self, **_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    assert list(share(Launch({}), "work", ["a", "b"], Locks(tmp_path), str)) == ["a", "b"]
    err = capsys.readouterr().err
    assert err.count("has no locks") == 1 and "one job at a time" in err


def test_locks_leave_nothing_behind(tmp_path):
    locks = Locks(tmp_path)
    with locks.held("a/b".replace("/", "_")) as mine, locks.held("x" * 300) as also:
        assert mine and also
        with Locks(tmp_path).held("a_b") as again:
            assert not again
    locks.leave()
    assert not list(tmp_path.iterdir())


def test_a_lock_is_had_in_a_folder_that_other_jobs_leave(tmp_path):
    """The last job of a folder removes the folder of locks, also while another one is about to open a file there."""
    end, problems = threading.Event(), []

    def come_and_go():
        while not end.is_set():
            try:
                Locks(tmp_path).leave()
            except Exception as error:
                problems.append(error)

    leaver = threading.Thread(target=come_and_go)
    leaver.start()
    try:
        for number in range(100):
            with Locks(tmp_path).held(f"table {number % 3}", wait=True) as mine:
                assert mine
    finally:
        end.set()
        leaver.join()
    assert not problems


def test_a_rank_writes_what_it_did_and_at_which_rate(tmp_path):
    log = WorkLog(tmp_path, "sample", Launch({}))
    log.write("a")
    log.write("b", candidates=4)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["item"] for line in lines] == ["a", "b"] and lines[1]["done"] == 2 and lines[1]["candidates"] == 4


def test_another_code_is_another_thing_to_know(monkeypatch):
    launch = Launch({"WORLD_SIZE": "2", "RANK": "1"})

    class Store:
        def wait(self, keys, timeout):
            pass

        def get(self, key):
            return json.dumps({"code": "another", "seed": 1}).encode()

    launch.store = Store()
    with pytest.raises(UserError, match="code is .* here and 'another' on rank 0"):
        launch.agree("start", {"seed": 1})


def wait_for(condition, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.02)


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@one_kind
def test_three_jobs_sample_one_folder_and_two_that_are_killed_change_no_byte(kind, sampled, lr_folder, tmp_path):
    words = ["gen_candidates.py", *kind.model_flags, *SAMPLING, "--image_path", lr_folder, "--output_dir", tmp_path / "shared"]
    jobs = [ForkedProgram(words, tmp_path / f"{number}.log") for number in range(3)]
    try:
        for number, job in enumerate(jobs[1:], 1):
            wait_for(lambda number=number: len(groups(tmp_path / "shared")) >= number, 120)
            job.kill()
        assert jobs[0].wait(120) == 0, (tmp_path / "0.log").read_text()
    finally:
        for job in jobs:
            job.kill()
    assert digest(tmp_path / "shared") == digest(sampled)
    assert not list((tmp_path / "shared").rglob("*.part"))
    Locks(tmp_path / "shared").leave()  # a job that was killed after the last one had left has its lock there: the next one takes it away
    assert not (tmp_path / "shared/.locks").exists()


@one_kind
def test_a_second_job_with_other_settings_is_refused_before_the_first_group(kind, sampled, tmp_path):
    settings = CandidateStore(sampled).settings
    first = CandidateStore(tmp_path / "shared", settings)
    with pytest.raises(UserError, match="seed is 3 there and 4 here"):
        CandidateStore(tmp_path / "shared", {**settings, "seed": 4}).begin()
    first.locks.leave()
    CandidateStore(tmp_path / "shared", {**settings, "seed": 4}).begin()  # nobody works there, and there is no group yet


def test_a_rank_that_begins_when_the_one_that_held_the_store_has_ended_goes_on_by_itself():
    class Gone:
        def wait(self, *_):
            raise torch.distributed.DistNetworkError("Connection was likely closed")

        get = set = add = wait

    launch = Launch({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    launch.__dict__["store"] = Gone()
    with launch.first("inputs"):
        assert launch.of_first("settings", lambda: 5) == 5
    launch.agree("sampling", {"seed": 1})
    assert list(launch.take("work", 3)) == [0, 1, 2] and launch.total("made", 7) == 7 and launch.is_last("work")


WITHOUT_A_GROUP = """
import runpy, sys
import torch.distributed

def refuse(*_, **__):
    raise AssertionError("a process group is opened")

torch.distributed.init_process_group = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@one_kind
def test_ranks_that_sample_score_and_restore_open_no_process_group_that_could_time_out(kind, lr_folder, tmp_path):
    (tmp_path / "without_a_group.py").write_text(WITHOUT_A_GROUP, encoding="utf-8")
    (tmp_path / "reward.yaml").write_text("nr: [piqe]\n", encoding="utf-8")
    sampling = [*kind.model_flags, "--image_path", lr_folder, "--num_inference_steps", 1, "--guidance_scale", 1]
    for words in (
        ["gen_candidates.py", *sampling, "--num_candidates", 2, "--output_dir", tmp_path / "candidates"],
        ["label_rewards.py", "--candidates_dir", tmp_path / "candidates", "--reward_config", tmp_path / "reward.yaml"],
        [kind.test_program, *sampling, "--output_dir", tmp_path / "restored"],
    ):
        done = run_ranks(2, tmp_path / "without_a_group.py", *words)
        assert [process.returncode for process in done] == [0, 0], done[0].stderr[-1000:] + done[1].stderr[-1000:]


def test_a_second_job_that_restores_with_other_settings_into_the_same_results_is_refused(tmp_path):
    args, jobs = SimpleNamespace(overwrite=False, adopt=False), [Locks(tmp_path) for _ in range(4)]

    def begin(job, name="settings.json", **settings):
        results = Results(tmp_path, {"sample_times": 1, **settings}, ("controlnet",))
        begin_folder(tmp_path / name, results, [], jobs[job], args)

    begin(0, upscale=4, controlnet="a")
    begin(1, upscale=4, controlnet="the same by another path")
    begin(2, "settings_x2.json", upscale=2)  # results of another --suffix
    with pytest.raises(UserError, match="another job makes results of settings.json with other settings"):
        begin(3, upscale=2)
    assert json.loads((tmp_path / "settings.json").read_text())["upscale"] == 4
    for job in jobs[:2]:
        job.leave()
    begin(3, upscale=2)


def groups(folder):
    return [path for path in folder.glob("groups/*") if not path.name.startswith(".")]


@one_kind
def test_a_job_that_ends_with_an_error_leaves_no_lock(kind, lr_folder, tmp_path, monkeypatch):
    def broken(*_):
        raise UserError("x.png: broken")

    monkeypatch.setattr("dp2osr.sampling.generate.sample_group", broken)
    words = [*kind.model_flags, *SAMPLING, "--image_path", str(lr_folder), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="broken"):
        generate_candidates(parse(GenerateSettings, words))
    assert not (tmp_path / "out/.locks").exists()
