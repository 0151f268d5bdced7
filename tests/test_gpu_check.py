"""The check of a machine, on this one: the tiny models on a CPU."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from conftest import assert_one_clear_line, run_program

from dp2osr.checkup import cases, check, processes, timed_sampling, timed_scoring, timed_training
from dp2osr.checkup.cases import RandomSource, cases_of, random_network
from dp2osr.checkup.check import check_machine
from dp2osr.checkup.findings import LOST, DeviceLost, Findings, as_markdown, described, lines_in
from dp2osr.checkup.gradient_traffic import check_gradient_sum
from dp2osr.checkup.machine import TimeLimit, least_seconds
from dp2osr.checkup.settings import PARTS, CheckupSettings
from dp2osr.errors import UserError, is_device_fault
from dp2osr.planning.models import read_published

QUICK = {"model": ["tiny"], "steps": 1, "pixel_steps": 1, "repeats": 1, "batch_sizes": [1, 2], "scored_images": 3, "scored_size": 96}


def findings_in(folder):
    return Findings(folder, {"card": "x", "driver": None, "torch": "y"}, {}, torch.device("cpu"), TimeLimit(60))


def check_here(settings):
    """The check in this process."""
    return check_machine(settings, TimeLimit(60 * settings.minutes))


@pytest.fixture(scope="module", autouse=True)
def small_groups():
    """Training on fewer candidates, for the sake of time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            check, "cases_of", lambda *given: [replace(case, training=replace(case.training, top_n=2)) for case in cases_of(*given)]
        )
        yield


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """(findings, folder) of a check of all parts."""
    folder = tmp_path_factory.mktemp("check")
    return check_here(CheckupSettings(output_dir=str(folder), **QUICK)), folder


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_with_the_tiny_models(checked):
    findings, _ = checked
    assert set(findings.tables) == {"machine", *PARTS} and findings.failures() == []
    sampled = [line for line in findings.tables["sampling"] if "step, s" in line]
    assert [(line["model"], line["together"], line["way"]) for line in sampled] == [
        (f"tiny-{kind}", count, way) for count in (1, 2) for kind in ("sd2", "flux") for way in ("ours", "diffusers")
    ]
    assert all(line["peak, GB"] > 0 for line in sampled)
    assert all(line["largest difference, levels"] <= 1 for line in findings.tables["pixels"] if "steps" in line)
    trained = [line for line in findings.tables["training"] if line["precision"] == "no"]
    assert all(line["margin at step 0"] == "0" and line["the same visit twice"] == "equal bits" for line in trained)
    assert all(line["visit, s"] > 0 and line["planned, GB"] > 0 for line in trained)
    metrics = findings.tables["scoring"][:-1]
    assert len(metrics) == 8 and all(line["fp32, s"] > 0 and abs(line["τ of bf16"]) <= 1 for line in metrics)


def test_what_a_machine_cannot_do_is_said_to_be_not_run(checked):
    findings, _ = checked
    notes = [line["note"] for part in ("training", "gradient_sum") for line in findings.tables[part] if "note" in line]
    assert [note.partition(":")[0] for note in notes] == ["not run"] * 3 and "fp16" in notes[0] and "one process" in notes[1]


def test_figures_are_written_with_the_machine_that_gave_them(checked):
    findings, folder = checked
    content = json.loads((folder / "check_gpu.json").read_text(encoding="utf-8"))
    assert content["tables"] == json.loads(json.dumps(findings.tables)) and content["settings"]["batch_sizes"] == [1, 2]
    page = (folder / "check_gpu.md").read_text(encoding="utf-8")
    for known in (content["machine"]["card"], torch.__version__):
        assert known and known in page.splitlines()[2]


