"""The plan of a run against what the same code takes when it runs: FLOPs, bytes on disk, memory."""

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_one_clear_line, run_program
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dp2osr.backbones import load_backbone
from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.flops import CPU_ATTENTION, measure, norms_in_float32
from dp2osr.planning.models import fake_tensors, read_published
from dp2osr.planning.stages import PlannedModel, implied_utilisation, plan_sampling, plan_scoring, plan_training, shard
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.seeds import candidate_generator
from dp2osr.sampling.settings import GenerateSettings


def sampling_args(kind, *more):
    words = [*kind.model_flags, "--image_path", "lr", "--output_dir", "out", "--num_candidates", "4", *map(str, more)]
    return parse(GenerateSettings, words)


def training_args(kind, *more):
    words = [*kind.model_flags, "--candidates_dir", "c", "--output_dir", "out", *map(str, more)]
    return kind.training_settings(words)


def test_the_peak_is_what_is_alive_at_once_and_flops_are_two_a_multiply_add():
    def work():
        first = torch.empty(1000)
        second = first + 1
        del first
        third = torch.cat([second, second])
        del second
        return third.view(40, 50) @ torch.empty(50, 3)

    with fake_tensors():
        known = torch.empty(10**6)
        cost = measure(lambda: (work(), known.view(10, -1)), [known])
    assert cost.flops == 2 * 40 * 50 * 3
    assert cost.peak_bytes == 4 * 3000  # second and third; 2000 + 150 + 120 later


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_flops_of_sampling_are_those_of_the_sampling_loop(kind, guidance):
    args = sampling_args(kind, "--num_inference_steps", 3, "--guidance_scale", guidance, "--batch_size", 2)
    stage = plan_sampling(PlannedModel(args, (40, 32)), num_images=5)
    backbone = load_backbone(kind.model)
    controlnet = backbone.load_controlnet(kind.controlnet)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        image = torch.rand(1, 3, 128, 160)
        prompt, control = backbone.encode_prompts([""]), backbone.prepare_control(image)
        for _ in range(2):
            generators = [candidate_generator(0, "x", m) for m in range(2)]
            settings = LoopSettings(3, guidance, backbone.default_scheduler)
            backbone.sample(controlnet, control, prompt, prompt, generators, (4, 32, 40), settings)
    assert stage.flops == pytest.approx(5 * counter.get_total_flops(), rel=0.04)  # SD2 embeds its control once an image, not in every step
    assert stage.disk == 5 * (4 * 4 * 32 * 40 * 2 + sum(4 * tensor.numel() for tensor in prompt.values()))


MEASURE = """
import ctypes, json, sys
from pathlib import Path
import torch
from types import SimpleNamespace
from copy import deepcopy
from dp2osr.backbones import load_backbone
from dp2osr.preference.groups import PreferenceGroup
from dp2osr.training.objective import GroupObjective
from dp2osr.training.settings import TrainSettings
flags, model, path = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)

def gigabytes(entry):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry)) / 1e6

args = TrainSettings(**flags)
backbone = load_backbone(model)
reference = backbone.load_controlnet(path, torch.float32).requires_grad_(False)
policy = deepcopy(reference).requires_grad_(True).train()
if args.gradient_checkpointing:
    policy.enable_gradient_checkpointing()
    backbone.denoiser.enable_gradient_checkpointing()
accelerator = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False), backward=lambda loss: loss.backward())
objective = GroupObjective(args, accelerator, backbone, policy, reference)
prompt = backbone.encode_prompts([""])

def visit(top_n):
    latents, control = torch.randn(2 * top_n, 4, 32, 32), torch.rand(1, 3, 128, 128)
    objective.visit(0, PreferenceGroup("x", list(range(2 * top_n)), latents, control, prompt, torch.rand(top_n, top_n)), 1.0)
    for parameter in policy.parameters():
        parameter.grad = None

visit(1)  # what a process takes once, whatever the batch
ctypes.CDLL("libc.so.6").malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = gigabytes("VmRSS")
visit(args.top_n)
print(gigabytes("VmHWM") - before)
"""


def test_attention_is_counted_and_keeps_no_matrix():
    with fake_tensors():
        query, key, value = (torch.empty(2, 3, 100, 16, requires_grad=True) for _ in range(3))
        forward = measure(lambda: F.scaled_dot_product_attention(query, key, value), [query, key, value])
        both = measure(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward(), [query, key, value])
    assert forward.flops == 4 * 2 * 3 * 100 * 100 * 16
    assert both.flops == 3.5 * forward.flops  # the backward pass makes the matrix again
    assert forward.peak_bytes < 2 * 3 * 100 * 100 * 4


def test_norms_are_kept_as_a_gpus_autocast_keeps_them():
    with fake_tensors(), norms_in_float32():
        image, weight = torch.empty(2, 8, 4, 4, dtype=torch.bfloat16), torch.empty(8, dtype=torch.bfloat16)
        assert torch.nn.GroupNorm(2, 8)(image).dtype == F.layer_norm(weight, (8,), weight).dtype == torch.float32


