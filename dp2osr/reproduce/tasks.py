"""The tasks of a grid: which programs, under which settings, in which folder.

A task's folder is named by a hash of all that decides its result, so that grids under one output share what they have in common. In it are
the YAML of each program, `log.txt` with what they printed, and `done.json` once it is whole.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from dp2osr.config import write_json, write_text
from dp2osr.errors import UserError
from dp2osr.provenance import versions
from dp2osr.rewards.config import find_reward_config

INPUTS = (  # flags that name what must be there beforehand
    "pretrained_model_name_or_path", "controlnet_model_name_or_path", "image_path", "gt_path", "prompt_file", "ram_path", "dape_path",
    "metrics_dir",
)  # fmt: skip
CANDIDATES, SCORES, REWARD, DONE = "candidates", "scores.parquet", "reward.yaml", "done.json"


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

    @property
    def training_steps(self):
        """Optimizer steps of its trainings."""
        return sum(program.settings.get("max_train_steps", 1000) for program in self.programs if program.script.startswith("train_"))

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


@dataclass(frozen=True)
class GridTasks:
    """The tasks of a grid: `shared` candidates first, then `held_out` (name → task), the base before the runs."""

    grid: object
    shared: list
    held_out: dict

    def summary(self):
        """One line: what there is to do."""
        missing = [name for name, task in self.held_out.items() if not task.is_done() and name != "base"]
        steps = sum(self.held_out[name].training_steps for name in missing)
        first = "" if all(task.is_done() for task in self.shared) else "the candidates of all trainings, "
        doing = f": {first}{steps} steps in all, and held-out candidates of each policy" if missing else ""
        return f"{self.grid.name}: {self.grid.title}. {len(self.held_out) - 1} trainings, {len(missing)} of them missing{doing}"


def plan_grid(grid, output):
    """The `GridTasks` of a grid under the folder `output`."""
    read = {stage: yaml.safe_load(path.read_text(encoding="utf-8")) for stage, path in grid.stages.items()}
    shared = {arm.name: candidates_of(read["sample"] | arm.sample, read["label"], output) for arm in grid.arms}
    held_out = {"base": candidates_of(read["test"], read["label_test"], output)}
    held_out |= {arm.run_name(seed): training_of(read, arm, seed, shared[arm.name], output) for arm, seed in grid.runs}
    return GridTasks(grid, list({task.folder: task for task in shared.values()}.values()), held_out)


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


def candidates_of(sample, label, output):
    """The task that samples and scores candidates of the base."""
    return Task(output / "candidates", [*_sampled_and_scored(sample, label)])


def training_of(read, arm, seed, shared, output):
    """The task of one training, of one round or several, and of its policy's held-out candidates."""
    train, reward = read["train"] | arm.train | {"seed": seed}, None
    if arm.reward:
        reward = yaml.safe_load(find_reward_config(train.get("reward_config", "default")).read_text(encoding="utf-8")) | arm.reward
        train["reward_config"] = REWARD
    programs = []
    for number in range(1, arm.rounds + 1):
        suffix = "" if number == 1 else f"-{number}"
        if number == 1:
            outside = {"candidates_dir": str(shared.folder / CANDIDATES), "scores": str(shared.folder / CANDIDATES / SCORES)}
            inside = {}
        else:
            proposer = _policy(number - 1)
            sample = read["sample"] | arm.sample | {"seed": 1000 * number + seed, "images_offset": number - 1}
            sample["num_candidates"] = train.get("num_candidates", sample["num_candidates"])
            programs += _sampled_and_scored(sample, read["label"], proposer, suffix)
            folder = CANDIDATES + suffix
            outside, inside = {}, {"candidates_dir": folder, "scores": f"{folder}/{SCORES}", "controlnet_model_name_or_path": proposer}
        if number > 1 and arm.reference == "fixed":
            outside["reference_controlnet_model_name_or_path"] = train["controlnet_model_name_or_path"]
        outside["reference_cache"] = str(output / "reference_cache")
        script = f"train_{train.get('backbone', 'sd2')}_dpo.py"
        programs.append(Program(script, "train" + suffix, train, inside | {"output_dir": _policy(number)}, outside))
    programs += _sampled_and_scored(read["test"], read["label_test"], _policy(arm.rounds))
    origin = {"candidates": shared.folder.name} | ({"reference": arm.reference} if arm.rounds > 1 else {})
    return Task(output / "trainings", programs, reward, origin)


def _policy(number):
    return "policy" if number == 1 else f"policy-{number}"


def _sampled_and_scored(sample, label, controlnet=None, suffix=""):
    """Two programs: candidates of the base, or of a ControlNet of the task's own, and their scores."""
    target = CANDIDATES + suffix
    proposer = {"controlnet_model_name_or_path": controlnet} if controlnet else {}
    return [
        Program("gen_candidates.py", "sample" + suffix, sample, {**proposer, "output_dir": target}),
        Program("label_rewards.py", "label" + suffix, label, {"candidates_dir": target}),
    ]