def test_what_fails_is_a_line_and_the_rest_goes_on(tmp_path, monkeypatch):
    def memory_ends(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(timed_sampling.DiffusersSampler, "sample", memory_ends)
    monkeypatch.setattr(timed_training, "GroupObjective", lambda *_: 1 / 0)
    found = check_here(CheckupSettings(output_dir=str(tmp_path), **{**QUICK, "batch_sizes": [1]}, parts=["sampling", "training"]))
    sampled = {line["way"]: line for line in found.tables["sampling"] if line["model"] == "tiny-sd2" and "way" in line}
    assert "step, s" in sampled["ours"] and sampled["diffusers"]["note"].startswith("out of memory: ")
    assert "ZeroDivisionError" in found.tables["training"][0]["note"]
    assert len(found.failures()) == 4 and "out of memory" in (tmp_path / "check_gpu.md").read_text(encoding="utf-8")


ILLEGAL = "CUDA error: an illegal memory access was encountered"


def test_after_a_device_is_lost_a_fresh_process_does_the_rest(tmp_path, monkeypatch):
    def loses(*_):
        raise torch.AcceleratorError(ILLEGAL)

    fresh, started = processes.in_fresh_process, []

    def first_here(settings, limit, anew):
        started.append(anew)
        if not anew:
            return fresh(settings, limit, anew)
        with monkeypatch.context() as patch, pytest.raises(DeviceLost):
            patch.setattr(timed_scoring, "MetricSuite", loses)
            check_machine(settings, limit)
        return 1

    monkeypatch.setattr(processes, "in_fresh_process", first_here)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process: threads wait for each other where tests run side by side
    processes.check_in_processes(CheckupSettings(output_dir=str(tmp_path), **QUICK, parts=["scoring", "gradient_sum"]))
    tables = lines_in(tmp_path)
    first, *others, together = tables["scoring"]
    assert started == [True, False] and first["metric"] == "dp2o_lpips" and first["note"].startswith(LOST) and ILLEGAL in first["note"]
    assert len(others) == 7 and all(line["fp32, s"] > 0 for line in others) and together["metric"] == "all 7"
    assert len(tables["gradient_sum"]) == 2 and LOST in (tmp_path / "check_gpu.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("works", "tried"), [("math alone", 2), (None, 2)])
def test_a_training_that_loses_the_device_is_tried_with_other_attentions(tmp_path, monkeypatch, works, tried):
    def measure(*_):
        attention = "without cuDNN's" if torch.backends.cuda.flash_sdp_enabled() else "math alone"
        if attention != works:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx")
        return {"seen": attention}

    def here(settings, limit, anew):
        try:
            check_machine(settings, limit, anew)
        except DeviceLost:
            return 1
        return 0

    monkeypatch.setattr(timed_training, "measure_training", measure)
    monkeypatch.setattr(processes, "in_fresh_process", here)
    processes.check_in_processes(CheckupSettings(output_dir=str(tmp_path), **QUICK, parts=["training"]))
    for kind in ("sd2", "flux"):
        lines = [line for line in lines_in(tmp_path)["training"] if line["model"] == f"tiny-{kind}" and line["precision"] == "no"]
        assert [line["attention"] for line in lines] == list(timed_training.ATTENTIONS)[:tried]
        assert [line.get("seen", line.get("note", "")[: len(LOST)]) for line in lines] == [LOST] * (tried - 1) + [works or LOST]


def test_a_line_stands_as_lost_while_it_is_measured(tmp_path):
    findings = findings_in(tmp_path)
    assert findings.attempt("scoring", {"metric": "x"}, lambda: {"then": lines_in(tmp_path)["scoring"][0]["note"]})
    assert lines_in(tmp_path)["scoring"] == [{"metric": "x", "then": f"{LOST}the process ended"}]


def test_a_process_that_ends_without_a_line_is_not_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "in_fresh_process", lambda *_, anew: 1 if anew else pytest.fail("started again"))
    with pytest.raises(SystemExit):
        processes.check_in_processes(CheckupSettings(output_dir=str(tmp_path)))


def test_memory_that_ends_is_no_fault_of_the_device():
    assert is_device_fault(RuntimeError(ILLEGAL)) and is_device_fault(torch.AcceleratorError("x"))
    assert not is_device_fault(RuntimeError("CUDA error: out of memory")) and not is_device_fault(RuntimeError("x"))


def test_when_the_time_is_over_the_rest_is_said_to_be_not_run(tmp_path):
    found = check_here(CheckupSettings(output_dir=str(tmp_path), minutes=1e-6, **QUICK))
    lines = [line for part in PARTS for line in found.tables.get(part, [])]
    assert lines and all(line["note"].startswith("not run") for line in lines)


def test_a_time_limit_cuts_repeats_to_one():
    calls = []
    least_seconds(lambda: calls.append(0), torch.device("cpu"), 5, TimeLimit(-1))
    assert len(calls) == 1
    least_seconds(lambda: calls.append(0), torch.device("cpu"), 5, TimeLimit(60))
    assert len(calls) == 6


def test_the_smallest_batch_and_training_of_all_models_come_before_larger_batches(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(check, "check_sampled", lambda case, parts, sizes, *_: done.append((case.name, *parts, *sizes)))
    monkeypatch.setattr(check, "check_training", lambda case, *_: done.append((case.name, "training")))
    settings = CheckupSettings(output_dir=str(tmp_path), **QUICK | {"model": ["sd2", "flux"]}, parts=["pixels", "sampling", "training"])
    check_here(settings)
    first = [(name, *rest) for name in ("sd2", "flux") for rest in [("sampling", 1), ("training",)]]
    assert done == first + [(name, "sampling", "pixels", 2) for name in ("sd2", "flux")]


def test_a_metric_whose_library_is_missing_is_a_line_and_the_others_are_scored(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # importing it fails
    found = check_here(CheckupSettings(output_dir=str(tmp_path), **QUICK, parts=["scoring"]))
    lines = {line["metric"]: line for line in found.tables["scoring"]}
    assert lines["fsim"]["note"].startswith("failed") and "pyiqa" in lines["fsim"]["note"]
    assert lines["dp2o_rank"]["fp32, s"] > 0


def test_no_plan_is_made_when_the_time_is_over(tmp_path):
    findings = findings_in(tmp_path)
    findings.add("training", {"model": "tiny-sd2", "precision": "no", "planned, GB": None})
    findings.limit = TimeLimit(-1)
    timed_training.add_plans(cases_of("tiny"), findings)
    [line] = findings.tables["training"]
    assert line["planned, GB"] is None and line["note"].startswith("no plan") and findings.failures() == []


def test_two_processes_add_up_the_gradients_of_the_tiny_model(tmp_path):
    findings, limit = findings_in(tmp_path), TimeLimit(60)
    check_gradient_sum(cases_of("tiny")[0], CheckupSettings(processes=2, **QUICK), findings, torch.device("cpu"), limit)
    lines = findings.tables["gradient_sum"]
    assert [line["way"] for line in lines] == ["all-reduce, fp32", "sum in fp64", "sum in fp32"], lines
    assert lines[0]["backend"] == "gloo" and all(line["GB/s"] > 0 for line in lines) and all(line["right"] for line in lines[1:])


def test_a_published_model_is_built_from_its_configuration_in_its_precision():
    """The network's class and sizes as published, but for its depth; the full one is a GPU's to build."""
    from diffusers import UNet2DConditionModel

    config = read_published("sd2")["unet"] | {"block_out_channels": [32, 32, 32, 32], "attention_head_dim": 8, "layers_per_block": 1}
    first, second = (random_network(UNet2DConditionModel, config, torch.device("cpu"), torch.bfloat16) for _ in range(2))
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16} and torch.get_default_dtype() == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert RandomSource("-", published=read_published("sd2")).pipeline() == "StableDiffusionPipeline"


SMALL = {  # of the published configurations, part by part: the same classes, narrow and shallow
    "sd2": {
        "unet": {
            "sample_size": 8, "block_out_channels": [32] * 4, "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 32,
        },
        "vae": {"block_out_channels": [32] * 4, "layers_per_block": 1},
        "text_encoder": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
    "flux": {
        "transformer": {
            "num_layers": 4, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
            "pooled_projection_dim": 32, "axes_dims_rope": [4, 6, 6],
        },
        "vae": {"sample_size": 64, "block_out_channels": [32] * 4, "layers_per_block": 1},
        "text_encoder": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        "text_encoder_2": {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "tokenizer_2": {"model_max_length": 16},
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL)
def test_a_model_with_random_weights_goes_through_all_parts(tmp_path, monkeypatch, model):
    published = read_published(model)
    small = {name: {**part, **SMALL[model].get(name, {})} if isinstance(part, dict) else part for name, part in published.items()}
    monkeypatch.setattr(cases, "read_published", lambda kind: small)
    found = check_here(
        CheckupSettings(output_dir=str(tmp_path), **QUICK | {"model": [model]}, parts=["sampling", "pixels", "training", "gradient_sum"])
    )
    assert found.failures() == [] and len([line for line in found.tables["sampling"] if "step, s" in line]) == 4
    assert found.tables["pixels"][0]["finite"] and found.tables["training"][0]["margin at step 0"] == "0"
    assert found.tables["training"][0]["planned, GB"] > 0


@pytest.mark.parametrize(("model", "sizes", "top_n"), [("sd2", (1, 8, 32), 8), ("flux", (1, 4, 16), 4)])
def test_full_size_models_are_checked_with_the_papers_settings(model, sizes, top_n):
    [case] = cases_of(model)
    assert case.batch_sizes == sizes and case.training.top_n == top_n and case.published is not None
    assert replace(case, batch_sizes=(2,)).precisions[0] == "bf16"


def test_a_note_is_one_line_and_stands_last(tmp_path):
    assert described(RuntimeError("a\nb")) == "failed: RuntimeError: a b"
    assert as_markdown([{"x": 1.0, "note": "a | b"}, {"x": 2.0, "y": True}]).splitlines() == [
        "| x | y | note |", "| --- | --- | --- |", "| 1 |  | a \\| b |", "| 2 | yes |  |",
    ]  # fmt: skip
    findings = findings_in(tmp_path)
    assert not findings.attempt("scoring", {"metric": "x"}, lambda: (_ for _ in ()).throw(UserError("no weights")))
    assert findings.failures() == ["scoring: failed: UserError: no weights"]


def test_a_mistake_of_the_user_is_one_line(tmp_path):
    done = run_program("scripts/check_gpu.py", "--parts", "samplng", "--output_dir", tmp_path, check=False)
    assert_one_clear_line(done, "--parts", "samplng")
