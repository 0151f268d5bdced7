"""One of the processes that add up gradients; it imports little, since each of them starts anew."""

import json
import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dp2osr.device import seconds_of, wait_for_device
from dp2osr.errors import end_with_parent
from dp2osr.training.gradient import GradientSum

SUMS = {"sum in fp64": torch.float64, "sum in fp32": torch.float32}
PLAIN = "all-reduce, fp32"


def measure_sums(
    rank: int, processes: int, port: int, shapes: Sequence[tuple[int, ...]], on_cpu: bool, repeats: int, path: str, parent: int
) -> None:
    """One process: add up gradients with all others; the first writes what it measured to `path`."""
    from accelerate import Accelerator

    end_with_parent(parent)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"})
    accelerator = Accelerator(cpu=on_cpu)
    device = accelerator.device
    parameters = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
    numbers = sum(parameter.numel() for parameter in parameters)
    flat = torch.ones(numbers, device=device)
    found: dict[str, dict[str, Any]] = {"backend": {"name": torch.distributed.get_backend()}}
    found[PLAIN] = repeated(partial(torch.distributed.all_reduce, flat), 4 * numbers, processes, repeats)
    del flat  # the sums need the room
    for way, dtype in SUMS.items():

        def add_up(dtype: torch.dtype = dtype) -> None:
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            gradient = GradientSum(parameters, dtype)
            gradient.take()
            gradient.give(accelerator)

        found[way] = repeated(add_up, dtype.itemsize * numbers, processes, repeats)
        found[way]["right"] = all(bool((parameter.grad == processes).all()) for parameter in parameters)
    accelerator.wait_for_everyone()
    if rank == 0:
        Path(path).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def repeated(function: Callable[[], object], size: int, processes: int, repeats: int) -> dict[str, Any]:
    """{column: value} of a sum of `size` bytes. GB/s is what NCCL's tests call the bus bandwidth: what each link carries."""
    function()  # connections are made
    wait_for_device()
    seconds = statistics.median(seconds_of(function) for _ in range(repeats))
    return {"seconds": seconds, "GB": size / 1e9, "GB/s": 2 * (processes - 1) / processes * size / 1e9 / seconds}
