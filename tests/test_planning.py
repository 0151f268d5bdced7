"""The plan of a run against what the same code takes when it runs: FLOPs, bytes on disk, memory."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_one_clear_line, run_program
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dp2osr.backbones import load_backbone
from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.flops import CPU_ATTENTION, measure, norms_in_float32
from dp2osr.planning.baseline_cost import plan_baseline
from dp2osr.planning.fitting import WITH_LORA, TrainingMemory, fit
from dp2osr.planning.hardware import Machine
from dp2osr.planning.models import fake_tensors, read_published
from dp2osr.planning.preference_cost import plan_training, plan_validation
from dp2osr.planning.stages import PlannedModel, implied_utilisation, plan_sampling, plan_scoring, scoring_seconds
from dp2osr.sampling.defaults import LoopSettings
from dp2osr.sampling.seeds import candidate_generator
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.training.baseline_settings import BaselineSettings
from dp2osr.training.gradient import GradientSum


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
def test_the_flops_of_sampling_are_those_of_the_sampling_loop(shipped_kind, guidance):
    args = sampling_args(shipped_kind, "--num_inference_steps", 3, "--guidance_scale", guidance, "--batch_size", 2)
    stage = plan_sampling(PlannedModel(args, (40, 32)), num_images=5)
    backbone = load_backbone(shipped_kind.model)
    controlnet = backbone.load_controlnet(shipped_kind.controlnet)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        image = torch.rand(1, 3, 128, 160)
        prompt, control = backbone.encode_prompts([""]), backbone.prepare_control(image)
        for _ in range(2):
            generators = [candidate_generator(0, "x", m) for m in range(2)]
            settings = LoopSettings(3, guidance, backbone.default_scheduler)
            backbone.sample(controlnet, control, prompt, prompt, generators, (4, 32, 40), settings)
    assert stage.flops == pytest.approx(5 * counter.get_total_flops(), rel=0.04)  # SD2 embeds its control once an image, not in every step
    assert stage.disk == 5 * (4 * 4 * 32 * 40 * 2 + sum(4 * tensor.numel() for tensor in prompt.values()))


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
def test_the_planned_memory_is_what_a_visit_or_a_micro_batch_takes(kind):
    """Within 15 %, the process's own memory as the kernel counts it: plain, with gradient checkpointing, with LoRA, of the baseline."""
    every = [training_args(kind, "--top_n", 16, *more) for more in ([], ["--gradient_checkpointing"], ["--lora_rank", 2])]
    flags = ["--train_dir", "p", "--output_dir", "out", "--resolution", "128", "--train_batch_size", "32"]
    baseline = parse(BaselineSettings, ["--pretrained_model_name_or_path", kind.model, *flags])
    model = PlannedModel(sampling_args(kind, "--num_candidates", 32), (32, 32))
    planned = [TrainingMemory(model, args)({}, 1)["activations, gradients"] / 1e9 for args in every]
    planned.append(plan_baseline(model, baseline).memory["activations, gradients"] / 1e9)
    shown = json.dumps([[vars(args) for args in every], vars(baseline)])
    measured = []
    while len(measured) < 3 and (not measured or planned != pytest.approx(np.min(measured, axis=0), rel=0.15)):
        done = run_program("tests/measured_memory.py", shown, kind.model, kind.controlnet)
        measured.append(json.loads(done.stdout))  # huge pages only add to what is counted
    assert planned == pytest.approx(np.min(measured, axis=0), rel=0.15), measured


@pytest.mark.slow
def test_training_counts_micro_batches_recomputation_and_what_is_shared(kind):
    model = PlannedModel(sampling_args(kind), (32, 32))
    plain = plan_training(model, training_args(kind, "--top_n", 1, "--max_train_steps", 10, "--groups_per_step", 8))
    micro = plan_training(model, training_args(kind, "--top_n", 1, "--max_train_steps", 5, "--groups_per_step", 8, "--micro_batch_size", 1))
    assert 2 * micro.flops > 1.2 * plain.flops  # the policy runs once more
    assert micro.memory["activations, gradients"] < plain.memory["activations, gradients"]
    parameters = sum(parameter.numel() for parameter in load_backbone(kind.model).load_controlnet(kind.controlnet).parameters())
    assert plain.memory["policy"] == plain.memory["reference"] == pytest.approx(4 * parameters, rel=1e-3)
    assert plain.memory["optimizer"] == plain.memory["sum of gradients"] == 8 * parameters
    with pytest.raises(UserError, match="--groups_per_step 8"):
        plan_training(model, training_args(kind, "--top_n", 1, "--groups_per_step", 8), Machine(17))  # a step has 16 candidates
    with pytest.raises(UserError, match="--top_n 3"):
        plan_training(model, training_args(kind, "--top_n", 3))
    lora = TrainingMemory(model, training_args(kind, "--top_n", 1, "--lora_rank", 2))({}, 1)
    assert lora["optimizer"] < 0.3 * plain.memory["optimizer"]
    assert lora["policy"] < 1.3 * plain.memory["policy"] and not lora["reference"]


