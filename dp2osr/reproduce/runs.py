"""The programs of a grid: shared candidates, then every training with its held-out candidates, several side by side, resumable at each.

Everything of one run is in one folder: the YAML of each program, `log.txt` with what they printed, and `done.json` once it is whole.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from tqdm import tqdm

from dp2osr.config import write_json, write_text
from dp2osr.errors import PARENT, UserError
from dp2osr.provenance import versions
from dp2osr.rewards.config import find_reward_config

INPUTS = (  # flags that name what must be there beforehand
    "pretrained_model_name_or_path", "controlnet_model_name_or_path", "image_path", "gt_path", "prompt_file", "ram_path", "dape_path",
    "metrics_dir",
)  # fmt: skip
REPOSITORY = Path(__file__).resolve().parents[2]
CANDIDATES, SCORES, REWARD, DONE = "candidates", "scores.parquet", "reward.yaml", "done.json"


@dataclass(frozen=True)
class GridTasks:
    """The tasks of a grid: `shared` candidates first, then `held_out` (name → task), the base before the runs."""

    grid: object
    shared: object
    held_out: dict

    def summary(self):
        """One line: what there is to do."""
        missing = [name for name, task in self.held_out.items() if not task.is_done() and name != "base"]
        steps = sum(self.held_out[name].settings["train"].get("max_train_steps", 1000) for name in missing)
        first = "" if self.shared.is_done() else "the candidates of all trainings, "
        doing = f": {first}{steps} steps in all, and held-out candidates of each policy" if missing else ""
        return f"{self.grid.name}: {self.grid.title}. {len(self.held_out) - 1} trainings, {len(missing)} of them missing{doing}"


def plan_grid(grid, output):
    """The `GridTasks` of a grid under `output`; a folder is named by a hash of its settings, so grids share what they have in common."""
    read = {stage: yaml.safe_load(path.read_text(encoding="utf-8")) for stage, path in grid.stages.items()}
    shared = candidates_of(read["sample"], read["label"], output)
    held_out = {"base": candidates_of(read["test"], read["label_test"], output)}
    held_out |= {arm.run_name(seed): training_of(read, arm, seed, shared, output) for arm, seed in grid.runs}
    return GridTasks(grid, shared, held_out)


def check_inputs(grid):
    """Raise `UserError` unless everything that the stages read is there: what is missing is listed before the first expensive second."""
    missing = {}
    for path in grid.stages.values():
        for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if key in INPUTS and not Path(value).exists():
                missing.setdefault(value, f"{key} of {path.name}")
    if missing:
        some = ", ".join(f"{value} ({where})" for value, where in missing.items())
        raise UserError(f"{grid.name}: not on this machine: {some}; put them there, or name others in {path.parent}")


def run_grid(tasks, jobs=None):
    """Do what is missing; returns {name: held-out candidate folder}, the base first.

    Args:
        tasks: `GridTasks`.
        jobs: trainings side by side, one process each; 1: one after the other, each on all GPUs, or on two processes of a CPU.
            By default as many as there are cores, eight at most, where there is no GPU, else 1.

    Raises:
        UserError: a program failed; its log is named.
    """
    if not tasks.shared.is_done():
        run_alone(tasks.shared)
    if not all(task.is_done() for task in tasks.held_out.values()):
        Pool(jobs or default_jobs()).run(tasks.held_out.values(), tasks.grid.name)
    return {name: task.folder / CANDIDATES for name, task in tasks.held_out.items()}


def default_jobs():
    import torch

    return 1 if torch.cuda.is_available() else min(8, threads())


def candidates_of(sample, label, output):
    """The task that samples and scores candidates of the base."""
    return Task(
        output / "candidates",
        [
            Program("gen_candidates.py", "sample", sample, {"output_dir": CANDIDATES}),
            Program("label_rewards.py", "label", label, {"candidates_dir": CANDIDATES}),
        ],
    )


def training_of(read, arm, seed, shared, output):
    """The task of one training: train, sample the held-out images with its policy, score them."""
    train, reward = read["train"] | arm.train | {"seed": seed}, None
    if arm.reward:
        reward = yaml.safe_load(find_reward_config(train.get("reward_config", "default")).read_text(encoding="utf-8")) | arm.reward
        train["reward_config"] = REWARD
    fixed = {
        "candidates_dir": str(shared.folder / CANDIDATES),
        "scores": str(shared.folder / CANDIDATES / SCORES),
        "reference_cache": str(output / "reference_cache"),
    }
    return Task(
        output / "trainings",
        [
            Program(f"train_{train.get('backbone', 'sd2')}_dpo.py", "train", train, {"output_dir": "policy"}, fixed),
            Program("gen_candidates.py", "sample", read["test"], {"controlnet_model_name_or_path": "policy", "output_dir": CANDIDATES}),
            Program("label_rewards.py", "label", read["label_test"], {"candidates_dir": CANDIDATES}),
        ],
        reward,
        {"candidates": shared.folder.name},
    )


@dataclass(frozen=True)
class Program:
    """A program of the repository under the YAML `name`.

    Attributes:
        settings: what it does; inside: flags that are paths in the task's folder; outside: those that are paths elsewhere.
    """

    script: str
    name: str
    settings: dict
    inside: dict
    outside: dict = field(default_factory=dict)

    def decisive(self):
        return {key: value for key, value in self.settings.items() if key not in self.inside | self.outside}

    def flags(self, folder):
        inside = {key: str(folder / path) for key, path in self.inside.items()}
        if self.settings.get("reward_config") == REWARD:
            inside["reward_config"] = str(folder / REWARD)
        return self.settings | inside | self.outside


class Task:
    """Programs that must run one after the other, in a folder of their own whose name is a hash of what decides their result.

    Args:
        parent: folder of the folder.
        programs: list of `Program`.
        reward: content of `reward.yaml` in the folder, or None.
        origin: what else decides the result.
    """

    def __init__(self, parent, programs, reward=None, origin=None):
        self.programs, self.reward = programs, reward
        self.settings = {program.name: program.decisive() for program in programs} | {"reward": reward} | (origin or {})
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
        self.folder = Path(parent) / digest

    def is_done(self):
        return (self.folder / DONE).exists()

    def prepare(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "settings.json", self.settings)
        for program in self.programs:
            write_yaml(self.folder / f"{program.name}.yaml", program.flags(self.folder))
        if self.reward:
            write_yaml(self.folder / REWARD, self.reward)

    def finish(self):
        write_json(self.folder / DONE, versions())


def write_yaml(path, content):
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


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
