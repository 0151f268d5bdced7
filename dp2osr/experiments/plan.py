"""Which programs an experiment takes, in which folders, and whether they can run.

    OUTPUT/candidates/tiny-sd2                      candidates of all trainings under configs/reproduce/tiny/sd2, and their scores
    OUTPUT/candidates/tiny-sd2,num_candidates=16    those of an arm with `sample: {num_candidates: 16}`
    OUTPUT/held_out/tiny-sd2                        the base's held-out candidates
    RESULTS/both-0                                  the training of the arm `both` with seed 0, and its held-out candidates

The first three are of all experiments with these stages, the last is of one: RESULTS is the folder of its tables.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp2osr.data.inputs import list_images
from dp2osr.data.part import evenly
from dp2osr.errors import UserError
from dp2osr.evaluation.compare import BICUBIC
from dp2osr.evaluation.image_folders import check_sizes, pair_images
from dp2osr.experiments.rounds import further_round, reference_of, round_suffix
from dp2osr.experiments.spec import BASE, STAGES, Arm, Experiment
from dp2osr.experiments.steps import REWARD_FILE, Step
from dp2osr.files import LONGEST_NAME, short_name
from dp2osr.rewards.config import absolute_imports, find_reward_config, load_reward_config
from dp2osr.rewards.table import SCORES
from dp2osr.schema import read_lines

SAME_IMAGES = ("image_path", "prompt_file", "max_images", "images_offset", "num_candidates", "seed")  # flags that all models share
CANDIDATES, PAIRS = "candidates", "pairs"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Plan:
    """The steps of an experiment.

    Attributes:
        shared: lists of steps that make the candidates of all trainings; they come first, one after the other.
        chains: lists of steps that can run side by side: the base's held-out candidates, and of each training its own and all that follows.
        held_out: {"base" or run name: its held-out candidates}; rivals: the same of the rivals that are another base.
        label: the flags with which held-out candidates are scored.
    """

    experiment: Experiment
    shared: list[list[Step]]
    chains: list[list[Step]]
    held_out: dict[str, Path]
    rivals: dict[str, Path]
    label: dict[str, Any]

    @property
    def trainings(self) -> list[list[Step]]:
        """The chains that train."""
        return [chain for chain in self.chains if any(step.trains for step in chain)]

    def steps(self) -> list[Step]:
        """All steps, in their order."""
        return [step for chain in [*self.shared, *self.chains] for step in chain]

    def missing(self) -> list[Step]:
        return [step for step in self.steps() if not step.is_done()]

    def summary(self) -> str:
        """One line: what there is to do."""
        missing, experiment = self.missing(), self.experiment
        steps = sum(step.settings().max_train_steps for step in missing if step.trains)
        first = "the candidates of all trainings, " if any(step in missing for chain in self.shared for step in chain) else ""
        tested = len({step.folder for step in missing if step.output.parent in {*self.held_out.values()}})
        doing = f": {first}{steps} steps in all, and held-out candidates of {tested} models" if missing else ""
        left = sum(any(step in missing for step in chain if step.trains) for chain in self.trainings)
        return f"{experiment.name}: {experiment.title}. {len(self.trainings)} trainings, {left} of them missing{doing}"

    def check_flags(self) -> None:
        """Raise `UserError` for flags or a reward that a program will refuse."""
        load_reward_config(self.experiment.evaluated_by)
        for step in self.steps():
            step.check(f"{self.experiment.name}, {step.folder.name}")

    def check_inputs(self, output: str | Path) -> None:
        """Raise `UserError` for models and images that are not on this machine; `output`: below it is what steps make."""
        experiment, missing = self.experiment, _check_rivals(self)
        for step in self.steps():
            missing = step.missing_inputs(output) | missing
        if missing:
            some = ", ".join(f"{value} ({where})" for value, where in missing.items())
            others = f"name others in the experiment's YAML or {experiment.stages}"
            raise UserError(f"{experiment.name}: not on this machine: {some}; put them there, or {others}")


def plan_experiment(experiment: Experiment, output: str | Path, results: str | Path) -> Plan:
    """The `Plan` of an `Experiment` under the folder `output` of all experiments; `results` is its own."""
    output, results = Path(output), Path(results)
    read = {stage: experiment.flags(stage) for stage in STAGES}
    test = read["test"] | experiment.test
    shared: dict[Path, list[Step]] = {}
    chains: dict[Path, list[Step]] = {}
    folder = output / "held_out" / folder_name(experiment.stages, experiment.test)
    held_out = {BASE: folder / CANDIDATES}
    chains[folder] = candidates_of(folder, test, read["label_test"])
    for arm, seed in experiment.runs:
        of_arm = training_candidates(experiment, read, arm, output)
        shared[of_arm[0].folder] = of_arm
        folder = results / f"{arm.training}-{seed}"
        if folder not in chains:
            chains[folder] = training_of(experiment, read, arm, seed, of_arm, folder, output)
        policy, held = chains[folder][-1 if not arm.checkpoint else 0].output.parent, folder / "held_out"
        if arm.checkpoint:
            policy, held = folder / f"policy/checkpoint-{arm.checkpoint}.pt", folder / f"held_out@{arm.checkpoint}"
        chains[folder] += candidates_of(held, test, read["label_test"], policy)
        held_out[arm.run_name(seed)] = held / CANDIDATES
    rivals = {}
    for name, where in experiment.rivals.items():
        if (Path(where) / "test.yaml").is_file():
            folder, steps = rival_base(Path(where), test, read["label_test"], output)
            rivals[name] = folder / CANDIDATES
            chains.setdefault(folder, steps)
    return Plan(experiment, list(shared.values()), list(chains.values()), held_out, rivals, read["label_test"])


def rival_base(stages: Path, test: dict[str, Any], label: dict[str, Any], output: Path) -> tuple[Path, list[Step]]:
    """(folder, steps) of another base's held-out candidates: as its own test.yaml says, of the same images and as many of each."""
    own = read_lines(stages / "test.yaml", "the flags of a program")
    differs = {key: test.get(key) for key in SAME_IMAGES if test.get(key) != own.get(key)}
    folder = output / "held_out" / folder_name(stages, differs)
    return folder, candidates_of(folder, {key: value for key, value in (own | differs).items() if value is not None}, label)


