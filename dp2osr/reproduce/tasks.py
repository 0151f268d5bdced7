"""The tasks of a grid: which programs, under which settings, in which folder.

A task's folder is named by a hash of all that decides its result, so that grids under one output share what they have in common. In it are
the YAML of each program, `log.txt` with what they printed, and `done.json` with the hash of every program that has ended well.
"""

import hashlib
import json
import math
import tempfile
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import yaml

from dp2osr import files
from dp2osr.cli import made
from dp2osr.data.degradation_settings import load_degradation
from dp2osr.data.inputs import evenly, list_images
from dp2osr.data.settings import PairsSettings
from dp2osr.errors import UserError
from dp2osr.evaluation.image_folders import check_sizes, pair_images
from dp2osr.files import read_json, write_json, write_text
from dp2osr.reproduce.grid import read_yaml
from dp2osr.rewards.config import absolute_imports, find_reward_config, load_reward_config
from dp2osr.rewards.settings import LabelSettings
from dp2osr.rewards.table import SCORES
from dp2osr.sampling.settings import GenerateSettings, RestoreSettings
from dp2osr.training.settings import ProbeSettings, TrainSettings

PROGRAMS = {  # the settings of each, and what it sets itself
    "gen_candidates.py": (GenerateSettings, {}),
    "label_rewards.py": (LabelSettings, {}),
    "train_sd2_dpo.py": (TrainSettings, {"backbone": "sd2"}),
    "train_flux_dpo.py": (TrainSettings, {"backbone": "flux"}),
    "test_sd2b_controlnet.py": (RestoreSettings, {"backbone": "sd2"}),
    "test_flux_controlnet.py": (RestoreSettings, {"backbone": "flux"}),
    "scripts/make_lr_pairs.py": (PairsSettings, {}),
    "scripts/suggest_nm.py": (ProbeSettings, {"report_to": "none"}),
}

INPUTS = (  # flags that name what must be there beforehand
    "pretrained_model_name_or_path", "controlnet_model_name_or_path", "image_path", "gt_path", "prompt_file", "ram_path", "dape_path",
    "metrics_dir",
)  # fmt: skip
FREE = (  # flags that change nothing in the result, or nothing but rounding
    "batch_size", "memory_limit", "metrics_dir", "micro_batch_size", "gradient_checkpointing", "checkpointing_steps",
    "checkpoints_total_limit", "report_to", "reference_cache", "compile", "save_images",
)  # fmt: skip
CANDIDATES, REWARD, DONE = "candidates", "reward.yaml", "done.json"
BICUBIC = "bicubic"
SAME_IMAGES = ("image_path", "prompt_file", "max_images", "images_offset", "num_candidates", "seed")  # flags that all models share
PAIRS = "pairs"
SMALL = 64e6  # bytes: of larger files SAMPLES parts are read, as weights of one design that differ do so everywhere
SAMPLES, SAMPLE = 64, 4096  # bytes of each
MANY = 100  # the files of folders with more are known by name and size alone


@dataclass(frozen=True)
class Program:
    """A program of the repository under the YAML `name`.

    Attributes:
        settings: what it does; inside: flags that are paths in the task's folder; outside: those that are paths of other tasks.
        decides: whether it has a part in the task's name; scoring has none where it adds to what is scored already.
    """

    script: str
    name: str
    settings: dict
    inside: dict
    outside: dict = field(default_factory=dict)
    decides: bool = True

    def content(self):
        """Settings and inputs that decide what it does."""
        own = {key: value for key, value in self.settings.items() if key not in {*self.inside, *self.outside, *FREE}}
        inputs = {key: fingerprint(str(value)) for key, value in own.items() if key in INPUTS}
        reward = own.get("reward_config")
        found = {} if reward in (None, REWARD) else {"reward": read_yaml(find_reward_config(str(reward)), "a reward")}
        found |= {"degradation": asdict(load_degradation(own["degradation"]))} if "degradation" in own else {}
        return {"script": self.script, "settings": own, "inputs": inputs, **found}

    def stamp(self):
        return digest(self.content())

    def flags(self, folder):
        inside = {key: str(folder / path) for key, path in self.inside.items()}
        if self.settings.get("reward_config") == REWARD:
            inside["reward_config"] = str(folder / REWARD)
        return self.settings | inside | self.outside

    @property
    def trains(self):
        return self.script.startswith("train_")

    def parsed(self, where=""):
        """Its settings as it will read them, with its defaults; `UserError`, which says `where` they are from, unless it takes them."""
        if self.script not in PROGRAMS:
            raise UserError(f"{self.script}: there is no such program")
        settings, defaults = PROGRAMS[self.script]
        return made(settings, {**defaults, **self.flags(Path("folder"))}, ", ".join(filter(None, (where, self.name))))

    def check(self, where):
        """Raise `UserError` unless the program takes these flags and they go together; `where` says whose they are."""
        args = self.parsed(where)
        if self.trains:
            from dp2osr.training.options import check_options

            check_options(args)
            if args.num_candidates and 2 * args.top_n > args.num_candidates:
                told = f"top_n {args.top_n} of num_candidates {args.num_candidates}: at most half of them"
                raise UserError(f"{where}, {self.name}: {told}")


def digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


@cache
def fingerprint(path):
    """What stands for a file or folder: names and sizes, in a folder of few the content too, of large files a part; None: not there."""
    path = Path(path)
    if not path.exists():
        return None
    found = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    entries = []
    for file in found:
        size = file.stat().st_size
        content = None
        if len(found) <= MANY:
            content = files.digest(file) if size <= SMALL else _sampled_sha256(file, size)
        entries.append([file.name if file == path else file.relative_to(path).as_posix(), size, content])
    return digest(entries)


def _sampled_sha256(path, size):
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        for number in range(SAMPLES):
            stream.seek(number * (size - SAMPLE) // (SAMPLES - 1))
            found.update(stream.read(SAMPLE))
    return found.hexdigest()


class Task:
    """Programs that must run one after the other, in a folder of their own.

    Args:
        parent: folder of the folder.
        programs: list of `Program`.
        reward: content of `reward.yaml` in the folder, or None.
        origin: what else decides the result.
    """

    def __init__(self, parent, programs, reward=None, origin=None):
        self.programs, self.reward = programs, reward
        self.settings = {program.name: program.content() for program in programs if program.decides} | {"reward": reward, **(origin or {})}
        self.folder = Path(parent) / digest(self.settings)

    @property
    def training_steps(self):
        """Optimizer steps of its trainings."""
        return sum(program.parsed().max_train_steps for program in self.programs if program.trains)

    def missing(self):
        """Its programs from the first that has not ended well under these settings."""
        done = read_json(self.folder / DONE) if (self.folder / DONE).exists() else {}
        for place, program in enumerate(self.programs):
            if done.get(program.name) != program.stamp():
                return self.programs[place:]
        return []

    def is_done(self):
        return not self.missing()

    def prepare(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "settings.json", self.settings)
        for program in self.programs:
            write_yaml(self.folder / f"{program.name}.yaml", program.flags(self.folder))
        if self.reward:
            write_yaml(self.folder / REWARD, self.reward)

    def finish(self, program):
        """Note that a program has ended well."""
        done = read_json(self.folder / DONE) if (self.folder / DONE).exists() else {}
        write_json(self.folder / DONE, done | {program.name: program.stamp()})

    def check(self, where):
        """Raise `UserError` for flags or a reward that its programs will refuse."""
        for program in self.programs:
            program.check(where)
        if self.reward:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / REWARD
                write_yaml(path, self.reward)
                try:
                    load_reward_config(path)
                except UserError as error:
                    raise UserError(f"{where}, {str(error).replace(f'{folder}/', '')}") from None


def write_yaml(path, content):
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


@dataclass(frozen=True)
class GridTasks:
    """The tasks of a grid: `shared` candidates first, then `held_out`: name → tasks, one after the other, the base before the runs.

    `rivals`: name → the task of another base's held-out candidates; `label`: the flags with which held-out candidates are scored.
    """

    grid: object
    shared: list
    held_out: dict
    rivals: dict
    label: dict

    def chains(self):
        """Lists of tasks that can run side by side: what follows the same training is in one, so that none waits for another's."""
        chains = {}
        for first, *rest in [*self.held_out.values(), *([task] for task in self.rivals.values())]:
            chain = chains.setdefault(first.folder, [first])
            chain += [task for task in rest if task.folder not in {known.folder for known in chain}]
        return list(chains.values())

    def missing(self):
        """Tasks that are not done, each once."""
        every = [*self.shared, *(task for chain in self.chains() for task in chain)]
        return list({task.folder: task for task in every if not task.is_done()}.values())

    def summary(self):
        """One line: what there is to do."""
        runs = {tasks[0].folder: tasks[0] for name, tasks in self.held_out.items() if name != "base"}
        missing = {task.folder: task for task in self.missing()}
        steps = sum(task.training_steps for task in missing.values())
        first = "" if all(task.is_done() for task in self.shared) else "the candidates of all trainings, "
        tested = sum(task.folder in missing for name, tasks in self.held_out.items() for task in tasks[-1:])
        doing = f": {first}{steps} steps in all, and held-out candidates of {tested} models" if missing else ""
        left = sum(folder in missing for folder in runs)
        return f"{self.grid.name}: {self.grid.title}. {len(runs)} trainings, {left} of them missing{doing}"

    def check(self):
        """Raise `UserError` for what will be refused or is not on this machine, before the first expensive second."""
        self.check_flags()
        self.check_inputs()

    def check_flags(self):
        """Raise `UserError` for flags or a reward that a program will refuse."""
        load_reward_config(self.grid.evaluated_by)
        for name, tasks in self._everything().items():
            for task in tasks:
                task.check(f"{self.grid.name}, {name}")

    def check_inputs(self):
        """Raise `UserError` for models and images that are not on this machine."""
        missing = self._check_rivals()
        for tasks in self._everything().values():
            for program in (program for task in tasks for program in task.programs):
                for key, value in program.settings.items():
                    asked = key in {*INPUTS} - {*program.inside, *program.outside} and value is not None
                    if asked and not Path(str(value)).exists():
                        missing.setdefault(str(value), f"{key} of {program.name}")
        if missing:
            some = ", ".join(f"{value} ({where})" for value, where in missing.items())
            others = f"name others in the experiment's YAML or {self.grid.stages['train'].parent}"
            raise UserError(f"{self.grid.name}: not on this machine: {some}; put them there, or {others}")

    def _everything(self):
        return {"shared candidates": self.shared, **self.held_out, "rivals": self.rivals.values()}

    def _check_rivals(self):
        """{folder that is not there: whose}; `UserError` for images that cannot be compared."""
        grid, missing = self.grid, {}
        gt_path = self.label.get("gt_path")
        if not gt_path and (grid.rivals or grid.pictures):
            raise UserError(f"{grid.stages['label_test']}: 'gt_path' is missing, which rivals and pictures of {grid.name} need")
        for name, where in grid.rivals.items():
            if where != BICUBIC and not Path(where).is_dir():
                missing[where] = f"rival '{name}'"
            elif where != BICUBIC and name not in self.rivals and Path(gt_path).is_dir():
                test = self.held_out["base"][0].programs[0].parsed()
                wanted = [path.stem for path in evenly(list_images(test.image_path), test.max_images, test.images_offset)]
                [images], gt = pair_images({name: [Path(where)]}, gt_path, only=wanted)
                check_sizes([[gt[image_id], *paths] for image_id, paths in images.samples.items()])
        return missing


def plan_grid(grid, output):
    """The `GridTasks` of a grid under the folder `output`."""
    read = {stage: grid.flags(stage) for stage in grid.stages}
    shared = {arm.name: training_candidates(read, arm, output) for arm in grid.arms}
    test = read["test"] | grid.test
    label_test = read["label_test"]
    held_out = {"base": [candidates_of(test, label_test, output)]}
    for arm in grid.arms:
        if arm.rounds > 1 and not (read["sample"] | arm.sample).get("max_images"):
            raise UserError(f"{grid.name}, arm '{arm.name}': a further round samples other images: give max_images in its 'sample'")
    for arm, seed in grid.runs:
        training = training_of(grid, read, arm, seed, shared[arm.name], output)
        policy, origin = training.folder / _policy(arm.rounds), {"training": training.folder.name}
        if arm.checkpoint:
            policy, origin = policy / f"checkpoint-{arm.checkpoint}.pt", origin | {"checkpoint": arm.checkpoint}
        held_out[arm.run_name(seed)] = [training, candidates_of(test, label_test, output, str(policy), origin)]
    candidates = list({task.folder: task for task in shared.values()}.values())
    return GridTasks(grid, candidates, held_out, _other_bases(grid, test, label_test, output), label_test)


def _other_bases(grid, test, label, output):
    """{name: task} of the rivals that are another base: sampled as their own test.yaml says, as many of the grid's own images."""
    bases = {}
    for name, where in grid.rivals.items():
        path = Path(where) / "test.yaml"
        if path.is_file():
            own = {key: value for key, value in read_yaml(path, "the flags of a program").items() if key not in SAME_IMAGES}
            bases[name] = candidates_of(own | {key: test[key] for key in SAME_IMAGES if key in test}, label, output)
    return bases


def training_candidates(read, arm, output):
    """The task that samples and scores the candidates of an arm's training, of LR images that it first makes if the arm says so."""
    sample, label = read["sample"] | arm.sample, read["label"]
    if not arm.degradation:
        return candidates_of(sample, label, output)
    if "gt_path" not in label:
        raise UserError(f"arm '{arm.name}': 'degradation' makes its LR images of the GT: give 'gt_path' in the experiment's label.yaml")
    settings = {"image_path": label["gt_path"], "degradation": arm.degradation}
    pairs = Program("scripts/make_lr_pairs.py", "pairs", settings, {"output_dir": PAIRS})
    sampled, scored = _sampled_and_scored(sample, label, {"image_path": f"{PAIRS}/lr"}, {})
    return Task(output / "candidates", [pairs, sampled, replace(scored, inside=scored.inside | {"gt_path": f"{PAIRS}/gt"})])


def candidates_of(sample, label, output, policy=None, origin=None):
    """The task that samples and scores candidates of the base, or of a policy."""
    outside = {"controlnet_model_name_or_path": policy} if policy else {}
    return Task(output / "candidates", _sampled_and_scored(sample, label, {}, outside), origin=origin)


def training_of(grid, read, arm, seed, shared, output):
    """The task of one training, of one round or several."""
    train, reward = read["train"] | arm.train | {"seed": seed}, None
    if grid.checkpoints:
        train |= {"checkpointing_steps": math.gcd(*grid.checkpoints), "checkpoints_total_limit": max(grid.checkpoints)}
    if arm.reward:
        path = find_reward_config(str(train.get("reward_config", "default")))
        reward = absolute_imports(path, read_yaml(path, "a reward")) | arm.reward
        train["reward_config"] = REWARD
    first = {"candidates_dir": str(shared.folder / CANDIDATES), "scores": str(shared.folder / CANDIDATES / SCORES)}
    programs = [_training(train, {}, first | _cache(grid, output), 1)]
    where = f"{grid.name}, arm '{arm.line if arm.checkpoint else arm.name}'"
    flags, sampling = programs[0].parsed(where), next(program for program in shared.programs if program.name == "sample").parsed(where)
    if max(flags.num_candidates or 0, 2 * flags.top_n) > sampling.num_candidates:
        told = f"N = {flags.top_n} of M = {flags.num_candidates or sampling.num_candidates}"
        raise UserError(f"{where}: trains on {told}, and {sampling.num_candidates} candidates an image are sampled")
    if grid.checkpoints:
        _check_checkpoints(grid, flags, where)
    for number in range(2, arm.rounds + 1):
        suffix, proposer = f"-{number}", {"controlnet_model_name_or_path": _policy(number - 1)}
        sample = read["sample"] | arm.sample | {"seed": 1000 * number + seed, "images_offset": number - 1}
        if "num_candidates" in train:
            sample["num_candidates"] = train["num_candidates"]
        programs += _sampled_and_scored(sample, read["label"], proposer, {}, suffix)
        folder = CANDIDATES + suffix
        anchor = {"reference_controlnet_model_name_or_path": train["controlnet_model_name_or_path"]} if arm.reference == "fixed" else {}
        inside = proposer | {"candidates_dir": folder, "scores": f"{folder}/{SCORES}"}
        programs.append(_training(train, inside, anchor | _cache(grid, output), number))
    origin = {"candidates": shared.folder.name} | ({"reference": arm.reference} if arm.rounds > 1 else {})
    origin |= {"checkpoints": grid.checkpoints} if grid.checkpoints else {}  # another experiment's run of it has not kept them
    return Task(output / "trainings", programs, reward, origin)


def _check_checkpoints(grid, args, where):
    if max(grid.checkpoints) > args.max_train_steps:
        told = f"has no step {max(grid.checkpoints)} of 'checkpoints'; it has {args.max_train_steps} steps"
        raise UserError(f"{where}: {told}")
    if args.lora_rank:
        raise UserError(f"{where}: a checkpoint of lora_rank {args.lora_rank} has adapters alone; 'checkpoints' are whole")


def _cache(grid, output):
    return {"reference_cache": str(output / "reference_cache")} if grid.reference_cache else {}


def _training(train, inside, outside, number):
    script = f"train_{train.get('backbone', 'sd2')}_dpo.py"
    return Program(script, "train" + ("" if number == 1 else f"-{number}"), train, inside | {"output_dir": _policy(number)}, outside)


def _policy(number):
    return "policy" if number == 1 else f"policy-{number}"


def _sampled_and_scored(sample, label, inside, outside, suffix=""):
    """Two programs: candidates of the base, or of another ControlNet, and their scores."""
    target = CANDIDATES + suffix
    return [
        Program("gen_candidates.py", "sample" + suffix, sample, inside | {"output_dir": target}, outside),
        Program("label_rewards.py", "label" + suffix, label, {"candidates_dir": target}, decides=bool(suffix)),
    ]
