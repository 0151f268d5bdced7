"""What a baseline's training takes: a micro-batch is encoded and run, and what else lies on a GPU is added up by arithmetic."""

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from dp2osr.backbones.loading import cast
from dp2osr.device import asked_precision
from dp2osr.flops import Cost, measure, norms_in_float32, weight_bytes, weights_of
from dp2osr.planning.hardware import Machine
from dp2osr.planning.models import fake_tensors
from dp2osr.planning.preference_cost import ADAM_BYTES
from dp2osr.planning.stages import PlannedModel, StagePlan, each_process, to_pretended_cpu
from dp2osr.training.baseline import CONTROLNET_FLAGS
from dp2osr.training.baseline_settings import BaselineSettings
from dp2osr.training.regression import Regression

WORKER_BYTES = 1e9  # of a loader's process, an assumption: torch, a photograph of 12 megapixels, the batches that wait


def baseline_controlnet(backbone: Any, args: BaselineSettings) -> torch.nn.Module:
    """A new ControlNet as `train_controlnet.py` makes it, in fp32, on the `meta` device."""
    with torch.device("meta"):
        return cast(backbone.new_controlnet(**{name: getattr(args, name) for name in CONTROLNET_FLAGS}), torch.float32)


@dataclass(frozen=True)
class BaselineSizes:
    """Bytes of the frozen backbone and of the text encoders, parameters of the ControlNet, bytes of a prompt's embedding, a micro-batch."""

    frozen: int
    text: int
    trained: int
    prompt_bytes: int
    micro_batch: Cost


def count_baseline(model: PlannedModel, args: BaselineSettings) -> BaselineSizes:
    """Run one micro-batch of whole crops on tensors without content; the backbone is taken to be frozen."""
    precision = asked_precision(args.mixed_precision)
    backbone, text = model.load(("vae", "denoiser"), precision), model.load(("text",), precision)
    controlnet = baseline_controlnet(backbone, args).requires_grad_(True).train()
    if args.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        backbone.denoiser.enable_gradient_checkpointing()
    count, side = args.train_batch_size, args.resolution
    with fake_tensors():
        networks = to_pretended_cpu(backbone, controlnet)
        encoders = to_pretended_cpu(text)
        prompt = text.encode_prompts([""])
        known = weights_of(networks)
        if args.gradient_accumulation_steps > 1:  # those of the micro-batches before are there already
            for parameter in controlnet.parameters():
                parameter.grad = torch.empty_like(parameter)
                known.append(parameter.grad)
        book: Any = SimpleNamespace(embed=lambda numbers: {name: torch.cat([tensor] * len(numbers)) for name, tensor in prompt.items()})
        metric = torch.eye(backbone.latent_channels)
        regression = Regression(backbone, controlnet, torch.nn.ModuleDict({"controlnet": controlnet}), book, metric)

        def micro_batch() -> None:
            with torch.no_grad():
                latents = backbone.encode_images(torch.rand(count, 3, side, side))
                control = backbone.prepare_control(torch.rand(count, 3, side, side))
            timesteps = backbone.draw_timesteps(count, torch.Generator(), **args.timestep_options())
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != "no"):
                loss = regression(latents, control, range(count), torch.randn_like(latents), timesteps, torch.ones(count))
            loss.backward()

        with norms_in_float32() if precision != "no" else nullcontext():
            cost = measure(micro_batch, known)
    each = sum(tensor.numel() * tensor.element_size() for tensor in prompt.values())
    trained = sum(parameter.numel() for parameter in controlnet.parameters())
    return BaselineSizes(weight_bytes(backbone.vae, backbone.denoiser), weight_bytes(*encoders), trained, each, cost)


def baseline_memory(sizes: BaselineSizes, args: BaselineSettings, processes: int) -> dict[str, float]:
    """{part: bytes on each GPU} in a micro-batch."""
    trained = 4 * sizes.trained
    return {
        "weights": sizes.frozen,
        "ControlNet": trained,
        "optimizer": ADAM_BYTES[args.use_8bit_adam] * sizes.trained,
        "mean of the weights": trained if args.use_ema else 0,
        "buckets of the gradients' sum": trained if processes > 1 else 0,
        "gradients of the micro-batches before": trained if args.gradient_accumulation_steps > 1 else 0,
        "activations, gradients": sizes.micro_batch.peak_bytes,
    }


def plan_baseline(model: PlannedModel, args: BaselineSettings, machine: Machine | None = None) -> StagePlan:
    """`train_controlnet.py` by its `BaselineSettings`: one micro-batch is run. Pictures of its validation are not counted.

    With prompts of photographs the cache of embeddings may be full; then the text encoders stay (`training.text.PromptBook`).
    """
    machine, sizes = machine or Machine(1), count_baseline(model, args)
    trained, accumulated = sizes.trained, args.gradient_accumulation_steps
    checkpoint = (4 + ADAM_BYTES[args.use_8bit_adam] + (4 if args.use_ema else 0)) * trained
    memory = baseline_memory(sizes, args, machine.num_gpus)
    moments = {"training": memory}
    if args.prompt_file:
        moments["training, more prompts than the cache holds"] = {**memory, "text encoders": sizes.text}
    embeddings = args.text_cache_gb * 1e9 if args.prompt_file else 2 * sizes.prompt_bytes
    host = each_process(machine.processes_a_node, {"embeddings of prompts, at most": embeddings})
    host["loaders"] = WORKER_BYTES * machine.processes_a_node * args.dataloader_num_workers
    host["resume from a mapped checkpoint"] = checkpoint
    return StagePlan(
        name="baseline",
        amount=f"{args.max_train_steps:,} steps of {args.train_batch_size} × {accumulated} × {machine.num_gpus} samples, "
        f"{trained / 1e6:,.1f} M parameters",
        flops=args.max_train_steps * accumulated * machine.num_gpus * sizes.micro_batch.flops,
        moments=moments,
        files={"checkpoints": (args.checkpoints_total_limit + 1) * checkpoint, "ControlNet": (2 if args.save_fp16 else 4) * trained},
        link_seconds=args.max_train_steps * machine.sum_seconds(4 * trained),
        host=host,
        work="training",
    )