def folder_name(stages: str | Path, flags: Mapping[str, Any]) -> str:
    """`tiny-sd2,num_candidates=16`: the folder of stages, and what differs from them."""
    words = ["-".join(Path(stages).absolute().parts[-2:])]
    words += [f"{key}={str(value).rpartition('/')[2]}" for key, value in sorted(flags.items())]
    return plain_name(",".join(words))


def plain_name(text: str) -> str:
    """A text as a name of a folder: signs that a shell or a file system minds become _, a long one is cut."""
    name = re.sub(r"[^\w.,=+@-]+", "_", text)
    return name if len(os.fsencode(name)) < LONGEST_NAME else f"{name[:50]}-{short_name(name)}"


def candidates_of(
    folder: Path, sample: dict[str, Any], label: dict[str, Any], policy: str | Path | None = None, suffix: str = ""
) -> list[Step]:
    """The steps that sample and score candidates of the base, or of a policy."""
    target = folder / f"{CANDIDATES}{suffix}"
    sample = sample | ({"controlnet_model_name_or_path": str(policy)} if policy else {}) | {"output_dir": str(target)}
    return [
        Step("gen_candidates.py", f"sample{suffix}", folder, sample, target / "groups"),
        Step("label_rewards.py", f"label{suffix}", folder, label | {"candidates_dir": str(target)}, target / SCORES),
    ]


def training_candidates(experiment: Experiment, read: Mapping[str, dict[str, Any]], arm: Arm, output: Path) -> list[Step]:
    """The steps that sample and score the candidates of an arm's training, of LR images that they first make if the arm says so."""
    sample, label = read["sample"] | arm.sample, read["label"] | arm.label
    if arm.rounds > 1 and not sample.get("max_images"):
        raise UserError(f"{experiment.name}, arm '{arm.name}': a further round samples other images: give max_images in its 'sample'")
    differs = arm.sample | arm.label | ({"degradation": arm.degradation} if arm.degradation else {})
    folder = output / CANDIDATES / folder_name(experiment.stages, differs)
    if not arm.degradation:
        return candidates_of(folder, sample, label)
    if "gt_path" not in label:
        raise UserError(f"arm '{arm.name}': 'degradation' makes its LR images of the GT: give 'gt_path' in the experiment's label.yaml")
    flags = {"image_path": label["gt_path"], "degradation": arm.degradation, "output_dir": str(folder / PAIRS)}
    pairs = Step("scripts/make_lr_pairs.py", PAIRS, folder, flags, folder / PAIRS / "lr")
    of_pairs = {"image_path": str(folder / PAIRS / "lr")}, {"gt_path": str(folder / PAIRS / "gt")}
    return [pairs, *candidates_of(folder, sample | of_pairs[0], label | of_pairs[1])]


