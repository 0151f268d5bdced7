"""What cheap candidates cost by the plan, against the FLOPs that sampling them takes."""

from dataclasses import replace

import pytest
from conftest import SHIPPED, run_program, settings_with
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from dp2osr.backbones import load_backbone
from dp2osr.errors import UserError
from dp2osr.flops import CPU_ATTENTION
from dp2osr.planning.preference_cost import plan_validation
from dp2osr.planning.stages import PlannedModel, StagePlan, plan_sampling
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.sampling.settings import GenerateSettings


def planned_args(kind, **changes):
    values = {"num_inference_steps": 6, "guidance_scale": 3.0, "batch_size": 4, "num_candidates": 4, "prompt_source": "none"}
    values |= {"pretrained_model_name_or_path": kind.model, "controlnet_model_name_or_path": kind.controlnet}
    return settings_with(GenerateSettings, **{**values, **changes})


@pytest.mark.parametrize(
    ("name", "levers", "words"),
    [
        ("sd2", {"guidance_interval": (0.7, 5.0), "cache_interval": 2, "branch_at": 2}, "0.7 5, cache_interval 2, branch_at 2"),
        ("flux", {"scheduler": "flow_unipc", "cache_interval": 3, "branch_at": 4}, "cache_interval 3, branch_at 4"),
        ("flux", {"taylorseer_interval": 3}, "taylorseer_interval 3"),
        ("flux", {"taylorseer_interval": 3, "cache_interval": 2, "branch_at": 2}, "taylorseer_interval 3, branch_at 2"),
    ],
)
def test_the_flops_of_cheap_sampling_are_those_of_the_sampling_loop(name, levers, words):
    kind = SHIPPED[name]
    args = planned_args(kind, **levers)
    stage, whole = (plan_sampling(PlannedModel(each, (32, 32)), num_images=1) for each in (args, planned_args(kind)))
    sampler = GroupSampler(args, "cpu")
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as embedding:
        embedded = load_backbone(kind.model).encode_prompts([""])
    sampler.embeddings = {"": embedded, sampler.args.negative_prompt: embedded}
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as sampling:
        sampler.sample("x", Image.new("RGB", (32, 32)), 4)
    assert stage.flops == pytest.approx(embedding.get_total_flops() + sampling.get_total_flops(), rel=0.02)
    assert stage.flops < 0.95 * whole.flops and words in stage.amount


@pytest.mark.parametrize("kind", ["sd2"], indirect=True)
def test_a_plan_of_validation_takes_all_steps_of_the_evaluation(kind):
    training = kind.training_settings([*kind.model_flags, "--candidates_dir", "c", "--output_dir", "out", "--validation_steps", "10"])
    plans = [PlannedModel(planned_args(kind, **levers), (32, 32)) for levers in ({}, {"cache_interval": 3, "branch_at": 3})]
    there = StagePlan("train", "", 0, {"a": {}})
    assert len({plan_validation(plan, training, there, 2, 1.0).flops for plan in plans}) == 1


@pytest.mark.parametrize("kind", ["flux"], indirect=True)
def test_a_plan_refuses_what_sampling_refuses(kind):
    with pytest.raises(UserError, match="branch_at 6: must be below"):
        plan_sampling(PlannedModel(replace(planned_args(kind), branch_at=6), (32, 32)), 1)
    with pytest.raises(UserError, match="in tiles are all images"):
        plan_sampling(PlannedModel(replace(planned_args(kind), cache_interval=2), (64, 64)), 1)


def test_the_bench_counts_a_setting_beside_its_recipe():
    lines = run_program("bench/levers.py", "--models", "tiny-flux", "--set=--num_inference_steps 4").stdout.splitlines()
    assert lines[-2].endswith("| 1 |") and lines[-1].startswith("| tiny-flux | `--num_inference_steps 4` |") and " 0.50" in lines[-1]
