"""The commands of the pages run as they stand, one page after the other, on the tiny models and small made-up data."""

import re

import pytest
from conftest import ROOT
from documented import beginning_of, flags_behind, from_program, like_a_clone, page_commands, run_as_shown, write_shown_files
from page_folder import furnish, vote
from test_prompts import released  # noqa: F401 - a fixture

# train.md is the first: it makes the pairs, candidates, scores and the policy that others name. choosing.md reads what scale.md makes.
PAGES = (
    "docs/train",
    "README",
    "docs/restore",
    "docs/evaluate",
    "docs/rewards",
    "docs/demo",
    "docs/baselines",
    "docs/scale",
    "docs/choosing",
    "docs/hub",
)
OTHER_PAGES = {  # whose commands do not run here, and why
    "docs/cheap": "they measure, for minutes; tests/test_studies.py runs them on little",
    "docs/check_gpu": "a GPU",
    "docs/docker": "Docker; tests/test_docker.py reads its file",
    "docs/reproduce": "released weights, data sets and hours; tests/test_experiment_plans.py checks what it runs",
    "docs/results": "hours",
    "docs/speed": "they measure, for minutes each",
    "docs/tiny_bases": "a GPU, and photographs from a network",
}
# Behind the commands that have these words: what makes them take seconds, on a CPU and without downloads. The last flag wins.
GROUP = "--num_candidates 2 --top_n 1"
SHORTER = {
    "gen_candidates.py": "--num_candidates 2 --num_inference_steps 1",
    "gen_candidates.py --config": "--mixed_precision no --upscale 4",
    "label_rewards.py --config": "--reward_config embedded",
    "train_sd2_dpo.py": f"{GROUP} --max_train_steps 1 --groups_per_step 1 --report_to none",
    "train_sd2_dpo.py --validation_image_path": "--validation_candidates 2",
    "train_sd2_dpo.py --config --collapse_patience": "--output_dir runs/sd2_policy_2",  # scale.md has trained another
    "train_sd2_dpo.py --config": "--mixed_precision no --reward_config embedded",
    "train_flux_dpo.py": f"{GROUP} --max_train_steps 1 --groups_per_step 1 --report_to none --mixed_precision no --reward_config embedded",
    "test_sd2b_controlnet.py": "--num_inference_steps 1 --upscale 1",
    "test_sd2b_controlnet.py --keep": "--sample_times 2",
    "test_flux_controlnet.py": "--num_inference_steps 1 --upscale 1",
    "test_flux_controlnet.py --num_double_layers": "--num_double_layers 2",
    "scripts/evaluate.py": "--bootstrap 20",
    "scripts/evaluate.py --images": "--protocol offline --exclude_metrics vif ssim",
    "scripts/inspect_preferences.py": "--top_n 1",
    "scripts/export.py --top": "--top 1",
    "scripts/export_labels.py": "--reward_config embedded",  # rewards.md has scored for another one too
    "scripts/suggest_nm.py": "--probe_steps 1 --probe_visits 2 --held_out_share .6 --held_out_groups 2 --held_out_timesteps 1"
    " --sizes 2 --tops 1",
    "scripts/suggest_nm.py configs/sd2_base/train.yaml": "--mixed_precision no --reward_config embedded",
    "scripts/prune.py": f"{GROUP} --reward_config embedded",
    "scripts/prune.py runs/sd2_candidates": "--dry_run",  # choosing.md reads them
    "scripts/prepare_data.py RealSR": "--any_count",
    "scripts/prepare_data.py HR": "--min_side 64",
    "scripts/train_controlnet.py": "--resolution 128 --train_batch_size 1 --gradient_accumulation_steps 1 --max_train_steps 1"
    " --dataloader_num_workers 0 --mixed_precision no --report_to none",
    "scripts/train_controlnet.py configs/flux_dev/baseline.yaml": "--num_double_layers 2",
    "scripts/train_controlnet.py configs/flux_dev/baseline.yaml data/photographs": "--output_dir runs/c_flux_2",  # baselines.md has made it
}
LAUNCH = "accelerate launch --config_file configs/accelerate/8gpu.yaml"
INCOMPLETE, TRAIN, NETWORK = "its flags are left out", "train.md runs the same", "a network"
NOT_RUN = {  # commands by their beginnings, and why they do not run here
    "source .venv/bin/activate": "it is the shell's",
    "pip install": NETWORK,
    "bash scripts/": "hours, or an environment of its own; tests/test_stages.py runs the stages",
    "scripts/demo.py": "a server; tests/test_demo.py opens its page",
    "tests/test_demo.py": "a test",
    "scripts/check_gpu.py": "a GPU; tests/test_gpu_check.py runs its parts",
    "scripts/plan.py": "half a minute; tests/test_planning.py runs it",
    "hf auth login": NETWORK,
    "scripts/push_to_hub.py": f"{NETWORK}; tests/test_hub.py has a small hub",
    "train_sd2_dpo.py --config my_train.yaml": NETWORK,
    "scripts/reproduce.py table3": "hours; tests/test_experiments.py runs a small one",
    "scripts/fetch_metrics.py": NETWORK,
    f"{LAUNCH} label_rewards.py --candidates_dir runs/candidates": f"weights from {NETWORK}",
    "label_rewards.py --candidates_dir runs/held_out": f"weights from {NETWORK}",
    "scripts/prepare_data.py RealLQ250": "it is as that of RealSR",
    "scripts/validate_reward.py": "tests/test_examples.py runs it",
    "scripts/make_lr_pairs.py --image_path data/photographs": f"{TRAIN}, into the same folder",
    "scripts/evaluate.py --candidates base=runs/quickstart": TRAIN,
    "scripts/evaluate.py --candidates base=runs/held_out": TRAIN,
    "scripts/inspect_rewards.py --candidates_dir runs/candidates --gt_path preset": TRAIN,
    "gen_candidates.py --ram_path preset/models/ram_dape.safetensors ...": INCOMPLETE,
    f"{LAUNCH} train_sd2_dpo.py ...": INCOMPLETE,
    f"{LAUNCH} test_sd2b_controlnet.py ...": INCOMPLETE,
    "torchrun --nproc_per_node 8 train_sd2_dpo.py ...": INCOMPLETE,
    "python -m dp2osr.launch train_sd2_dpo.py ...": INCOMPLETE,
}


