"""What preference training and its validation take: a visit of a group is run, and what else lies on a GPU is added up by arithmetic."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from dp2osr.device import asked_precision
from dp2osr.errors import UserError
from dp2osr.flops import Cost, measure, norms_in_float32, weight_bytes, weights_of
from dp2osr.planning.hardware import Machine
from dp2osr.planning.models import fake_tensors
from dp2osr.planning.stages import PlannedModel, StagePlan, each_process, plan_sampling, plan_scoring, to_pretended_cpu
from dp2osr.preference.groups import PreferenceGroup
from dp2osr.sampling.settings import LEVERS_OFF
from dp2osr.training.checks import check_options, check_processes
from dp2osr.training.gradient import SUM_DTYPES
from dp2osr.training.objective import GroupObjective
from dp2osr.training.reference import networks_of
from dp2osr.training.settings import TrainSettings

ADAM_BYTES = {False: 8, True: 2 * (1 + 4 / 256)}  # of a trained parameter: two float32 moments; two of 8 bits, a float32 for 256 of them
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # of a weight of a linear layer; nf4 has a float32 for 64 of them


@dataclass(frozen=True)
class Sizes:
    """What is counted once for a training's settings: numbers and bytes of its networks, and what a visit takes beside them.

    Args:
        frozen: bytes of the backbone's parts.
        linear: weights of linear layers in the denoiser, and of the largest one.
        trained: parameters.
        policy, reference: bytes; the reference as it is held under the precision, 0 where it is the policy without its adapters.
    """

    frozen: int
    linear: int
    largest: int
    itemsize: int
    trained: int
    policy: int
    reference: int
    visit: Cost


def count_training(model: PlannedModel, args: TrainSettings) -> Sizes:
    """Run one visit of a group by its `TrainSettings` on tensors without content."""
    precision = asked_precision(args.mixed_precision)
    text = model.load(("text",), precision)
    backbone = model.load(("vae", "denoiser"), precision)
    policy, reference = networks_of(model.controlnet(backbone, torch.float32), args, backbone)
    with fake_tensors():
        networks = to_pretended_cpu(backbone, *(network for network in (policy, reference) if isinstance(network, torch.nn.Module)))
        to_pretended_cpu(text)
        group = blank_group(model, args, text.encode_prompts([""]))
        accelerator: Any = SimpleNamespace(
            autocast=lambda: torch.autocast("cpu", torch.bfloat16, enabled=precision != "no"),
            backward=lambda loss: loss.backward(),
        )
        objective = GroupObjective(args, accelerator, backbone, policy, reference)
        known = weights_of(networks)
        if args.gradient_sum == "fp32":  # gradients are added up where they are: those of the visits before are there already
            for parameter in policy.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
            known += [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
        with norms_in_float32() if precision != "no" else nullcontext():
            visit = measure(lambda: objective.visit(0, group, 1.0), known)
    linear = [module.weight.numel() for module in backbone.denoiser.modules() if isinstance(module, torch.nn.Linear)]
    return Sizes(
        frozen=weight_bytes(backbone.vae, backbone.denoiser),
        linear=sum(linear),
        largest=max(linear),
        itemsize=backbone.dtype.itemsize,
        trained=sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad),
        policy=weight_bytes(policy),
        reference=0 if args.lora_rank else weight_bytes(reference),
        visit=visit,
    )


def blank_group(model: PlannedModel, args: TrainSettings, prompt: dict[str, torch.Tensor]) -> PreferenceGroup:
    count = 2 * args.top_n
    latents, control = torch.randn(count, *model.latent_shape), torch.rand(model.image_shape)
    return PreferenceGroup("x", np.arange(count), latents, control, prompt, torch.rand(args.top_n, args.top_n), torch.randn(count))


def frozen_bytes(sizes: Sizes, how: str | None) -> float:
    """Bytes of the backbone with its linear layers held as `--quantize_backbone` says, and the largest of them as it is computed with."""
    if how is None:
        return sizes.frozen
    return sizes.frozen - sizes.linear * (sizes.itemsize - QUANTIZED_BYTES[how]) + sizes.largest * sizes.itemsize


def training_memory(sizes: Sizes, args: TrainSettings, processes: int) -> dict[str, float]:
    """{part: bytes on each GPU} in a visit of a group."""
    optimizer = ADAM_BYTES[args.use_8bit_adam] * sizes.trained
    added = SUM_DTYPES[args.gradient_sum].itemsize * sizes.trained
    once = processes >= args.groups_per_step and args.timesteps_per_group == 1 and not args.micro_batch_size
    return {
        "weights": frozen_bytes(sizes, args.quantize_backbone),
        "policy": sizes.policy,
        "reference": sizes.reference,
        "optimizer": optimizer / processes if args.shard_optimizer else optimizer,
        # of the backward passes before; where a process makes one alone, its own are all
        "sum of gradients": 0 if once and args.gradient_sum == "fp64" else added,
        "activations, gradients": sizes.visit.peak_bytes,
    }


def check_training(model: PlannedModel, args: TrainSettings, processes: int) -> None:
    """Raise `UserError` for flags that the trainer refuses."""
    check_options(args)
    sampled = model.args.num_candidates
    if args.top_n > min(args.num_candidates or sampled, sampled) // 2 or (args.num_candidates or 0) > sampled:
        raise UserError(f"--top_n {args.top_n}, --num_candidates {args.num_candidates}: {sampled} candidates an image are sampled")
    check_processes(args, processes)


def plan_training(model: PlannedModel, args: TrainSettings, machine: Machine | None = None) -> StagePlan:
    """`train_*_dpo.py` by its `TrainSettings`: one visit of a group is run. Validation is planned by `plan_validation`.

    Raises:
        UserError: flags that the trainer refuses.
    """
    machine = machine or Machine(1)
    processes = machine.num_gpus
    check_training(model, args, processes)
    sizes = count_training(model, args)
    groups: float = math.ceil(args.groups_per_step / processes) * processes  # the last round of a step keeps all waiting
    count = 2 * args.top_n
    groups *= math.ceil(count / max(1, processes // args.groups_per_step)) / count  # or who has the largest share of a group
    visits = args.max_train_steps * groups * args.timesteps_per_group
    summed = machine.sum_seconds(SUM_DTYPES[args.gradient_sum].itemsize * sizes.trained)
    shared = machine.gather_seconds(4 * sizes.trained) if args.shard_optimizer else 0
    checkpoint = sizes.policy + ADAM_BYTES[args.use_8bit_adam] * sizes.trained
    host = each_process(machine.processes_a_node, {}) | {"resume from a mapped checkpoint": checkpoint}
    if args.shard_optimizer:
        host["optimizer of all processes at a checkpoint, on the first"] = checkpoint - sizes.policy
    if sizes.reference < sizes.policy and sizes.reference:
        host["reference in fp32 for distances, on the first"] = sizes.policy
    return StagePlan(
        name="train",
        amount=f"{args.max_train_steps:,} steps of {args.groups_per_step} groups, N = {args.top_n}, "
        f"{sizes.trained / 1e6:,.1f} M parameters",
        flops=visits * sizes.visit.flops,
        moments={"training": training_memory(sizes, args, processes)},
        files={"checkpoints": (args.checkpoints_total_limit + 1) * checkpoint, "policy, best policy": 2 * sizes.policy},
        link_seconds=args.max_train_steps * (summed + shared),
        host=host,
        work="training",
    )


def plan_validation(
    model: PlannedModel, args: TrainSettings, training: StagePlan, images: int, seconds: float, machine: Machine | None = None
) -> StagePlan:
    """Validations of a training, which all ranks share; the base's own samples are made once.

    Args:
        training: its plan, whose networks and optimizer lie there meanwhile.
        images: held-out images.
        seconds: GPU-seconds that scoring a candidate of 512 × 512 takes.
    """
    machine = machine or Machine(1)
    asked = {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale", "scheduler")}
    together = {"num_candidates": args.validation_candidates, "batch_size": args.validation_candidates}
    like = model.like(**together, **LEVERS_OFF, **{name: value for name, value in asked.items() if value is not None})
    times = args.max_train_steps // args.validation_steps + 2  # the base, and the policy at step 0
    rounds = times * math.ceil(images / machine.num_gpus) * machine.num_gpus  # the last round of images keeps all waiting
    sampling = plan_sampling(like, rounds)
    scoring = plan_scoring(like, rounds, seconds=seconds)
    there = {name: size for name, size in training.memory.items() if name not in ("sum of gradients", "activations, gradients")}
    there["policy in 16 bits"] = sampling.moments["denoising"]["weights"] - training_free_weights(like)
    return StagePlan(
        name="validate",
        amount=f"{times} times {images} images × {args.validation_candidates}, {like.args.num_inference_steps} steps",
        flops=sampling.flops + scoring.flops,
        moments={
            "sampling": there | {"activations": sampling.moments["denoising"]["activations"]},
            "decoding": there | {"activations": scoring.memory["activations"]},
        },
        seconds=scoring.seconds,
        host=each_process(machine.processes_a_node, {}),
    )


def training_free_weights(model: PlannedModel) -> int:
    """Bytes of the backbone's denoiser and autoencoder in the precision of sampling."""
    backbone = model.load(("vae", "denoiser"), asked_precision(model.args.mixed_precision))
    return weight_bytes(backbone.vae, backbone.denoiser)