def memory_is_readable():
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return "VmHWM" in Path("/proc/self/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not memory_is_readable(), reason="no peak of this process's memory in /proc")
@pytest.mark.parametrize("more", [[], ["--gradient_checkpointing"]], ids=["plain", "checkpointing"])
def test_the_planned_memory_is_what_a_visit_takes(kind, more):
    """Within 15 %, the process's own memory as the kernel counts it."""
    args = training_args(kind, "--top_n", 16, *more)
    planned = (
        plan_training(PlannedModel(sampling_args(kind, "--num_candidates", 32), (32, 32)), args).memory["activations, gradients"] / 1e9
    )
    words = [sys.executable, "-c", MEASURE, json.dumps(vars(args)), kind.model, kind.controlnet]
    # what is freed goes back to the system at once, so that its count is that of what is alive
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    measured = []
    while len(measured) < 3 and planned != pytest.approx(min(measured, default=0), rel=0.15):  # huge pages only add to what is counted
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        measured.append(float(done.stdout))
    assert planned == pytest.approx(min(measured), rel=0.15), measured


def test_training_counts_micro_batches_recomputation_and_what_is_shared(kind):
    model = PlannedModel(sampling_args(kind), (32, 32))
    plain = plan_training(model, training_args(kind, "--top_n", 2, "--max_train_steps", 10, "--groups_per_step", 4))
    micro = plan_training(model, training_args(kind, "--top_n", 2, "--max_train_steps", 5, "--groups_per_step", 4, "--micro_batch_size", 1))
    assert 2 * micro.flops > 1.2 * plain.flops  # the policy runs once more
    assert micro.memory["activations, gradients"] < plain.memory["activations, gradients"]
    parameters = sum(parameter.numel() for parameter in load_backbone(kind.model).load_controlnet(kind.controlnet).parameters())
    assert plain.memory["policy, reference"] == pytest.approx(8 * parameters, rel=1e-3)
    assert plain.memory["optimizer"] == plain.memory["sum of gradients"] == 8 * parameters
    shared = shard(plain.memory, "zero2", 8)
    assert shared["optimizer"] == parameters and shared["weights"] == plain.memory["weights"]
    assert shard(plain.memory, "fsdp", 8)["weights"] == plain.memory["weights"] / 8
    with pytest.raises(UserError, match="--groups_per_step 4"):
        plan_training(model, training_args(kind, "--top_n", 2, "--groups_per_step", 4), 8)
    with pytest.raises(UserError, match="--top_n 3"):
        plan_training(model, training_args(kind, "--top_n", 3))
    lora = plan_training(model, training_args(kind, "--top_n", 2, "--lora_rank", 2))
    assert lora.memory["optimizer"] < 0.3 * plain.memory["optimizer"]
    assert lora.memory["policy, reference"] < 0.7 * plain.memory["policy, reference"]


def test_decoding_is_counted_and_scoring_has_the_papers_time(kind):
    model = PlannedModel(sampling_args(kind), (128, 128))
    assert model.pixels == 512**2
    stage = plan_scoring(model, num_images=480_000)  # four candidates of each: 1.92 M images
    assert stage.seconds / 3600 == pytest.approx(72 * 8)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        load_backbone(kind.model, parts=("vae",)).decode_latents(torch.rand(1, *model.latent_shape))
    assert stage.flops == pytest.approx(1_920_000 * counter.get_total_flops(), rel=1e-6)


def test_the_weights_of_qalign_are_in_the_plan_of_scoring(kind, tmp_path):
    from scripts.plan import metrics_of

    model = PlannedModel(sampling_args(kind), (128, 128))
    plain = plan_scoring(model, 10, ["musiq"])
    (tmp_path / "label.yaml").write_text("candidates_dir: c\nreward_config: paper\n")
    stage = plan_scoring(model, 10, metrics_of(tmp_path / "label.yaml"))
    assert sum(stage.memory.values()) - sum(plain.memory.values()) == pytest.approx(16.4e9, rel=0.01) and "Q-Align" in stage.amount
    (tmp_path / "label.yaml").write_text("candidates_dir: c\nreward_config: paper\nexclude_metrics: [qalign]\n")
    assert plan_scoring(model, 10, metrics_of(tmp_path / "label.yaml")) == plain and metrics_of(tmp_path / "absent.yaml") == []


@pytest.mark.parametrize(("kind", "parameters", "trained"), [("sd2", 865.9e6, 364.2e6), ("flux", 11.9e9, 1.44e9)], indirect=["kind"])
def test_published_models_are_planned_without_their_weights(kind, parameters, trained):
    """At 128 × 128 → 512 × 512: the sizes that the paper names, bf16 but for the fp32 VAE."""
    more = ["--mixed_precision", "bf16", "--pretrained_model_name_or_path", "not on disk", "--controlnet_model_name_or_path", "nor this"]
    model = PlannedModel(sampling_args(kind, *more), (128, 128), read_published(kind.name))
    stage = plan_training(model, training_args(kind, "--mixed_precision", "bf16", "--gradient_checkpointing", "--top_n", 1))
    vae = 4 * 83.7e6
    assert stage.memory["weights"] == pytest.approx(2 * parameters + vae, rel=0.005)
    assert stage.memory["optimizer"] == pytest.approx(8 * trained, rel=0.005)
    utilisation, paper = implied_utilisation(kind.name)
    assert 0.05 < utilisation < 0.6 and paper["candidates"] == 64 * 30_000
    assert prod(model.latent_shape[1:]) == 64 * 64


def test_the_program_prints_a_row_for_each_stage(tmp_path):
    done = run_program("scripts/plan.py", "configs/tiny_sd2/full", "--num_gpus", "1", "--gpu_memory", "0.1")
    assert "84 LR images of 32 × 32, 1 GPUs" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row.split()[1] for row in rows] == ["stage", "sample", "score", "train"]
    assert "**does not fit**" in rows[-1] and "1,344 candidates, 3 steps" in rows[1]
    assert_one_clear_line(run_program("scripts/plan.py", tmp_path, "--num_gpus", "1", check=False), "sample.yaml", "is missing")
    (tmp_path / "sample.yaml").write_text((ROOT / "configs/flux_dev/sample.yaml").read_text().replace("backbone: flux\n", ""))
    assert_one_clear_line(run_program("scripts/plan.py", tmp_path, "--num_gpus", "1", check=False), "is not on disk", "backbone")
