"""What a candidate costs with each lever of docs/cheap.md, counted: no weights and no time, so on any machine.

python bench/levers.py                      # Markdown: the two tiny models and the two of full size, some minutes
python bench/levers.py --models flux_dev
python bench/levers.py --models sd2_base --set "--num_inference_steps 20 --scheduler dpm --cache_interval 2"
"""

import argparse
import shlex
from pathlib import Path

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.planning.models import read_published
from dp2osr.planning.stages import PlannedModel, plan_sampling
from dp2osr.sampling.settings import GenerateSettings

ROOT = Path(__file__).resolve().parents[1]
LEVERS = {
    "sd2": [
        "--num_inference_steps {few} --scheduler dpm",
        "--guidance_scale 1",
        "--guidance_interval 0.28 5.42",
        "--cache_interval 2",
        "--cache_interval 4",
        "--branch_at {early}",
        "--num_inference_steps {few} --scheduler dpm --guidance_interval 0.28 5.42 --cache_interval 2",
        "--num_inference_steps {few} --scheduler dpm --guidance_interval 0.28 5.42 --branch_at {few_early}",
    ],
    "flux": [
        "--num_inference_steps {few} --scheduler flow_unipc",
        "--cache_interval 2",
        "--cache_interval 4",
        "--max_sequence_length 128",
        "--taylorseer_interval 3",
        "--taylorseer_interval 5",
        "--branch_at {early}",
        "--taylorseer_interval 3 --branch_at {early}",
        "--num_inference_steps {few} --scheduler flow_unipc --cache_interval 2",
        "--num_inference_steps {few} --scheduler flow_unipc --branch_at {few_early}",
    ],
}
MODELS = {"tiny-sd2": ("sd2", (32, 32)), "tiny-flux": ("flux", (32, 32)), "sd2_base": ("sd2", (128, 128)), "flux_dev": ("flux", (128, 128))}
TINY_RECIPE = {"num_inference_steps": 8, "guidance_scale": 3.0}  # the dear recipe of a tiny model here, where guidance is counted too


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="(default: all)")
    parser.add_argument("--num_candidates", type=int, default=64, help="M, which share what is made once an image (default: %(default)s)")
    parser.add_argument("--set", action="append", help="flags of gen_candidates.py, instead of the levers one by one; may be repeated")
    return parser


def recipe_of(name, kind):
    """(steps, guidance, the published configuration or None) of a model."""
    if name.startswith("tiny"):
        return TINY_RECIPE["num_inference_steps"], TINY_RECIPE["guidance_scale"], None
    published = read_published(kind)
    return published["paper"]["num_inference_steps"], published["paper"]["guidance_scale"], published


def candidate_flops(name, flags, num_candidates):
    """FLOPs of one candidate of a model by the flags of gen_candidates.py, over those of its recipe."""
    kind, lr_size = MODELS[name]
    steps, guidance, published = recipe_of(name, kind)
    model = "-" if published else str(ROOT / "preset/models" / name)
    controlnet = "-" if published else str(ROOT / "preset/models" / f"c-{name}")
    words = ["--pretrained_model_name_or_path", model, "--controlnet_model_name_or_path", controlnet, "--image_path=-", "--output_dir=-"]
    words += ["--num_inference_steps", str(steps), "--guidance_scale", str(guidance), "--num_candidates", str(num_candidates)]
    args = parse(GenerateSettings, [*words, "--batch_size", "16", "--mixed_precision", "bf16", *shlex.split(flags)])
    return plan_sampling(PlannedModel(args, lr_size, published), 1).flops / num_candidates


def main():
    args = build_parser().parse_args()
    print("| model | flags | TFLOP a candidate | of the recipe's |\n|---|---|---|---|")
    for name in args.models:
        kind, _ = MODELS[name]
        steps, guidance, _ = recipe_of(name, kind)
        few = max(5, round(0.4 * steps))
        numbers = {"few": few, "early": round(0.4 * steps), "few_early": round(0.4 * few)}
        whole = candidate_flops(name, "", args.num_candidates)
        print(f"| {name} | its recipe: {steps} steps, guidance {guidance:g} | {whole / 1e12:.3g} | 1 |", flush=True)
        for flags in args.set or LEVERS[kind]:
            flags = flags.format(**numbers)
            flops = candidate_flops(name, flags, args.num_candidates)
            print(f"| {name} | `{flags}` | {flops / 1e12:.3g} | {flops / whole:.3f} |", flush=True)


if __name__ == "__main__":
    run(main)
