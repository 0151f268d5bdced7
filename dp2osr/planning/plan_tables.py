"""A plan as it is printed: hours and disk of the stages, bytes by part, and what fits which card."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from dp2osr.markdown import table
from dp2osr.planning.baseline_cost import plan_baseline
from dp2osr.planning.fitting import BASELINE, FULL_TRAINING, WITH_LORA, BaselineMemory, Fit, TrainingMemory, fit, fit_sampling
from dp2osr.planning.hardware import FULL, LINK_SHARE, Machine
from dp2osr.planning.preference_cost import plan_training, plan_validation
from dp2osr.planning.stages import (
    PlannedModel,
    StagePlan,
    assumed_utilisation,
    implied_utilisation,
    plan_sampling,
    plan_scoring,
)
from dp2osr.training.baseline_settings import BaselineSettings
from dp2osr.training.settings import TrainSettings

GIGA = 1e9


def row(stage: StagePlan, what: str, machine: Machine, share: float) -> dict[str, str]:
    """A stage's row of the plan."""
    peak, hours = sum(stage.memory.values()), stage.hours(machine, share)
    return {
        "stage": stage.name + ("" if peak <= machine.room else " **does not fit**"),
        "what": what,
        "PFLOP": f"{stage.flops / 1e15:,.4g}",
        "share of the peak": f"{share:.3g}",
        "GPU-hours": f"{hours * machine.num_gpus:,.4g}",
        "hours": f"{hours:,.3g}",
        "sums over GPUs": f"{stage.link_seconds / 36 / hours:.1f} %" if stage.link_seconds else "",
        "GB a GPU": f"{peak / GIGA:.1f}",
        "disk, GB": f"{stage.disk / GIGA:,.3g}",
    }


def plan_rows(stages: Iterable[StagePlan], machine: Machine, shares: Mapping[str, float]) -> str:
    """Markdown: a row a stage, sampling by the paper's share and by the batched one; `shares` of a GPU's peak, by kind of work."""
    rows = []
    for stage in stages:
        if stage.name == "sample":
            rows.append(row(stage, f"{stage.amount}; as the paper's hours", machine, shares["paper"]))
        rows.append(row(stage, stage.amount, machine, shares[stage.work]))
    return table(rows[0], (each.values() for each in rows))


def parts(sizes: Mapping[str, float]) -> str:
    """{part: bytes} as GB in one line, without what is nothing."""
    return ", ".join(f"{name} {size / GIGA:.2f}" for name, size in sizes.items() if size)


def print_parts(stages: Sequence[StagePlan], machine: Machine, disk_after: str) -> None:
    """Bytes by part: GPU, host and disk of each stage."""
    for stage in stages:
        print()
        for moment, sizes in stage.moments.items():
            print(f"{stage.name}, GB a GPU, {moment}: {parts(sizes)} = {sum(sizes.values()) / GIGA:.1f}")
        if stage.host:
            print(f"{stage.name}, host GB a node: {parts(stage.host)} = {sum(stage.host.values()) / GIGA:.1f}")
        mapped = stage.host.get("resume from a mapped checkpoint")
        if mapped and machine.processes_a_node > 1:
            read = mapped * machine.processes_a_node
            print(f"  read by every process instead of mapped, the checkpoint would take {read / GIGA:.1f}")
        if stage.files:
            print(f"{stage.name}, disk GB: {parts(stage.files)}" + (disk_after if stage.name == "sample" else ""))


