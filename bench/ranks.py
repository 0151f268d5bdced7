"""What a step of several ranks does beside its passes: the sum of gradients, and reading groups.

    torchrun --nproc_per_node 2 bench/ranks.py              # the ControlNet of tiny-sd2; CPUs by gloo, GPUs by NCCL
    torchrun --nproc_per_node 2 bench/ranks.py --model preset/models/tiny-flux --controlnet preset/models/c-tiny-flux

One by one: a sum in float64 for each tensor, and a question to the device for each. Buckets: `GradientSum`. The two alternate in one run.
Reading: a group of 64 candidates of which 16 are trained on, whole and by rows, each beside the other; and the bytes of it that the process
then holds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dp2osr.backbones import load_backbone
from dp2osr.device import compute_device
from dp2osr.files import save_tensors
from dp2osr.sampling.store import CandidateStore
from dp2osr.training.gradient import GradientSum


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset/models/tiny-sd2", help="(default: %(default)s)")
    parser.add_argument("--controlnet", default="preset/models/c-tiny-sd2", help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="medians are kept (default: %(default)s)")
    args = parser.parse_args()
    accelerator = Accelerator(cpu=compute_device().type == "cpu")
    controlnet = load_backbone(args.model, accelerator.device, parts=("denoiser",)).load_controlnet(args.controlnet, torch.float32)
    parameters = list(controlnet.parameters())
    ways = {"one by one": one_by_one, "buckets": in_buckets}
    seconds, sums = {name: [] for name in ways}, {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            torch.manual_seed(accelerator.process_index)
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            accelerator.wait_for_everyone()
            started = time.perf_counter()
            way(parameters, accelerator)
            seconds[name].append(time.perf_counter() - started)
            sums[name] = [parameter.grad for parameter in parameters]
    equal = all(torch.equal(one, other) for one, other in zip(*sums.values(), strict=True))
    if accelerator.is_main_process:
        size = sum(parameter.numel() for parameter in parameters)
        print(f"{accelerator.num_processes} ranks, {len(parameters)} tensors of {size / 1e6:.1f} M numbers; sums equal: {equal}")
        for name, found in seconds.items():
            print(f"{name}: {statistics.median(found):.4f} s a step ({min(found):.4f}-{max(found):.4f})")
        read(args.repeats)
    accelerator.end_training()


def one_by_one(parameters, accelerator):
    found = accelerator.reduce(torch.tensor([parameter.grad is not None for parameter in parameters]).to(accelerator.device).int(), "sum")
    for index, parameter in enumerate(parameters):
        if found[index]:
            parameter.grad = accelerator.reduce(parameter.grad.double(), "sum").to(parameter.dtype)


def in_buckets(parameters, accelerator):
    total = GradientSum(parameters, torch.float64)
    total.take()
    total.give(accelerator)


def resident():
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))


def read(repeats):
    chosen = list(range(0, 64, 4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "groups/a/latents.safetensors"
        path.parent.mkdir(parents=True)
        save_tensors({"latents": torch.randn(64, 16, 64, 64).half()}, path)
        (Path(folder) / "settings.json").write_text("{}")
        store = CandidateStore(folder)
        ways = {"whole": lambda: load_file(path)["latents"][chosen], "rows": lambda: store.read_tensors("a", "latents", chosen)["latents"]}
        seconds, held = {name: [] for name in ways}, dict.fromkeys(ways, 0)
        for _ in range(repeats):
            for name, way in ways.items():
                before, started = resident(), time.perf_counter()
                latents = way()
                seconds[name].append(time.perf_counter() - started)
                held[name] = max(held[name], resident() - before)
                del latents
        for name, found in seconds.items():
            print(f"reading {name}: {1000 * statistics.median(found):.2f} ms, {held[name] / 1e6:.1f} MB more held at most")


if __name__ == "__main__":
    main()
