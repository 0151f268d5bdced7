"""How the tasks of a grid are run: several side by side, each in its own process, resumable at each."""

import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from dp2osr.errors import PARENT, UserError
from dp2osr.places import ROOT
from dp2osr.reproduce.tasks import CANDIDATES


def run_grid(tasks, jobs=None):
    """Do what is missing; returns {name: held-out candidate folder}, the base first, and that of the rivals which are a base.

    Args:
        tasks: `GridTasks`.
        jobs: of `Pool`; None for `default_jobs`.

    Raises:
        UserError: a program failed; its log is named.
    """
    for task in tasks.shared:
        with locked(task):
            run_alone(task)
    Pool(jobs or default_jobs()).run(tasks.chains(), tasks.grid.name)
    rivals = {name: str(task.folder / CANDIDATES) for name, task in tasks.rivals.items()}
    return {name: chain[-1].folder / CANDIDATES for name, chain in tasks.held_out.items()}, rivals


def default_jobs():
    """As many as there are cores, eight at most, where there is no GPU, else 1."""
    return 1 if _has_gpu() else min(8, threads())


def _has_gpu():
    import torch

    return torch.cuda.is_available()


@contextmanager
def locked(task):
    """Within, no other process runs the task: another experiment may have it in common with this one."""
    task.folder.mkdir(parents=True, exist_ok=True)
    with open(task.folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Pool:
    """Chains of tasks side by side; when one fails, the others go on.

    Args:
        jobs: chains side by side, one process each; 1: one after the other, each on all GPUs, or on two processes of a CPU.

    Raises:
        UserError: several jobs where there is a GPU: they would share one.
    """

    def __init__(self, jobs):
        if jobs > 1 and _has_gpu():
            raise UserError(f"--jobs {jobs}: on GPUs the runs are one after the other, each on all of them; leave it out")
        self.jobs, self.children, self.lock, self.stopping = jobs, set(), threading.Lock(), False

    def run(self, chains, title):
        """Run what is not done of lists of tasks, with a progress bar in lists; what the programs print is in each task's log.

        Raises:
            UserError: some failed, such as a training that diverged; all others are done.
        """
        chains = list({chain[-1].folder: chain for chain in chains}.values())  # two settings may be one
        missing = [chain for chain in chains if not all(task.is_done() for task in chain)]
        if not missing:
            return
        bar = tqdm(total=len(chains), initial=len(chains) - len(missing), unit="run", desc=title)
        with bar, ThreadPoolExecutor(self.jobs) as executor:
            waiting, failed = {executor.submit(self.run_chain, chain) for chain in missing}, []
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for error in filter(None, (future.exception() for future in done)):
                        if not isinstance(error, UserError):
                            raise error
                        failed.append(error)
                        bar.set_postfix(failed=len(failed), refresh=False)
                    bar.update(len(done))
            except BaseException:
                self.stop(waiting)
                raise
        if failed:
            told = f"{len(failed)} of {len(missing)} runs failed and the others are done; the first: " if len(missing) > 1 else ""
            raise UserError(f"{told}{failed[0]}")

    def stop(self, waiting):
        for future in waiting:
            future.cancel()
        with self.lock:
            self.stopping = True
            for child in self.children:
                child.terminate()

    def run_chain(self, chain):
        for task in chain:
            with locked(task), open(task.folder / "log.txt", "a", encoding="utf-8") as log:
                missing = task.missing()
                if missing:
                    task.prepare()
                for program in missing:
                    self.run_program(program.script, task.folder / f"{program.name}.yaml", log)
                    task.finish(program)

    def run_program(self, script, settings, log):
        """Raises UserError, with the program's own last line, where it fails."""
        begun = log.tell()
        with self.lock:
            if self.stopping:
                raise UserError("stopped")
            child = start(script, settings, self.jobs, stdout=log, stderr=subprocess.STDOUT)
            self.children.add(child)
        code = child.wait()
        with self.lock:
            self.children.discard(child)
        if code:
            said = f"{last_line(log.name, begun)} (all of it: {log.name})"
            raise UserError(f"{script} stopped with exit code {code}: {said}; the same command tries again")


def run_alone(task):
    """Run what is missing of a task with all that the machine has; its programs show their own progress."""
    missing = task.missing()
    if missing:
        task.prepare()
    for program in missing:
        child = start(program.script, task.folder / f"{program.name}.yaml", jobs=1)
        code = child.wait()
        if code:
            raise UserError(f"{program.script} stopped with exit code {code}; the same command goes on")
        task.finish(program)


def start(script, settings, jobs, **streams):
    """Start a program under a YAML: one process with its share of the threads where there are several jobs, else `dp2osr.launch`'s.

    A program of `scripts/` is one process in any case: several would do the same work, in the same files.
    """
    environment = {**os.environ, PARENT: str(os.getpid())}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, threads() // jobs))
    launcher = [] if jobs > 1 or Path(script).parent.name == "scripts" else ["-m", "dp2osr.launch"]
    command = [sys.executable, *launcher, str(ROOT / script), "--config", str(settings)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **streams)


def threads():
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())


def last_line(path, begun=0):
    """The last line of a log, from byte `begun` on, that says something: an error's if there is one; of a progress bar its last state."""
    with open(path, "rb") as log:
        log.seek(begun)
        text = log.read().decode(errors="replace")
    said = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (errors or said or ["nothing was said"])[-1]