def print_plan(
    model: PlannedModel,
    machine: Machine,
    count: int,
    training: TrainSettings,
    baseline: BaselineSettings | None,
    scoring: tuple[float, str],
    metrics: Sequence[str],
    held_out: int,
    utilisation: Mapping[str, float | None],
) -> None:
    """Plan all stages and print them.

    Args:
        scoring: of `scoring_seconds` for the `metrics`.
        held_out: images that validation samples, 0 for none.
        utilisation: share of a GPU's peak in "sampling" and "training"; None for the assumed one.
    """
    seconds, source = scoring
    implied, paper = implied_utilisation(model.kind)
    shares = {"paper": implied} | {work: share or assumed_utilisation(model.kind, work) for work, share in utilisation.items()}
    stages = [plan_baseline(model, baseline, machine)] if baseline else []
    sampling = plan_sampling(model, count, machine.processes_a_node)
    train = plan_training(model, training, machine)
    stages += [sampling, plan_scoring(model, count, metrics, seconds, machine.processes_a_node), train]
    if held_out:
        stages.append(plan_validation(model, training, train, held_out, seconds, machine))
    nodes = f", {machine.nodes} nodes at {machine.network:g} Gb/s" if machine.nodes > 1 else ""
    print(f"{machine.num_gpus} GPUs of {machine.gpu_memory:g} GB and {machine.tflops:g} TFLOPS{nodes}\n")
    print(plan_rows(stages, machine, shares))
    kept = min(2 * training.top_n / model.args.num_candidates, 1)
    pruned = sampling.files["latents"] * kept + sampling.disk - sampling.files["latents"]
    print_parts(stages, machine, f"; {pruned / GIGA:.1f} in all when the 2N latents that are trained on are left")
    paper_run = f"{paper['sampling_hours']} h of sampling {paper['candidates']:,} candidates on {paper['gpus']} × {paper['tflops']} TFLOPS"
    print(
        f"\nThe paper's {paper_run} mean {implied:.3f} of the FLOPs counted here; its sampling was probably not batched.\n"
        f"Batched sampling is taken to have {shares['sampling']:g} of the peak, training {shares['training']:g}: "
        "assumptions, --utilisation and --training_utilisation set them.\n"
        f"Scoring takes {seconds:.2f} GPU-seconds for 512 × 512 pixels ({source}), and decoding.\n"
        f"Sums over GPUs: a ring at {LINK_SHARE:.0%} of {machine.interconnect:g} GB/s, between nodes {machine.network:g} Gb/s; "
        "they are not hidden behind the backward pass.\n"
        f"Validation: {f'{held_out} images' if held_out else 'none, train.yaml names no held-out images'}.\n"
        "Not counted: the tagger, PNGs, other metrics' memory, a scheduler that predicts more than once a step, loading.\n"
        f"All images are taken to have the first one's size. A stage fits {machine.room / GIGA:.1f} GB of a card's memory ({FULL:.0%})."
    )


def print_fits(
    model: PlannedModel, training: TrainSettings, baseline: BaselineSettings | None, machines: Sequence[tuple[int, float]]
) -> None:
    """Print what fits each (GPUs, GB of one), with the flags that it takes."""
    sampling = plan_sampling(model, 1)
    scoring = plan_scoring(model, 1)
    together = min(model.args.num_candidates, model.args.batch_size)
    of_training, of_baseline = TrainingMemory(model, training), BaselineMemory(model, baseline) if baseline else None
    rows = []
    for gpus, size in machines:
        room = Machine(gpus, size).room
        stages: dict[str, Fit] = {}
        if of_baseline:
            stages["baseline"] = fit(partial(of_baseline, processes=gpus), BASELINE, room)
        stages["sample"] = fit_sampling(sampling, together, room)
        stages["score"] = Fit(sum(scoring.memory.values()) <= room, {}, scoring.memory)
        steps = tuple(step for step in FULL_TRAINING if gpus > 1 or step[0] != "shard_optimizer")
        stages["train, whole ControlNet"] = fit(partial(of_training, processes=gpus), steps, room)
        stages["train, LoRA"] = fit(partial(of_training, processes=gpus), WITH_LORA, room, first=1)
        rows.append({"GPUs": gpus, "of GB": int(size)} | {f"{name}, GB": found.cell() for name, found in stages.items()})
    print(table(rows[0], (each.values() for each in rows)))
    print(
        f"\nGB at the peak, with the settings' flags and those named; {FULL:.0%} of what CUDA reports of a card may be used.\n"
        "--gradient_checkpointing, --micro_batch_size and --shard_optimizer cost time, --gradient_sum fp32 the equality of weights over\n"
        "any number of GPUs, 8-bit Adam and a quantised backbone other numbers. Validation is not in this table: a plan shows it."
    )
