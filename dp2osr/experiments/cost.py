"""What an experiment still takes: hours and disk, from what a candidate costs in each stage on the machine that its settings are for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dp2osr.data.inputs import list_images
from dp2osr.experiments.steps import Step
from dp2osr.fields import Count, Natural, NonNegative
from dp2osr.schema import read_typed

COST_FILE = "cost.yaml"


@dataclass(frozen=True)
class Costs:
    """Of one process, seconds and bytes; `cost.yaml` beside an experiment's stages.

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
    processes: Count
    start: NonNegative
    sample: NonNegative
    label: NonNegative
    train: NonNegative
    candidate: NonNegative
    policy: NonNegative
    checkpoint: NonNegative
    images: dict[str, Natural]


def read_costs(folder: str | Path) -> Costs | None:
    """The `Costs` of a folder of stages, or None where it has no `cost.yaml`."""
    path = Path(folder) / COST_FILE
    return read_typed(Costs, path, "what a stage costs") if path.exists() else None


def expected(steps: Sequence[Step], costs: Costs | None) -> str:
    """In words, the hours and the disk of steps that are still to be done; "" where there is nothing to say."""
    if not costs or not steps:
        return ""
    seconds, size, sampled = costs.start * len(steps), 0.0, {}
    for step in steps:
        args = step.settings()
        if step.script == "gen_candidates.py":
            count = sampled[args.output_dir] = count_candidates(step, costs)
            seconds, size = seconds + costs.sample * count, size + costs.candidate * count
        elif step.script == "label_rewards.py":
            seconds += costs.label * sampled.get(args.candidates_dir, 0)
        elif step.trains:
            visited = args.max_train_steps * args.groups_per_step * args.timesteps_per_group * 2 * args.top_n
            kept = min(args.checkpoints_total_limit, -(-args.max_train_steps // args.checkpointing_steps))
            seconds, size = seconds + costs.train * visited, size + costs.policy + kept * costs.checkpoint
    return hours_and_disk(seconds / costs.processes, size, costs.machine)


def hours_and_disk(seconds: float, size: float, machine: str) -> str:
    """`; about 3.1 hours and 0.5 GB on <machine>`."""
    hours, gigabytes = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in (seconds / 3600, size / 1e9))
    return f"; about {hours} hours and {gigabytes} GB on {machine}"


def count_candidates(step: Step, costs: Costs) -> int:
    """How many candidates a sampling program makes; LR images made anew are as many as those that they stand for."""
    args, path = step.settings(), Path(step.flags["image_path"])
    count = len(list_images(path)) if path.exists() else costs.images.get(str(path), args.max_images or 0)
    return min(count, args.max_images or count) * args.num_candidates
