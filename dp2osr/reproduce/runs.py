"""How the tasks of a grid are run: several side by side, each in its own process, resumable at each."""

import os
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from dp2osr.errors import PARENT, UserError
from dp2osr.reproduce.tasks import CANDIDATES

REPOSITORY = Path(__file__).resolve().parents[2]


def run_grid(tasks, jobs=None):
    """Do what is missing; returns {name: held-out candidate folder}, the base first.

    Args:
        tasks: `GridTasks`.
        jobs: trainings side by side, one process each; 1: one after the other, each on all GPUs, or on two processes of a CPU.
            By default as many as there are cores, eight at most, where there is no GPU, else 1.

    Raises:
        UserError: a program failed; its log is named.
    """
    for task in tasks.shared:
        if not task.is_done():
            run_alone(task)
    if not all(task.is_done() for task in tasks.held_out.values()):
        Pool(jobs or default_jobs()).run(tasks.held_out.values(), tasks.grid.name)
    return {name: task.folder / CANDIDATES for name, task in tasks.held_out.items()}


def default_jobs():
    import torch

    return 1 if torch.cuda.is_available() else min(8, threads())


class Pool:
    """Tasks side by side; the first that fails stops all."""

    def __init__(self, jobs):
        self.jobs, self.children, self.lock, self.stopping = jobs, set(), threading.Lock(), False

    def run(self, tasks, title):
        """Run what is not done of `tasks`, with a progress bar in runs; what the programs print is in each task's log."""
        missing = [task for task in tasks if not task.is_done()]
        bar = tqdm(total=len(tasks), initial=len(tasks) - len(missing), unit="run", desc=title)
        with bar, ThreadPoolExecutor(self.jobs) as executor:
            waiting = {executor.submit(self.run_task, task) for task in missing}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    bar.update(len(done))
            except BaseException:
                self.stop(waiting)
                raise

    def stop(self, waiting):
        for future in waiting:
            future.cancel()
        with self.lock:
            self.stopping = True
            for child in self.children:
                child.terminate()

    def run_task(self, task):
        task.prepare()
        with open(task.folder / "log.txt", "a", encoding="utf-8") as log:
            for program in task.programs:
                self.run_program(program.script, task.folder / f"{program.name}.yaml", log)
        task.finish()

    def run_program(self, script, settings, log):
        """Raises UserError, with the program's own last line, where it fails."""
        with self.lock:
            if self.stopping:
                raise UserError("stopped")
            child = start(script, settings, self.jobs, stdout=log, stderr=subprocess.STDOUT)
            self.children.add(child)
        code = child.wait()
        with self.lock:
            self.children.discard(child)
        if code:
            said = f"{last_line(log.name)} (all of it: {log.name})"
            raise UserError(f"{script} stopped with exit code {code}: {said}; the same command goes on")


def run_alone(task):
    """Run a task with all that the machine has; its programs show their own progress."""
    task.prepare()
    for program in task.programs:
        child = start(program.script, task.folder / f"{program.name}.yaml", jobs=1)
        code = child.wait()
        if code:
            raise UserError(f"{program.script} stopped with exit code {code}; the same command goes on")
    task.finish()


def start(script, settings, jobs, **streams):
    """Start a program under a YAML: one process with its share of the threads where there are several jobs, else `dp2osr.launch`'s."""
    environment = {**os.environ, PARENT: str(os.getpid())}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, threads() // jobs))
    launcher = [] if jobs > 1 else ["-m", "dp2osr.launch"]
    command = [sys.executable, *launcher, str(REPOSITORY / script), "--config", str(settings)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **streams)


def threads():
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())


def last_line(path):
    """The last line of a log that says something; of a progress bar its last state."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (errors or said or ["nothing was said"])[-1]