def test_what_is_held_in_less_memory_is_planned_by_its_flag(kind):
    model = PlannedModel(sampling_args(kind, "--mixed_precision", "bf16"), (32, 32))
    args = training_args(kind, "--top_n", 2, "--groups_per_step", 8, "--mixed_precision", "bf16")
    memory = TrainingMemory(model, args)
    plain = memory({}, 4)
    assert plain["reference"] == pytest.approx(plain["policy"] / 2, rel=0.05)  # all but the norms is held in 16 bits
    assert memory({"shard_optimizer": True}, 4)["optimizer"] == plain["optimizer"] / 4
    assert memory({"use_8bit_adam": True}, 4)["optimizer"] == pytest.approx(plain["optimizer"] / 4, rel=0.02)
    int8, nf4 = (memory({"quantize_backbone": how}, 4)["weights"] for how in ("int8", "nf4"))
    assert nf4 < int8 < plain["weights"]
    assert memory({"gradient_sum": "fp32"}, 4)["sum of gradients"] == plain["sum of gradients"] / 2
    changed = memory({"shard_optimizer": True, "quantize_backbone": "nf4"}, 4)
    assert {name for name in plain if changed[name] != plain[name]} == {"weights", "optimizer"}


def test_the_flags_that_make_it_fit_are_those_that_are_needed(kind):
    sizes = {"a": 8.0, "b": 4.0, "c": 2.0}

    def memory(flags):
        return {name: 0.0 if name in flags else size for name, size in sizes.items()}

    steps = (("c", True), ("b", True), ("a", True))
    assert fit(memory, steps, 14).flags == {}
    assert fit(memory, steps, 12).words() == "--c"
    assert fit(memory, steps, 7).words() == "--a"  # which was the last, and is enough
    assert not fit(memory, steps, -1).fits
    assert fit(memory, WITH_LORA, 20, first=1).words() == "--lora_rank 16"


def test_sums_over_gpus_take_the_slowest_link():
    assert Machine(1).sum_seconds(1e9) == 0
    assert Machine(8, interconnect=100).sum_seconds(9e9) == pytest.approx(2 * 7 / 8 * 9e9 / 90e9)
    two = Machine(16, network=200)
    assert two.nodes == 2 and two.sum_seconds(1e9) == pytest.approx(2 * 15 / 16 * 1e9 / (0.9 * 25e9))
    assert Machine(1, 80).room == 0.9 * 85.0e9 and Machine(1, 0.5).room == 0.45e9


def test_validation_counts_what_all_ranks_sample_and_what_lies_there(kind):
    model = PlannedModel(sampling_args(kind), (32, 32))
    args = training_args(kind, "--top_n", 2, "--max_train_steps", 300, "--validation_steps", 100, "--validation_candidates", 2)
    training = plan_training(model, args)
    once = plan_sampling(model.like(num_candidates=2, batch_size=2), 1)
    stage = plan_validation(model, args, training, 3, 1.0)
    assert stage.flops >= 5 * 3 * once.flops and "5 times 3 images × 2" in stage.amount  # the base, and steps 0, 100, 200, 300
    assert stage.seconds == pytest.approx(5 * 3 * 2 * model.pixels / 512**2)
    assert stage.memory["optimizer"] == training.memory["optimizer"] and "sum of gradients" not in stage.memory
    spread = plan_validation(model, args, training, 3, 1.0, Machine(8))
    assert spread.flops == pytest.approx(stage.flops * 8 / 3)  # eight ranks take eight images' time for three


def test_the_baselines_training_is_planned_by_its_own_settings(kind):
    model = PlannedModel(sampling_args(kind), (32, 32))
    words = ["--pretrained_model_name_or_path", kind.model, "--train_dir", "p", "--output_dir", "out", "--resolution", "128"]
    words += ["--train_batch_size", "2", "--max_train_steps", "10"]
    plain = plan_baseline(model, parse(BaselineSettings, words))
    twice = plan_baseline(model, parse(BaselineSettings, [*words, "--gradient_accumulation_steps", "2", "--use_ema"]), Machine(4))
    assert twice.flops == 8 * plain.flops
    parameters = plain.memory["ControlNet"] / 4
    for name in ("mean of the weights", "buckets of the gradients' sum", "gradients of the micro-batches before"):
        assert plain.memory[name] == 0 and twice.memory[name] == 4 * parameters
    light = plan_baseline(model, parse(BaselineSettings, [*words, "--use_8bit_adam", "--gradient_checkpointing"]))
    assert light.memory["optimizer"] < 0.3 * plain.memory["optimizer"]
    assert light.memory["activations, gradients"] < plain.memory["activations, gradients"]


def test_decoding_is_counted_and_scoring_has_the_papers_time(kind):
    model = PlannedModel(sampling_args(kind), (128, 128))
    assert model.pixels == 512**2
    stage = plan_scoring(model, num_images=480_000)  # four candidates of each: 1.92 M images
    assert stage.seconds / 3600 == pytest.approx(72 * 8)
    assert scoring_seconds(["musiq", "qalign"], 312)[0] == pytest.approx(1.08) and scoring_seconds([], 312, 0.2) == (0.2, "as given")
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        load_backbone(kind.model, parts=("vae",)).decode_latents(torch.rand(1, *model.latent_shape))
    assert stage.flops == pytest.approx(1_920_000 * counter.get_total_flops(), rel=1e-6)


