"""Programs that an experiment runs: each under a YAML in a folder, in their order, several folders side by side.

Whether there is anything to do is the programs' own to say: they keep what is there, refuse what was made with other settings and go on
where they were stopped. The YAML of a program that has ended well has its name (`train.yaml`), before that it is `train.running.yaml`.
A program is started unless its YAML is there with the same settings, what it last writes too, and none of its inputs is newer.
"""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml
from tqdm import tqdm

from dp2osr.cli import made
from dp2osr.data.degradation_settings import load_degradation
from dp2osr.data.settings import PairsSettings
from dp2osr.errors import PARENT, UserError
from dp2osr.files import write_text
from dp2osr.places import ROOT
from dp2osr.rewards.config import find_reward_config, load_reward_config, reward_config_of
from dp2osr.rewards.settings import BestOfSettings, LabelSettings
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.training.settings import ProbeSettings, TrainSettings

PROGRAMS = {  # the settings of each, and what it sets itself
    "gen_candidates.py": (GenerateSettings, {}),
    "label_rewards.py": (LabelSettings, {}),
    "train_sd2_dpo.py": (TrainSettings, {"backbone": "sd2"}),
    "train_flux_dpo.py": (TrainSettings, {"backbone": "flux"}),
    "test_sd2b_controlnet.py": (BestOfSettings, {"backbone": "sd2"}),
    "test_flux_controlnet.py": (BestOfSettings, {"backbone": "flux"}),
    "scripts/make_lr_pairs.py": (PairsSettings, {}),
    "scripts/suggest_nm.py": (ProbeSettings, {"report_to": "none"}),
}
INPUTS = (  # flags that name what must be there beforehand
    "pretrained_model_name_or_path", "controlnet_model_name_or_path", "image_path", "gt_path", "prompt_file", "ram_path", "dape_path",
    "metrics_dir",
)  # fmt: skip
REWARD_FILE = "reward.yaml"


@dataclass(frozen=True)
class Step:
    """A program of the repository under the YAML `name` in a folder.

    Attributes:
        flags: what it does; output: what it last writes.
        reward: content of reward.yaml in the folder, which its `reward_config` names; or None.
    """

    script: str
    name: str
    folder: Path
    flags: dict[str, Any]
    output: Path
    reward: dict[str, Any] | None = None

    @property
    def yaml(self) -> Path:
        """The settings of a program that has ended well."""
        return self.folder / f"{self.name}.yaml"

    @property
    def trains(self) -> bool:
        return self.script.startswith("train_")

    def is_done(self) -> bool:
        """Whether the program needs no start; see the top of this file."""
        files = [(self.yaml, self.flags)] + ([(self.folder / REWARD_FILE, self.reward)] if self.reward else [])
        if not self.output.exists() or not all(path.is_file() and path.read_text(encoding="utf-8") == as_yaml(to) for path, to in files):
            return False
        return all(changed_at(path) <= self.yaml.stat().st_mtime for path in self.inputs())

    def inputs(self) -> list[Path]:
        """Paths of what the program reads."""
        named = [self.flags.get(key) for key in (*INPUTS, "scores", "reference_controlnet_model_name_or_path")]
        if self.flags.get("candidates_dir"):
            named.append(Path(self.flags["candidates_dir"]) / "groups")
        if self.flags.get("reward_config") and not self.reward:
            named.append(find_reward_config(str(self.flags["reward_config"])))
        return [Path(path) for path in named if path]

    def settings(self, where: str = "") -> Any:
        """Its settings as it will read them, with its defaults; `UserError`, which says `where` they are from, unless it takes them."""
        if self.script not in PROGRAMS:
            raise UserError(f"{self.script}: there is no such program")
        settings, defaults = PROGRAMS[self.script]
        return made(settings, {**defaults, **self.flags}, ", ".join(filter(None, (where, self.name))))

    def check(self, where: str) -> None:
        """Raise `UserError` unless the program takes these flags and they go together; `where` says whose they are."""
        args = self.settings(where)
        if self.trains:
            from dp2osr.training.checks import check_options

            check_options(args)
            if args.num_candidates and 2 * args.top_n > args.num_candidates:
                told = f"top_n {args.top_n} of num_candidates {args.num_candidates}: at most half of them"
                raise UserError(f"{where}, {self.name}: {told}")
        if self.reward:
            self.check_reward(self.reward, where)
        elif self.flags.get("reward_config") is not None:
            load_reward_config(str(self.flags["reward_config"]))
        if "degradation" in self.flags:
            load_degradation(self.flags["degradation"])

    def check_reward(self, content: dict[str, Any], where: str) -> None:
        """Raise `UserError` unless this is a reward's content."""
        try:
            reward_config_of(self.folder / REWARD_FILE, content)
        except UserError as error:
            raise UserError(f"{where}, {str(error).replace(f'{self.folder}/', '')}") from None

    def missing_inputs(self, output: str | Path) -> dict[str, str]:
        """{path: flag} of what is not on this machine; what lies below `output` is made by other steps."""
        named = {str(self.flags[key]): key for key in INPUTS if self.flags.get(key) is not None}
        made_here = [path for path in named if Path(path).absolute().is_relative_to(Path(output).absolute())]
        return {path: f"{key} of {self.name}" for path, key in named.items() if path not in made_here and not Path(path).exists()}

    def begin(self) -> Path:
        """The YAML for the program to read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.yaml.unlink(missing_ok=True)
        if self.reward:
            write_text(self.folder / REWARD_FILE, as_yaml(self.reward))
        path = self.folder / f"{self.name}.running.yaml"
        write_text(path, as_yaml(self.flags))
        return path

    def finish(self, path: Path) -> None:
        """Note that the program has ended well."""
        path.replace(self.yaml)
        os.utime(self.yaml)


def as_yaml(content: Mapping[str, Any]) -> str:
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in content.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def changed_at(path: Path) -> float:
    """When a file, or a folder or a file in it, was last changed; 0 where there is none."""
    if not path.exists():
        return 0.0
    return max(found.stat().st_mtime for found in [path, *(path.iterdir() if path.is_dir() else ())])


# ---------------------------------------------------------------- running them


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process runs the steps of a folder: another experiment may have it in common with this one."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def default_jobs() -> int:
    """As many as there are cores, eight at most, where there is no GPU, else 1."""
    return 1 if _has_gpu() else min(8, threads())


def _has_gpu() -> bool:
    import torch

    return torch.accelerator.is_available()


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def run_alone(steps: Iterable[Step]) -> None:
    """Run what is missing of steps with all that the machine has; its programs show their own progress."""
    for step in steps:
        with locked(step.folder):
            if step.is_done():
                continue
            path = step.begin()
            code = start(step.script, path, jobs=1).wait()
            if code:
                raise UserError(f"{step.script} stopped with exit code {code}; {what_next(code, step)}")
            step.finish(path)


def what_next(code: int, step: Step) -> str:
    """After a user's mistake the same command would make it again."""
    return f"mend that, move {step.folder} away or give another --output_dir" if code == 2 else "the same command goes on"