def commands_of(page):
    return list(page_commands((ROOT / f"{page}.md").read_text(encoding="utf-8")))


def test_every_page_with_commands_is_run_or_has_a_reason():
    shown = {path.relative_to(ROOT).with_suffix("").as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
    assert {page for page in shown if commands_of(page)} == {*PAGES, *OTHER_PAGES}


def test_every_command_is_run_or_has_a_reason_and_no_reason_is_stale():
    shown = [words for page in PAGES for words in commands_of(page)]
    left_out = [words for words in shown if beginning_of(words, NOT_RUN)]
    run = [words for words in shown if words not in left_out]
    assert not [words for words in run if not from_program(words)[0].endswith(".py") or {"...", "…"} & set(words)]
    assert not [start for start in NOT_RUN if not any(beginning_of(words, [start]) for words in left_out)]
    assert not [key for key in SHORTER if not any(flags_behind(words, {key: "--flag"}) for words in run)]
    named = re.findall(r"tests/\w+\.py", " ".join([*NOT_RUN.values(), *OTHER_PAGES.values()]))
    assert named and not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(released, tmp_path):
    furnish(tmp_path, released[0])
    done = []
    for page in PAGES:
        write_shown_files((ROOT / f"{page}.md").read_text(encoding="utf-8"), tmp_path)
        for words in commands_of(page):
            if from_program(words) in done or beginning_of(words, NOT_RUN):
                continue
            if beginning_of(words, ["scripts/user_study.py count"]):
                vote(tmp_path)
            run_as_shown(words, tmp_path, SHORTER)
            done.append(from_program(words))
    for made in (
        "data/mine/gt/six_00.png",
        "preset/test_oup_dp2o_sd2/six.png",
        "preset/test_oup_dp2o_flux/six.png",
        "runs/best_of_8/best.csv",
        "runs/c_flux/controlnet/config.json",
        "runs/imported/scores.parquet",
        "runs/realsr/table.md",
        "runs/report/report.html",
        "runs/restored/six.png",
        "runs/sd2_policy/config.json",
        "runs/sd2_suggest_nm/probe.json",
        "runs/winners/one_00.png",
        "study/page.html",
    ):
        assert (tmp_path / made).exists(), made


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path):
    with pytest.raises(AssertionError, match="prune.py --candidates_dir absent --dry_run.*absent"):
        run_as_shown(
            ["python", "scripts/prune.py", "--candidates_dir", "absent"], like_a_clone(tmp_path), {"scripts/prune.py": "--dry_run"}
        )
