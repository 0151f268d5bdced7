"""Settings of a training that do not go together, or do not fit what is there."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from dp2osr.backbones.kinds import not_read_by
from dp2osr.backbones.quantization import check_quantization
from dp2osr.cli import field_names, refuse_ignored
from dp2osr.errors import UserError, advice
from dp2osr.hub.settings import check_hub_flags, without_hub
from dp2osr.provenance import legacy_weights_hash, weights_hash
from dp2osr.sharing import Launch
from dp2osr.training.settings import PAPERS_LOSS, TrainSettings, ValidationSettings

if TYPE_CHECKING:
    from dp2osr.preference.groups import PreferenceGroups
    from dp2osr.sampling.store import CandidateStore
    from dp2osr.training.baseline_settings import BaselineSettings
    from dp2osr.training.objective import GroupObjective


def check_options(args: TrainSettings) -> None:
    """Raise `UserError` for flags that do not go together."""
    low, high = args.timestep_range
    if not 0 <= low < high <= 1:
        raise UserError(f"--timestep_range {low} {high}: must be 0 <= LOW < HIGH <= 1")
    if args.label_smoothing >= 0.5 or args.label_smoothing and args.loss != "sigmoid":
        raise UserError(f"--label_smoothing {args.label_smoothing}: must be below 0.5, and is of --loss sigmoid only")
    pairs, whole = args.top_n**2, args.loss == "plackett_luce" or not weighs_pairs(args.loss)
    if args.pairs_per_group > pairs or args.pairs_per_group and whole:
        told = f"a group has {pairs} pairs" + f", and {args.loss} takes them whole" * whole
        raise UserError(f"--pairs_per_group {args.pairs_per_group}: {told}")
    if args.sft_weight and not weighs_pairs(args.loss):
        raise UserError(f"--sft_weight {args.sft_weight}: goes by the weights of pairs, and --loss {args.loss} has none; leave it out")
    if args.reference_cache and reads_of(args.loss, "distances"):
        told = f"keeps the reference's errors alone, and --loss {args.loss} needs its predictions; leave it out"
        raise UserError(f"--reference_cache: {told}")
    if args.lora_rank and args.reference_controlnet_model_name_or_path:
        raise UserError(
            "--lora_rank: the reference is the policy without its adapters; leave --reference_controlnet_model_name_or_path out"
        )
    if args.validation_steps and bool(args.validation_image_path) != bool(args.validation_gt_path):
        raise UserError("--validation_image_path and --validation_gt_path: give both, or neither")
    check_schedule(args)
    check_tracker(args.report_to)


def weighs_pairs(loss: str) -> bool:
    """Whether a loss reads the weights of pairs."""
    return loss == PAPERS_LOSS or reads_of(loss, "weights")


def reads_of(loss: str, name: str) -> bool:
    """Whether a loss reads `name`."""
    from dp2osr.preference.loss import reads  # here: --help needs no torch

    return name in reads(loss)


def check_processes(args: TrainSettings, processes: int) -> None:
    """Raise `UserError` for more processes than a step has candidates."""
    most = args.groups_per_step * 2 * args.top_n
    if processes > most:
        raise UserError(
            f"--groups_per_step {args.groups_per_step}: a step has {most} candidates, fewer than the {processes} processes; "
            f"start at most {most}, or give more groups"
        )


def check_ranks(args: TrainSettings, store: CandidateStore, groups: str) -> None:
    """Raise `UserError` on a process that has other settings, data, models or code than the first one; `groups`: their fingerprint."""
    launch, start = Launch(), args.controlnet_model_name_or_path
    with launch.first("hashes"):
        hashes = {"start": weights_hash(start), "reference": weights_hash(args.reference_controlnet_model_name_or_path or start)}
    told = {name: value for name, value in without_hub(args).items() if name not in ELSEWHERE}
    launch.agree("training", {**told, **hashes, "groups": groups, "model": store.settings["model_hash"]})


def check_schedule(args: TrainSettings | BaselineSettings) -> None:
    """Raise `UserError` for a rate that the schedule cannot lower to its own end."""
    if args.lr_scheduler == "polynomial" and args.learning_rate <= 1e-7:
        raise UserError(
            f"--learning_rate {args.learning_rate:g}: a polynomial schedule ends at 1e-7; take a higher rate, or another schedule"
        )


def check_model(args: TrainSettings, store: CandidateStore) -> None:
    """Raise `UserError` unless the candidates of `store` are latents of the base model, and of the files of it, that `args` name."""
    settings, files = store.settings, store.settings.get("model_files", {})
    model, vae = args.pretrained_model_name_or_path, args.pretrained_vae_model_name_or_path
    found = {"variant": files.get("variant"), "revision": files.get("revision"), "autoencoder": settings.get("vae_hash")}
    given = {"variant": args.variant, "revision": args.revision, "autoencoder": weights_hash(vae, part="vae") if vae else None}
    if vae and found["autoencoder"] != given["autoencoder"] and found["autoencoder"] == legacy_weights_hash(vae):
        given["autoencoder"] = found["autoencoder"]
    here = weights_hash(model, args.variant, args.revision)
    if settings["model_hash"] == here and (not args.variant or here != weights_hash(model, None, args.revision)):
        given |= {"variant": found["variant"], "revision": found["revision"]}  # the very same weights, whatever they were called by
    elif settings["model_hash"] not in (here, legacy_weights_hash(model)) and (args.variant, args.revision) == (
        found["variant"],
        found["revision"],
    ):
        raise UserError(
            f"{args.candidates_dir}: was sampled with the weights of {settings['model']}, which are not those of {model}; "
            "latents of another model cannot be trained on"
        )
    for name, value in found.items():
        if given[name] != value:
            raise UserError(
                f"{args.candidates_dir}: was sampled with {name} {value}, not {given[name]}; give the flags that it was sampled with"
            )


def check_neutral_start(objective: GroupObjective, groups: PreferenceGroups, record: Mapping[str, Any]) -> None:
    """That policy and reference are one at step 0: the margins are 0, the loss is that of zero gaps (the paper's: ln 2 × the mean weight).

    In 16 bits it is a warning: kernels may differ between a pass with and one without gradient, and β multiplies their rounding.

    Args:
        groups: those of the step.
        record: of the step, with `loss` and `margin`.

    Raises:
        RuntimeError: they are not.
    """
    if objective.cache and objective.cache.hits:  # errors of another run: the same but for rounding, which β multiplies
        return
    import torch

    problem = ""
    if not objective.args.pairs_per_group:
        weights, advantages = (torch.from_numpy(of_groups).float() for of_groups in (groups.weights, groups.advantages))
        zeros = torch.zeros_like(advantages[0])
        losses = [objective.loss(zeros, *of_group, zeros) for of_group in zip(weights, advantages, strict=True)]
        expected = float(sum(losses)) / weights.numel()
        if not math.isclose(record["loss"], expected, rel_tol=1e-4, abs_tol=1e-6):
            problem = f"the loss is {record['loss']}, not that of zero gaps, {expected}"
    if abs(record["margin"]) > 1e-3:
        problem = f"the mean margin is {record['margin']}, not 0"
    if problem and objective.accelerator.mixed_precision == "no":
        raise RuntimeError(f"step 0: {problem}: policy and reference differ before training")
    if problem and objective.accelerator.is_main_process:
        reason = "the 16 bits of --mixed_precision round them differently (see docs/train.md)"
        print(f"\nwarning: step 0: {problem}, though policy and reference are one; {reason}", file=sys.stderr)


def check_8_bits(asked: bool) -> None:
    """Raise `UserError` where `--use_8bit_adam` is asked for and its package is not installed."""
    if asked and not importlib.util.find_spec("bitsandbytes"):
        raise UserError("--use_8bit_adam: the package bitsandbytes is not installed; pip install bitsandbytes, or leave the flag out")


def check_libraries(args: TrainSettings) -> None:
    """Raise `UserError` where a package that the flags need is not installed."""
    check_8_bits(args.use_8bit_adam)
    check_quantization(args.quantize_backbone)


def memory_flags(args: TrainSettings, processes: int) -> str:
    """What to set where memory does not suffice, and is not set."""
    from dp2osr.device import asked_precision  # here: --help needs no torch

    size, in_fp32 = args.micro_batch_size or 2 * args.top_n, asked_precision(args.mixed_precision) == "no"
    first = ["--gradient_checkpointing"] * (not args.gradient_checkpointing) + [f"--micro_batch_size {size // 2}"] * (size > 1)
    first += ["--shard_optimizer"] * (processes > 1 and not args.shard_optimizer)
    other = ["--use_8bit_adam"] * (not args.use_8bit_adam) + ["--lora_rank 16"] * (not args.lora_rank)
    other += ["--quantize_backbone nf4"] * (args.quantize_backbone != "nf4") + ["--mixed_precision bf16"] * in_fp32
    return advice(first, other)


# Settings that may differ between the nodes of one run, where its files lie in other places.
ELSEWHERE = (
    "config", "output_dir", "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "tokenizer_name", "reference_cache",
    "controlnet_model_name_or_path", "reference_controlnet_model_name_or_path", "candidates_dir", "scores", "reward_config",
    "validation_image_path", "validation_gt_path", "validation_prompt_file",
)  # fmt: skip

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}  # packages, one of which it needs


def check_tracker(name: str) -> None:
    """Raise `UserError` where the package of a tracker is not installed."""
    packages = TRACKERS.get(name, ())
    if packages and not any(importlib.util.find_spec(package) for package in packages):
        raise UserError(f"--report_to {name}: the package {name} is not installed; pip install {name}, or give --report_to none")


OF_VALIDATION = tuple(name for name in field_names(ValidationSettings) if name not in ("validation_image_path", "validation_steps"))


def check_given(args: TrainSettings, given: Container[str]) -> None:
    """Raise `UserError` where a flag of a training would do nothing beside the others; `given`: of `dp2osr.cli.given`."""
    if not args.validation_image_path:
        refuse_ignored(given, OF_VALIDATION + ("validation_steps",) * bool(args.validation_steps), "without --validation_image_path")
    elif not args.validation_steps:
        refuse_ignored(given, ("validation_image_path", *OF_VALIDATION), "with --validation_steps 0")
    elif not args.collapse_patience:
        refuse_ignored(given, ("on_collapse",), "with --collapse_patience 0")
    if not weighs_pairs(args.loss):
        refuse_ignored(given, ("weighting",), f"with --loss {args.loss}, which weighs candidates by their advantages")
    if args.lr_scheduler == "constant" and args.lr_warmup_steps:
        refuse_ignored(given, ("lr_warmup_steps",), "with --lr_scheduler constant; take constant_with_warmup")
    for other, own in not_read_by(args.backbone).items():
        refuse_ignored(given, own, f"with a base model of {args.backbone}: it is of {other}")
    if args.timestep_sampling == "uniform":
        refuse_ignored(given, ("logit_mean", "logit_std"), "with --timestep_sampling uniform")
    check_hub_flags(args, given)
