"""Gigabytes by which a process grows in a visit of each of several trainings and in a micro-batch of a baseline, as JSON.

python tests/measured_memory.py '[[{training}, ...], {baseline}]' MODEL CONTROLNET
"""

import ctypes
import json
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import torch

from dp2osr.backbones import load_backbone
from dp2osr.preference.groups import PreferenceGroup
from dp2osr.training.adapters import WithoutAdapters, add_adapters
from dp2osr.training.baseline_settings import BaselineSettings
from dp2osr.training.objective import GroupObjective
from dp2osr.training.regression import Regression
from dp2osr.training.settings import TrainSettings

LIBC, M_MMAP_THRESHOLD = ctypes.CDLL(None), -3
# what is freed goes back to the system at once, so that its count is that of what is alive
assert LIBC.mallopt(M_MMAP_THRESHOLD, 65536)
(every, baseline), model, path = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)


def gigabytes(entry):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry)) / 1e6


backbone = load_backbone(model)
reference = backbone.load_controlnet(path, torch.float32).requires_grad_(False)
accelerator = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False), backward=lambda loss: loss.backward())
prompt = backbone.encode_prompts([""])


def growth_of(function, size):
    function(1)  # what a process takes once, whatever the batch
    LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = gigabytes("VmRSS")
    function(size)
    return gigabytes("VmHWM") - before


def growth(args):
    if args.lora_rank:
        policy = add_adapters(deepcopy(reference), args.lora_rank).train()
        frozen = WithoutAdapters(policy)
    else:
        policy, frozen = deepcopy(reference).requires_grad_(True).train(), reference
    for network in (policy, backbone.denoiser):
        network.enable_gradient_checkpointing() if args.gradient_checkpointing else network.disable_gradient_checkpointing()
    objective = GroupObjective(args, accelerator, backbone, policy, frozen)

    def visit(top_n):
        latents, control = torch.randn(2 * top_n, 4, 32, 32), torch.rand(1, 3, 128, 128)
        objective.visit(0, PreferenceGroup("x", list(range(2 * top_n)), latents, control, prompt, torch.rand(top_n, top_n)), 1.0)
        for parameter in policy.parameters():
            parameter.grad = None

    return growth_of(visit, args.top_n)


def growth_of_baseline(args):
    for network in (backbone.denoiser,):
        network.disable_gradient_checkpointing()
    names = ("conditioning_channels", "num_double_layers", "num_single_layers")
    controlnet = backbone.new_controlnet(**{name: getattr(args, name) for name in names}).float().requires_grad_(True).train()
    book = SimpleNamespace(embed=lambda numbers: {name: torch.cat([tensor] * len(numbers)) for name, tensor in prompt.items()})
    metric = torch.eye(backbone.latent_channels)
    regression = Regression(backbone, controlnet, torch.nn.ModuleDict({"controlnet": controlnet}), book, metric)

    def micro_batch(count):
        with torch.no_grad():
            latents = backbone.encode_images(torch.rand(count, 3, args.resolution, args.resolution))
            control = backbone.prepare_control(torch.rand(count, 3, args.resolution, args.resolution))
        timesteps = backbone.draw_timesteps(count, torch.Generator(), **args.timestep_options())
        regression(latents, control, range(count), torch.randn_like(latents), timesteps, torch.ones(count)).backward()
        for parameter in controlnet.parameters():
            parameter.grad = None

    return growth_of(micro_batch, args.train_batch_size)


print(json.dumps([*(growth(TrainSettings(**flags)) for flags in every), growth_of_baseline(BaselineSettings(**baseline))]))
