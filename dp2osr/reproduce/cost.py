"""What an experiment still takes: hours and disk, from what a candidate costs in each stage on the machine that its settings are for."""

from dataclasses import dataclass, fields
from pathlib import Path

from dp2osr.data.images import list_images
from dp2osr.errors import UserError
from dp2osr.reproduce.grid import check_keys, read_yaml

COST_FILE = "cost.yaml"


@dataclass(frozen=True)
class Costs:
    """Of one process, seconds and bytes; `cost.yaml` beside a grid's stages.

    Attributes:
        machine: that they are for.
        processes: that share the work.
        start: seconds of a program beside its work: imports, weights.
        sample, label: seconds a candidate.
        train: seconds a candidate of a visited group: policy's and reference's pass, the policy's backward.
        candidate: bytes of a stored candidate.
        policy: bytes of a training's output.
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
    if wrong or not isinstance(content["images"], dict):
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
            settings = program.settings
            seconds += costs.start
            if program.script == "gen_candidates.py":
                count = candidates_of(settings, costs)
                seconds, size = seconds + costs.sample * count, size + costs.candidate * count
            elif program.script == "label_rewards.py":
                scored = program.inside["candidates_dir"]
                [sampled] = [other for other in task.programs if other.inside.get("output_dir") == scored]
                seconds += costs.label * candidates_of(sampled.settings, costs)
            elif program.script.startswith("train_"):
                groups = settings.get("max_train_steps", 1000) * settings.get("groups_per_step", 16)
                visited = groups * settings.get("timesteps_per_group", 1) * 2 * settings.get("top_n", 8)
                seconds, size = seconds + costs.train * visited, size + costs.policy
    return f"; about {_number(seconds / costs.processes / 3600)} hours and {_number(size / 1e9)} GB on {costs.machine}"


def _number(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def candidates_of(settings, costs):
    """How many candidates a sampling's settings ask for."""
    path, most = Path(settings["image_path"]), settings.get("max_images")
    count = len(list_images(path)) if path.exists() else costs.images.get(str(path), most or 0)
    return min(count, most or count) * settings["num_candidates"]