def training_of(
    experiment: Experiment, read: Mapping[str, dict[str, Any]], arm: Arm, seed: int, shared: list[Step], folder: Path, output: Path
) -> list[Step]:
    """The steps of one training, of one round or several."""
    train, reward = read["train"] | arm.train | {"seed": seed}, None
    if experiment.checkpoints:
        train |= {"checkpointing_steps": math.gcd(*experiment.checkpoints), "checkpoints_total_limit": max(experiment.checkpoints)}
    if arm.reward:
        path = find_reward_config(str(train.get("reward_config", "default")))
        reward = absolute_imports(path, read_lines(path, "a reward")) | arm.reward
        train["reward_config"] = str(folder / REWARD_FILE)
    if experiment.reference_cache:
        train["reference_cache"] = str(output / "reference_cache")
    steps, sampled = [], shared[-1].output.parent
    for number in range(1, arm.rounds + 1):
        suffix = round_suffix(number)
        if number > 1:
            policy = {"controlnet_model_name_or_path": str(folder / f"policy{round_suffix(number - 1)}")}
            sample = read["sample"] | arm.sample | further_round(number, 1000 * number + seed)
            sample |= {key: train[key] for key in ("num_candidates",) if key in train}
            steps += candidates_of(folder, sample, read["label"] | arm.label, policy["controlnet_model_name_or_path"], suffix)
            sampled = folder / f"{CANDIDATES}{suffix}"
            train |= reference_of(arm.reference, read["train"] | arm.train) | policy
        target = folder / f"policy{suffix}"
        flags = train | {"candidates_dir": str(sampled), "scores": str(sampled / SCORES), "output_dir": str(target)}
        steps.append(Step(f"train_{train.get('backbone', 'sd2')}_dpo.py", f"train{suffix}", folder, flags, target / WEIGHTS, reward))
    _check_training(experiment, arm, steps[0], next(step for step in shared if step.name == "sample"))
    return steps


def _check_training(experiment: Experiment, arm: Arm, training: Step, sampled: Step) -> None:
    """Raise `UserError` for an N and M that were not sampled, or checkpoints that a training does not have."""
    where = f"{experiment.name}, arm '{arm.training}'"
    flags, sampling = training.settings(where), sampled.settings(where)
    if max(flags.num_candidates or 0, 2 * flags.top_n) > sampling.num_candidates:
        told = f"N = {flags.top_n} of M = {flags.num_candidates or sampling.num_candidates}"
        raise UserError(f"{where}: trains on {told}, and {sampling.num_candidates} candidates an image are sampled")
    if not experiment.checkpoints:
        return
    if max(experiment.checkpoints) > flags.max_train_steps:
        told = f"has no step {max(experiment.checkpoints)} of 'checkpoints'; it has {flags.max_train_steps} steps"
        raise UserError(f"{where}: {told}")
    if flags.lora_rank:
        raise UserError(f"{where}: a checkpoint of lora_rank {flags.lora_rank} has adapters alone; 'checkpoints' are whole")


def _check_rivals(plan: Plan) -> dict[str, str]:
    """{folder that is not there: whose}; `UserError` for images that cannot be compared."""
    experiment, missing = plan.experiment, {}
    gt_path = plan.label.get("gt_path", "")
    if not gt_path and (experiment.rivals or experiment.pictures):
        label = experiment.stages / "label_test.yaml"
        raise UserError(f"{label}: 'gt_path' is missing, which rivals and pictures of {experiment.name} need")
    for name, where in experiment.rivals.items():
        if where != BICUBIC and not Path(where).is_dir():
            missing[where] = f"rival '{name}'"
        elif where != BICUBIC and name not in plan.rivals and Path(gt_path).is_dir():
            test = next(step for step in plan.chains[0] if step.name == "sample").settings()
            wanted = [path.stem for path in evenly(list_images(test.image_path), test.max_images, test.images_offset)]
            [images], gt = pair_images({name: [Path(where)]}, gt_path, only=wanted)
            check_sizes([[gt[image_id], *paths] for image_id, paths in images.samples.items()])
    return missing