class Pool:
    """Chains of steps side by side; when one fails, the others go on.

    Args:
        jobs: chains side by side, one process each; 1: one after the other, each on all GPUs, or on two processes of a CPU.

    Raises:
        UserError: several jobs where there is a GPU: they would share one.
    """

    def __init__(self, jobs: int) -> None:
        if jobs > 1 and _has_gpu():
            raise UserError(f"--jobs {jobs}: on GPUs the runs are one after the other, each on all of them; leave it out")
        self.jobs, self.lock, self.stopping = jobs, threading.Lock(), False
        self.children: set[subprocess.Popen[bytes]] = set()

    def run(self, chains: Collection[Sequence[Step]], title: str) -> None:
        """Run what is not done of lists of steps, with a progress bar in lists; what the programs print is in each folder's log.

        Raises:
            UserError: some failed, such as a training that diverged; all others are done.
        """
        missing = [chain for chain in chains if not all(step.is_done() for step in chain)]
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

    def stop(self, waiting: Iterable[Future[None]]) -> None:
        for future in waiting:
            future.cancel()
        with self.lock:
            self.stopping = True
            for child in self.children:
                child.terminate()

    def run_chain(self, chain: Sequence[Step]) -> None:
        for step in chain:
            with locked(step.folder), open(step.folder / "log.txt", "a", encoding="utf-8") as log:
                if not step.is_done():
                    path = step.begin()
                    self.run_program(step, path, log)
                    step.finish(path)

    def run_program(self, step: Step, path: Path, log: TextIO) -> None:
        """Raises UserError, with the program's own last line, where it fails."""
        begun = log.tell()
        with self.lock:
            if self.stopping:
                raise UserError("stopped")
            child = start(step.script, path, self.jobs, stdout=log, stderr=subprocess.STDOUT)
            self.children.add(child)
        code = child.wait()
        with self.lock:
            self.children.discard(child)
        if code:
            said = f"{last_line(log.name, begun)} (all of it: {log.name})"
            raise UserError(f"{step.script} stopped with exit code {code}: {said}; {what_next(code, step)}")


def start(script: str, settings: Path, jobs: int, **streams: Any) -> subprocess.Popen[bytes]:
    """Start a program under a YAML: one process with its share of the threads where there are several jobs, else `dp2osr.launch`'s.

    A program of `scripts/` is one process in any case: several would do the same work, in the same files.
    """
    environment = {**os.environ, PARENT: str(os.getpid())}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, threads() // jobs))
    launcher = [] if jobs > 1 or Path(script).parent.name == "scripts" else ["-m", "dp2osr.launch"]
    command = [sys.executable, *launcher, str(ROOT / script), "--config", str(settings)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **streams)


def last_line(path: str | Path, begun: int = 0) -> str:
    """The last line of a log, from byte `begun` on, that says something: an error's if there is one; of a progress bar its last state."""
    with open(path, "rb") as log:
        log.seek(begun)
        text = log.read().decode(errors="replace")
    said = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (errors or said or ["nothing was said"])[-1]
