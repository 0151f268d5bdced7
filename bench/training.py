"""Seconds a preference pair, and peak memory: the group form against a pairwise Diffusion-DPO step on the same backbone and pairs.

    python bench/training.py                                                 # the tiny model, N = 4 and 8
    python bench/training.py --full_size --top_n 4 --pairwise_pairs 4 --repeats 1     # SD2-base's sizes at 256², random weights
    python bench/training.py --full_size --memory                            # peak memory of one step with a batch of two
    python bench/training.py --logging runs/quickstart/candidates            # what logging adds to a step of the quickstart's training

Pairwise, as public code has it: policy and reference are whole models, a pair is two policy passes with gradient and two reference passes
without. Both sides see the same latents, noise and timestep, and their gradients are compared. The steps alternate; medians are kept.
"""

import argparse
import ctypes
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path

from models import memory, models

from dp2osr.training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]

MEMORY_METHODS = ("group", "group, micro-batches of 1", "group, LoRA 16", "pairwise, two models")


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--top_n", type=int, nargs="+", default=[4, 8], help="N (default: 4 8)")
    parser.add_argument("--batch_pairs", type=int, default=8, help="pairs in one pass of the pairwise step (default: %(default)s)")
    parser.add_argument("--pairwise_pairs", type=int, help="time the pairwise step on this many of the pairs (default: on all N²)")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default: %(default)s)")
    parser.add_argument(
        "--full_size", action="store_true", help="Stable Diffusion 2-base with random weights at 256² instead of the tiny model"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory of one step with N = 1 instead of times")
    parser.add_argument("--logging", metavar="CANDIDATES_DIR", help="time a training's logging, on these candidates")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--peak_of", choices=MEMORY_METHODS, help=argparse.SUPPRESS)
    return parser


class Bench:
    """One group, and one step on it in either form."""

    def __init__(self, args, top_n, nudge=True):
        import torch
        from accelerate import Accelerator

        from dp2osr.backbones import load_backbone
        from dp2osr.preference.groups import PreferenceGroup
        from dp2osr.training.objective import GroupObjective

        torch.set_num_threads(args.threads)
        model = Path(args.model)
        self.args, self.top_n, self.beta = args, top_n, 5000.0
        self.backbone = load_backbone(str(model / "base"), parts=("text", "denoiser"))
        reference = self.backbone.load_controlnet(model / "controlnet", torch.float32).requires_grad_(False)
        self.policy = deepcopy(reference).requires_grad_(True).train()
        generator = torch.Generator().manual_seed(0)
        if nudge:  # a policy that has moved, so that weights of pairs differ
            with torch.no_grad():
                for parameter in self.policy.parameters():
                    parameter.add_(1e-3 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
        side = 32 * self.backbone.vae_scale
        self.group = PreferenceGroup(
            "x", list(range(2 * top_n)), torch.randn(2 * top_n, 4, 32, 32, generator=generator), torch.rand(1, 3, side, side),
            self.backbone.encode_prompts(["cat, animal, fur"]), torch.rand(top_n, top_n, generator=generator) + 0.5,
        )  # fmt: skip
        unused = dict.fromkeys(("pretrained_model_name_or_path", "controlnet_model_name_or_path", "candidates_dir", "output_dir"), "-")
        settings = TrainSettings(**unused, beta=self.beta)
        self.objective = GroupObjective(settings, Accelerator(cpu=True), self.backbone, self.policy, reference)
        self.reference = reference

    def optimizer(self):
        import torch

        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)  # at rate 0 every step is the same step

    def group_step(self, optimizer):
        """One step in group form; returns the seconds of its passes and of the optimizer."""
        import torch

        from dp2osr.training.gradient import GradientSum

        optimizer.zero_grad(set_to_none=True)
        started = time.perf_counter()
        total = GradientSum(list(self.policy.parameters()), torch.float64)
        self.objective.visit(0, self.group, 1 / self.top_n**2)
        total.take()
        total.give(self.objective.accelerator)
        passed = time.perf_counter()
        optimizer.step()
        return passed - started, time.perf_counter() - passed

    def pairwise_step(self, optimizer, pairs, unets):
        """One step on `pairs` [(winner, loser)], each with its own passes through two whole models; seconds as `group_step`."""
        import torch
        from torch.nn import functional as F

        timestep, noise = self.objective.draw(0, self.group)
        optimizer.zero_grad(set_to_none=True)
        started = time.perf_counter()
        for first in range(0, len(pairs), self.args.batch_pairs):
            part = pairs[first : first + self.args.batch_pairs]
            index = [winner for winner, _ in part] + [self.top_n + loser for _, loser in part]
            latents, drawn = self.group.latents[index], noise[index]
            timesteps = timestep.expand(len(index))
            noisy, target = self.backbone.add_noise(latents, drawn, timesteps), self.backbone.target(latents, drawn, timesteps)
            policy = self.whole_errors(unets[0], self.policy, noisy, timesteps, target)
            with torch.no_grad():
                reference = self.whole_errors(unets[1], self.reference, noisy, timesteps, target)
            winners, losers = (policy - reference).chunk(2)
            weights = torch.stack([self.group.weights[pair] for pair in part])
            (-(weights * F.logsigmoid(-0.5 * self.beta * (winners - losers))).sum() / self.top_n**2).backward()
        passed = time.perf_counter()
        optimizer.step()
        return passed - started, time.perf_counter() - passed

    def whole_errors(self, unet, controlnet, noisy, timesteps, target):
        """Errors of a ControlNet and a UNet called as diffusers' training scripts call them."""
        context = self.group.prompt["encoder_hidden_states"].expand(len(noisy), -1, -1)
        control = self.group.control.expand(len(noisy), -1, -1, -1)
        down, middle = controlnet(noisy, timesteps, encoder_hidden_states=context, controlnet_cond=control, return_dict=False)
        prediction = unet(
            noisy, timesteps, encoder_hidden_states=context, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return (prediction - target).square().mean(dim=(1, 2, 3))

    def gradient(self):
        import torch

        return torch.cat([parameter.grad.flatten() for parameter in self.policy.parameters() if parameter.grad is not None])


def compare_times(args):
    """Print one Markdown row a N and method."""
    from dp2osr.training.reference_cache import ReferenceCache

    print(f"\n{args.threads} threads, {args.batch_pairs} pairs in a pairwise pass, {args.repeats} steps each\n")
    print("| N | method | seconds a pair | pairs/s | times faster | largest difference of gradients, relative |")
    print("|---|---|---|---|---|---|")
    for top_n in args.top_n:
        bench = Bench(args, top_n)
        optimizer, objective = bench.optimizer(), bench.objective
        every = [(winner, loser) for winner in range(top_n) for loser in range(top_n)]
        pairs = every[: args.pairwise_pairs or len(every)]
        unets = [bench.backbone.unet] * 2
        with tempfile.TemporaryDirectory() as folder:
            cache = ReferenceCache(folder, {})
            seconds = {"pairwise": [], "group": [], "group, filled reference cache": []}
            gradients = {}
            for repeat in range(args.repeats + 1):  # the first round warms up
                for name, of_method in seconds.items():
                    objective.cache = cache if "cache" in name else None
                    if "cache" in name and not repeat:
                        bench.group_step(optimizer)  # fills it
                    if name == "pairwise":
                        part = pairs if repeat else pairs[: args.batch_pairs]
                        passes, update = bench.pairwise_step(optimizer, part, unets)
                        passes /= len(part)
                    else:
                        passes, update = bench.group_step(optimizer)
                        passes /= len(every)
                    gradients[name] = bench.gradient()
                    if repeat:
                        of_method.append(passes + update / len(every))  # one update a step of N² pairs on either side
        times = {name: statistics.median(of_method) for name, of_method in seconds.items()}
        for name, took in times.items():
            row = [top_n, name, f"{took:.4f}", f"{1 / took:.1f}", f"{times['pairwise'] / took:.1f}", ""]
            if name != "pairwise" and len(pairs) == len(every):
                other = gradients["pairwise"]
                row[-1] = f"{((gradients[name] - other).abs().max() / other.abs().max()).item():.1e}"
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


def time_logging(args, steps=20):
    """Print the seconds of the steps of a training with TensorBoard, of what it logs, and their ratio."""
    import torch

    from dp2osr.cli import parse
    from dp2osr.training.adapters import distance
    from dp2osr.training.log import TrainingLog
    from dp2osr.training.trainer import DISTANCE_STEPS, PreferenceTrainer

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--config", "configs/tiny_sd2/quickstart/train.yaml", "--candidates_dir", args.logging, "--output_dir", folder]
        flags += ["--scores", f"{args.logging}/scores.parquet", "--report_to", "tensorboard"]
        trainer = PreferenceTrainer(parse(TrainSettings, flags, backbone="sd2"))
        trainer.accelerator.init_trackers("dp2o")
        log, stepping, logging = TrainingLog(Path(folder) / "train_log.jsonl", 0), 0.0, 0.0
        for step in range(-1, steps):  # the first one warms up
            started = time.perf_counter()
            record, _ = trainer.train_step()
            trainer.step += 1
            stepped = time.perf_counter()
            if trainer.step % DISTANCE_STEPS == 0:
                record["distance"] = distance(trainer.policy, trainer.reference)
            trainer.log(log, record)
            if step >= 0:
                stepping, logging = stepping + stepped - started, logging + time.perf_counter() - stepped
        trainer.accelerator.end_training()
    each = 1000 * logging / steps
    print(f"{steps} steps: {stepping / steps:.3f} s each, and {each:.2f} ms of logging each: {logging / stepping:.2%} of a step")


def peak_of(args):
    """Print the most memory, GB, that this process held in three steps of one method with N = 1."""
    import torch

    from dp2osr.training.adapters import WithoutAdapters, add_adapters

    bench = Bench(args, 1)
    if "LoRA" in args.peak_of:
        bench.reference = bench.objective.reference = None
        bench.policy.requires_grad_(False)
        bench.policy = bench.objective.policy = add_adapters(bench.policy, 16)
        bench.objective.reference = WithoutAdapters(bench.policy)
    if "micro-batches" in args.peak_of:
        bench.objective.args.micro_batch_size = 1
    optimizer = bench.optimizer()
    unets = [bench.backbone.unet, deepcopy(bench.backbone.unet)] if args.peak_of.startswith("pairwise") else None
    del bench.backbone.text_encoder
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # nor what glibc keeps of it
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is not what is asked
    for _ in range(3):
        if unets:
            bench.pairwise_step(optimizer, [(0, 0)], unets)
        else:
            bench.group_step(optimizer)
    assert all(torch.isfinite(parameter).all() for parameter in bench.policy.parameters())
    print(memory("VmHWM"))


def compare_memory(args):
    """Print one Markdown row a method."""
    peaks = {}
    print("\n| method | peak memory of the process, GB | ratio |\n|---|---|---|")
    for method in reversed(MEMORY_METHODS):
        words = [sys.executable, __file__, "--model", args.model, "--peak_of", method, "--threads", str(args.threads)]
        peaks[method] = float(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
        print(f"| {method} | {peaks[method]:.2f} | {peaks[method] / peaks[MEMORY_METHODS[-1]]:.2f} |", flush=True)


def main():
    args = build_parser().parse_args()
    if args.peak_of:
        return peak_of(args)
    if args.logging:
        return time_logging(args)
    with models(args.full_size) as args.model:
        (compare_memory if args.memory else compare_times)(args)


if __name__ == "__main__":
    main()
