"""What makes a stage fit a card: flags are switched on one after the other, those that cost least first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dp2osr.planning.baseline_cost import BaselineSizes, baseline_memory, count_baseline
from dp2osr.planning.preference_cost import Sizes, count_training, training_memory
from dp2osr.planning.stages import PlannedModel, StagePlan
from dp2osr.training.baseline_settings import BaselineSettings
from dp2osr.training.settings import TrainSettings

Flags = tuple[tuple[str, Any], ...]
# From what costs nothing but time or traffic to what changes the numbers.
FULL_TRAINING: Flags = (
    ("gradient_checkpointing", True), ("shard_optimizer", True), ("gradient_sum", "fp32"), ("micro_batch_size", 1),
    ("use_8bit_adam", True), ("quantize_backbone", "int8"), ("quantize_backbone", "nf4"),
)  # fmt: skip
WITH_LORA: Flags = (
    ("lora_rank", 16), ("gradient_checkpointing", True), ("micro_batch_size", 1), ("quantize_backbone", "int8"),
    ("quantize_backbone", "nf4"),
)  # fmt: skip
BASELINE: Flags = (("gradient_checkpointing", True), ("train_batch_size", 1), ("use_8bit_adam", True))


@dataclass
class Fit:
    """Whether something fits, the flags that it takes beside those that are set, and what it takes then."""

    fits: bool
    flags: dict[str, Any]
    memory: dict[str, float]

    @property
    def size(self) -> float:
        return sum(self.memory.values())

    def words(self) -> str:
        """The flags as on a command line."""
        return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in self.flags.items())

    def cell(self) -> str:
        """Of a table: GB, the flags that it takes, and **no** where it does not fit with them."""
        return ("" if self.fits else "**no**: ") + f"{self.size / 1e9:.1f}" + (f" with `{self.words()}`" if self.flags else "")


def fit(memory_of: Callable[[Mapping[str, Any]], dict[str, float]], steps: Flags, room: float, first: int = 0) -> Fit:
    """Switch on `steps` until what `memory_of` the chosen flags says is below `room`; then leave those out that are not needed.

    Args:
        first: how many of the steps are always on.
    """
    chosen: dict[str, Any] = dict(steps[:first])
    memory = memory_of(chosen)
    for name, value in steps[first:]:
        if sum(memory.values()) <= room:
            break
        with_it = memory_of({**chosen, name: value})
        if sum(with_it.values()) < sum(memory.values()):
            chosen, memory = {**chosen, name: value}, with_it
    if sum(memory.values()) > room:
        return Fit(False, chosen, memory)
    for name in list(reversed(chosen))[: len(chosen) - first]:
        fewer = {other: value for other, value in chosen.items() if other != name}
        without = memory_of(fewer)
        if sum(without.values()) <= room:
            chosen, memory = fewer, without
    return Fit(True, chosen, memory)


@dataclass
class TrainingMemory:
    """{part: bytes on each GPU} of a preference training with other flags; what a visit takes is counted once for each way to run it."""

    model: PlannedModel
    args: TrainSettings
    known: dict[tuple[Any, ...], Sizes] = field(default_factory=dict)

    def __call__(self, flags: Mapping[str, Any], processes: int) -> dict[str, float]:
        args = replace(self.args, **flags)
        return training_memory(self.sizes(args), args, processes)

    def sizes(self, args: TrainSettings) -> Sizes:
        # a visit in parts of one candidate holds the same for any N
        args = replace(args, top_n=1) if args.micro_batch_size == 1 else args
        key = args.gradient_checkpointing, args.gradient_sum, args.micro_batch_size, args.lora_rank
        if key not in self.known:
            self.known[key] = count_training(self.model, args)
        return self.known[key]


@dataclass
class BaselineMemory:
    """The same of a baseline's training; smaller micro-batches are accumulated to the same batch."""

    model: PlannedModel
    args: BaselineSettings
    known: dict[tuple[Any, ...], BaselineSizes] = field(default_factory=dict)

    def __call__(self, flags: Mapping[str, Any], processes: int) -> dict[str, float]:
        args = replace(self.args, **flags)
        smaller = self.args.train_batch_size // args.train_batch_size
        args = replace(args, gradient_accumulation_steps=self.args.gradient_accumulation_steps * smaller)
        key = args.gradient_checkpointing, args.train_batch_size
        if key not in self.known:
            self.known[key] = count_baseline(self.model, args)
        return baseline_memory(self.known[key], args, processes)


def fit_sampling(stage: StagePlan, together: int, room: float) -> Fit:
    """Whether sampling fits, if need be with a smaller `--batch_size`; activations are in proportion to it."""
    if sum(stage.memory.values()) <= room:
        return Fit(True, {}, stage.memory)
    parts = stage.moments["denoising"]
    each = parts["activations"] / together
    fewer = int((room - parts["weights"]) // each)
    if fewer < 1:
        return Fit(False, {"batch_size": 1}, {**parts, "activations": each})
    return Fit(True, {"batch_size": fewer}, {**parts, "activations": fewer * each})
