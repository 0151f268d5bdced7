"""What an experiment still takes: hours and disk, from what a candidate costs in each stage on the machine that its settings are for."""

from dataclasses import dataclass, fields
from pathlib import Path

from dp2osr.data.inputs import list_images
from dp2osr.errors import UserError
from dp2osr.reproduce.grid import check_keys, read_yaml

COST_FILE = "cost.yaml"


@dataclass(frozen=True)
class Costs:
    """Of one process, seconds and bytes; `cost.yaml` beside a grid's stages.

    Attributes:
        machine: that they are for.
        processes: that share the work.
        start: seconds of a program beside its work, imports and weights, times the processes that it has.
        sample, label: seconds a candidate.
        train: seconds a candidate of a visited group: policy's and reference's pass, the policy's backward.
        candidate: bytes of a stored candidate.
        policy: bytes of a trained ControlNet; checkpoint: bytes of each checkpoint that is kept, with the optimizer.
        images: {folder of LR images: how many it should have}, for those that are not on this machine.
    """

    machine: str
    processes: int
    start: float
    sample: float
    label: float
    train: float
    candidate: float
    policy: float
    checkpoint: float
    images: dict


def read_costs(folder):
    """The `Costs` of a folder of stages, or None where it has no `cost.yaml`; `UserError` for a key too many or too few."""
    path = Path(folder) / COST_FILE
    if not path.exists():
        return None
    content = read_yaml(path, "what a stage costs")
    known = [field.name for field in fields(Costs)]
    check_keys(path, content, known, "what a stage costs")
    if set(content) != set(known):
        raise UserError(f"{path}: '{sorted(set(known) - set(content))[0]}' is missing")
    numbers = [key for key in known if key not in ("machine", "images")]
    wrong = [
        key for key in numbers if not isinstance(content[key], int | float) or content[key] < 0 or key == "processes" and not content[key]
    ]
    images = content["images"]
    if wrong or not isinstance(images, dict) or not all(isinstance(count, int) and count >= 0 for count in images.values()):
        raise UserError(f"{path}: '{(wrong or ['images'])[0]}' must be {'a number, 0 or more' if wrong else 'lines of folder: number'}")
    return Costs(**content)


def expected(tasks, costs):
    """In words, the hours and the disk of what the tasks' programs have not done yet; "" where there is nothing to say.

    Args:
        tasks: list of `Task`, each once.
        costs: `Costs`, or None.
    """
    if not costs or not tasks:
        return ""
    seconds, size = 0.0, 0.0
    for task in tasks:
        for program in task.missing():
            args = program.parsed()
            seconds += costs.start
            if program.script == "gen_candidates.py":
                count = count_candidates(program, costs)
                seconds, size = seconds + costs.sample * count, size + costs.candidate * count
            elif program.script == "label_rewards.py":
                scored = program.inside["candidates_dir"]
                [sampled] = [other for other in task.programs if other.inside.get("output_dir") == scored]
                seconds += costs.label * count_candidates(sampled, costs)
            elif program.trains:
                visited = args.max_train_steps * args.groups_per_step * args.timesteps_per_group * 2 * args.top_n
                kept = min(args.checkpoints_total_limit, -(-args.max_train_steps // args.checkpointing_steps))
                seconds, size = seconds + costs.train * visited, size + costs.policy + kept * costs.checkpoint
    return hours_and_disk(seconds / costs.processes, size, costs.machine)


def hours_and_disk(seconds, size, machine):
    """`; about 3.1 hours and 0.5 GB on <machine>`."""
    hours, gigabytes = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in (seconds / 3600, size / 1e9))
    return f"; about {hours} hours and {gigabytes} GB on {machine}"


def count_candidates(program, costs):
    """How many candidates a sampling program makes; LR images made anew are as many as those that they stand for."""
    args, path = program.parsed(), Path(program.settings["image_path"])
    count = len(list_images(path)) if path.exists() else costs.images.get(str(path), args.max_images or 0)
    return min(count, args.max_images or count) * args.num_candidates