def test_scoring_is_planned_by_the_metrics_of_the_chosen_reward():
    """MANIQA at 5.535 TFLOP and MUSIQ at .0350, on a GPU of 100 TFLOPS of which a tenth is had."""
    seconds, source = scoring_seconds(["maniqa-pipal", "musiq"], 100)
    assert seconds == pytest.approx(0.557) and source == "of maniqa-pipal, musiq, 5.57 TFLOP at an assumed 10% of the peak"
    seconds, source = scoring_seconds(["musiq", "qalign", "piqe"], 100)
    assert seconds == pytest.approx(1.08) and "no figure of qalign, piqe; the others take 0.0035 s, 0.035 TFLOP" in source
    assert "no figure" not in scoring_seconds([], 100)[1] and scoring_seconds(["piqe"], 100)[1].endswith("no figure of piqe")


def test_the_weights_of_qalign_are_in_the_plan_of_scoring(kind, tmp_path):
    from scripts.plan import metrics_of

    model = PlannedModel(sampling_args(kind), (128, 128))
    plain = plan_scoring(model, 10, ["musiq"])
    (tmp_path / "label.yaml").write_text("candidates_dir: c\nreward_config: paper\n")
    stage = plan_scoring(model, 10, metrics_of(tmp_path / "label.yaml"))
    assert sum(stage.memory.values()) - sum(plain.memory.values()) == pytest.approx(16.4e9, rel=0.01) and "Q-Align" in stage.amount
    (tmp_path / "label.yaml").write_text("candidates_dir: c\nreward_config: paper\nexclude_metrics: [qalign]\n")
    assert plan_scoring(model, 10, metrics_of(tmp_path / "label.yaml")) == plain and metrics_of(tmp_path / "absent.yaml") == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "parameters", "trained"), [("sd2", 865.9e6, 364.2e6), ("flux", 11.9e9, 1.44e9)], indirect=["kind"])
def test_published_models_are_planned_without_their_weights(kind, parameters, trained):
    """At 128 × 128 → 512 × 512: the sizes that the paper names, bf16 but for the fp32 VAE."""
    more = ["--mixed_precision", "bf16", "--pretrained_model_name_or_path", "not on disk", "--controlnet_model_name_or_path", "nor this"]
    model = PlannedModel(sampling_args(kind, *more), (128, 128), read_published(kind.name))
    args = training_args(kind, "--mixed_precision", "bf16", "--gradient_checkpointing", "--top_n", 1)
    memory = TrainingMemory(model, args)({}, 1)
    vae = 4 * 83.7e6
    assert memory["weights"] == pytest.approx(2 * parameters + vae, rel=0.005)
    assert memory["optimizer"] == pytest.approx(8 * trained, rel=0.005)
    utilisation, paper = implied_utilisation(kind.name)
    assert 0.05 < utilisation < 0.6 and paper["candidates"] == 64 * 30_000
    assert prod(model.latent_shape[1:]) == 64 * 64


def test_the_program_prints_a_row_for_each_stage(tmp_path):
    done = run_program("scripts/plan.py", "configs/tiny_sd2/full", "--num_gpus", "1", "--gpu_memory", "0.1")
    assert "80 LR images of 32 × 32, 1 GPUs" in done.stdout and "in all when the 2N latents that are trained on are left" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    assert [row.split()[1] for row in rows] == ["stage", "sample", "sample", "score", "train"]
    assert "**does not fit**" in rows[-1] and "1,280 candidates, 8 steps" in rows[1] and "as the paper's hours" in rows[1]
    assert_one_clear_line(run_program("scripts/plan.py", tmp_path, "--num_gpus", "1", check=False), "sample.yaml", "is missing")
    (tmp_path / "sample.yaml").write_text((ROOT / "configs/flux_dev/sample.yaml").read_text().replace("backbone: flux\n", ""))
    assert_one_clear_line(run_program("scripts/plan.py", tmp_path, "--num_gpus", "1", check=False), "is not on disk", "backbone")


def test_the_optimizer_and_the_sum_of_gradients_take_what_is_planned(kind):
    """Within 15 %, by the bytes of the real tensors after a step."""
    args = training_args(kind, "--top_n", 2, "--groups_per_step", 2)
    memory = TrainingMemory(PlannedModel(sampling_args(kind), (32, 32)), args)({}, 1)
    controlnet = load_backbone(kind.model).load_controlnet(kind.controlnet, torch.float32).requires_grad_(True)
    parameters, sums = list(controlnet.parameters()), GradientSum(list(controlnet.parameters()), torch.float64)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        sums.take()
    assert sum(tensor.nbytes for tensor in sums.sums.values()) == pytest.approx(memory["sum of gradients"], rel=0.15)
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values())
    assert held == pytest.approx(memory["optimizer"], rel=0.15)
    assert sum(parameter.nbytes for parameter in parameters) == pytest.approx(memory["policy"], rel=0.15)
