"""Training time until the held-out gain G reaches a level: the group form against a pairwise Diffusion-DPO trainer, both tuned for rate.

    python gen_candidates.py --config configs/tiny_sd2/quickstart/sample.yaml
    python label_rewards.py --config configs/tiny_sd2/quickstart/label.yaml
    python bench/time_to_gain.py --candidates_dir runs/quickstart/candidates --output_dir runs/time_to_gain

Both start from the same model, candidates, reward and pairs (the quickstart's settings, which were chosen with the group form, but for a
constant rate after the warm-up) and differ in the step: the group form visits groups, six or one a step, with all N² = 36 pairs at one
timestep each; pairwise draws single pairs of random groups, each with its own timestep and one noise for the two, and passes winner and
loser through two whole models, policy and reference, as public Diffusion-DPO code does, 216 or 24 pairs a step. Every rate is tried with
the first seed; the best goes on to the others. G is that of validation during training, 26 held-out crops, and is not timed. Runs have one
thread each, two side by side; times are the processor's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


# method: groups a step of the group form or pairs a step, steps between two validations; the first is what the others are compared with
METHODS = {
    "group, 6 groups": ("groups", 6, 5),
    "group, 1 group": ("groups", 1, 20),
    "pairwise, 216 pairs": ("pairs", 216, 5),
    "pairwise, 24 pairs": ("pairs", 24, 15),
}


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates_dir", required=True, help="scored candidates of the training photographs")
    parser.add_argument("--output_dir", required=True, help="one JSON a run; run again to go on")
    parser.add_argument("--config", default="configs/tiny_sd2/quickstart/train.yaml", help="of the training (default: %(default)s)")
    parser.add_argument("--level", type=float, default=0.5, help="G to reach (default: %(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4], help="(default: 5e-5 1e-4 2e-4)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--max_minutes", type=float, default=20, help="of training, then a run is given up (default: %(default)s)")
    parser.add_argument("--validation_candidates", type=int, default=4, help="seeds of a held-out crop (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default: %(default)s)")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "RATE", "SEED"), help=argparse.SUPPRESS)
    return parser


class PairwiseStep:
    """One optimizer step of a pairwise trainer on the pairs, weights and networks of a `PreferenceTrainer`."""

    def __init__(self, trainer, batch_pairs):
        from copy import deepcopy

        self.trainer, self.batch_pairs = trainer, batch_pairs
        self.unets = trainer.backbone.unet, deepcopy(trainer.backbone.unet)  # policy and reference are whole models
        self.groups = [trainer.groups.read(index, trainer.backbone) for index in range(len(trainer.groups))]

    def __call__(self, step, pairs_a_pass=8):
        import torch

        trainer, args = self.trainer, self.trainer.args
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + step)
        drawn = [self.draw(generator) for _ in range(self.batch_pairs)]
        for first in range(0, len(drawn), pairs_a_pass):
            self.backward(drawn[first : first + pairs_a_pass])
        trainer.accelerator.clip_grad_norm_(trainer.parameters, args.max_grad_norm)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.schedule.step()

    def draw(self, generator):
        """A pair: group, winner, loser, weight, timestep (1,), noise of both."""
        import torch

        backbone, args = self.trainer.backbone, self.trainer.args
        group = self.groups[torch.randint(len(self.groups), (), generator=generator)]
        winner, loser = torch.randint(args.top_n, (2,), generator=generator).tolist()
        timestep = backbone.draw_timesteps(1, generator, args.timestep_range)
        noise = torch.randn(group.latents.shape[1:], generator=generator)
        return group, group.latents[[winner, args.top_n + loser]], group.weights[winner, loser], timestep, noise

    def backward(self, pairs):
        """Accumulate the gradient of these pairs: −log σ(−β/2 [(e_θ − e_ref)_w − (e_θ − e_ref)_l]), weighted, a mean over the batch."""
        import torch
        from torch.nn import functional as F

        trainer, backbone = self.trainer, self.trainer.backbone
        latents = torch.cat([latents for _, latents, *_ in pairs])
        timesteps = torch.cat([timestep.expand(2) for *_, timestep, _ in pairs])
        noise = torch.stack([noise for *_, noise in pairs for _ in range(2)])
        context = torch.cat([group.prompt["encoder_hidden_states"].expand(2, -1, -1) for group, *_ in pairs])
        control = torch.cat([backbone.prepare_control(group.control).expand(2, -1, -1, -1) for group, *_ in pairs])
        weights = torch.stack([weight for _, _, weight, *_ in pairs])
        noisy, target = backbone.add_noise(latents, noise, timesteps), backbone.target(latents, noise, timesteps)
        errors = []
        for unet, controlnet in zip(self.unets, (trainer.policy, trainer.reference), strict=True):
            with torch.set_grad_enabled(controlnet is trainer.policy):
                down, middle = controlnet(noisy, timesteps, encoder_hidden_states=context, controlnet_cond=control, return_dict=False)
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
                prediction = unet(noisy, timesteps, encoder_hidden_states=context, **residuals).sample
                errors.append((prediction - target).square().mean(dim=(1, 2, 3)))
        policy, reference = errors
        gaps = (policy - reference).view(-1, 2)
        (-(weights * F.logsigmoid(-0.5 * trainer.args.beta * (gaps[:, 0] - gaps[:, 1]))).sum() / self.batch_pairs).backward()


def one_run(args, method, rate, seed, path):
    """Train until G reaches the level or the time is over; writes {"seconds", "step", "G", "history"} to `path`."""
    import torch

    from dp2osr.cli import parse
    from dp2osr.files import write_json
    from dp2osr.training.settings import TrainSettings
    from dp2osr.training.trainer import PreferenceTrainer

    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, size, interval = METHODS[method]
    flags = ["--config", args.config, "--candidates_dir", args.candidates_dir, "--scores", f"{args.candidates_dir}/scores.parquet"]
    flags += ["--learning_rate", rate, "--seed", seed, "--lr_scheduler", "constant_with_warmup", "--output_dir", path.parent / path.stem]
    flags += ["--groups_per_step", size] if kind == "groups" else []
    flags += ["--report_to", "none", "--force", "--reward_config", "embedded"]
    flags += ["--validation_image_path", "preset/test/lr", "--validation_gt_path", "preset/test/gt", "--validation_steps", 1]
    flags += ["--validation_prompt_file", "preset/test/prompts.json", "--validation_candidates", args.validation_candidates]
    flags += ["--num_inference_steps", 8, "--guidance_scale", 1, "--align_method", "wavelet"]
    trainer = PreferenceTrainer(parse(TrainSettings, flags, backbone="sd2"))
    validator = trainer.make_validator()
    step_of = PairwiseStep(trainer, size) if kind == "pairs" else lambda step: trainer.train_step()
    seconds, history = 0.0, []
    while True:
        started = time.process_time()
        for _ in range(interval):
            step_of(trainer.step)
            trainer.step += 1
        seconds += time.process_time() - started
        gain = validator(trainer.policy)["G"]
        history.append({"step": trainer.step, "seconds": seconds, "G": gain})
        print(f"{method}, {rate:g}, seed {seed}: step {trainer.step}, {seconds:.0f} s, G = {gain:.3f}", flush=True)
        if gain >= args.level or seconds > 60 * args.max_minutes:
            break
    write_json(path, {"method": method, "rate": rate, "seed": seed, "asked": asked(args), **history[-1], "history": history})


def asked(args):
    """The flags that a result depends on."""
    return {name: getattr(args, name) for name in ("candidates_dir", "config", "level", "max_minutes", "validation_candidates")}


def path_of(args, method, rate, seed):
    return Path(args.output_dir) / f"{method.replace(', ', '-').replace(' ', '_')}-{rate:g}-{seed}.json"


def run_all(args, wanted):
    """Run what is missing of [(method, rate, seed)]; returns {(method, rate, seed): result}."""
    paths = {key: path_of(args, *key) for key in wanted}

    def start(key):
        there = json.loads(paths[key].read_text()) if paths[key].exists() else {}
        if there.get("asked") != asked(args):
            subprocess.run([sys.executable, *sys.argv, "--one", *map(str, key)], check=True, stdin=subprocess.DEVNULL)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(start, paths))
    return {key: json.loads(path.read_text()) for key, path in paths.items()}


def main():
    args = build_parser().parse_args()
    if args.one:
        method, rate, seed = args.one[0], float(args.one[1]), int(args.one[2])
        return one_run(args, method, rate, seed, path_of(args, method, rate, seed))
    first, *others = args.seeds
    tried = run_all(args, [(method, rate, first) for method in METHODS for rate in args.rates])
    best = {}
    for method in METHODS:
        of_rate = {rate: tried[method, rate, first] for rate in args.rates}
        best[method] = min(of_rate, key=lambda rate, of_rate=of_rate: (cost(of_rate[rate], args.level), -of_rate[rate]["G"]))
        if len(args.rates) > 1 and best[method] in (min(args.rates), max(args.rates)):
            print(f"warning: {method}: the best rate, {best[method]:g}, is at the edge of those that were tried", file=sys.stderr)
    results = tried | run_all(args, [(method, best[method], seed) for seed in others for method in METHODS])
    print(f"\nG = {args.level:g}\n\n| method | rate | seconds, by seed | steps | median | times that of {next(iter(METHODS))} |")
    print("|---|---|---|---|---|---|")
    medians = {}
    for method in METHODS:
        for rate in args.rates:
            runs = [results[method, rate, seed] for seed in args.seeds if (method, rate, seed) in results]
            seconds = [cost(run, args.level) for run in runs]
            words = [f"{time:.0f}" if time < float("inf") else f"> {run['seconds']:.0f}" for run, time in zip(runs, seconds)]
            median, ratio = "", ""
            if rate == best[method]:
                medians[method] = statistics.median(seconds)
                median, ratio = f"{medians[method]:.0f}", f"{medians[method] / medians[next(iter(METHODS))]:.2f}"
            print(f"| {method} | {rate:g} | {', '.join(words)} | {', '.join(str(run['step']) for run in runs)} | {median} | {ratio} |")


def cost(run, level):
    """Seconds until the level, between the two validations around it by a straight line; infinite where it was not reached."""
    before = {"seconds": 0.0, "G": 0.0}
    for after in run["history"]:
        if after["G"] >= level:
            share = (level - before["G"]) / (after["G"] - before["G"])
            return before["seconds"] + share * (after["seconds"] - before["seconds"])
        before = after
    return float("inf")


if __name__ == "__main__":
    main()
