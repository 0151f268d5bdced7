"""AdamW: in 32 or 8 bits, whole on each process or with its state shared by all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

BUCKET_BYTES = 64 * 2**20  # of the parameters that a process sends to the others at a time

Made = Callable[[list[Any]], torch.optim.Optimizer]


def adamw(parameters: list[Any], in_8_bits: bool, **options: Any) -> torch.optim.Optimizer:
    """AdamW with torch's names of its `options`, in 8 bits if asked; `parameters`: or groups of them."""
    if in_8_bits:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)


def restart_rates(optimizer: Any, schedule: Any, learning_rate: float, weight_decay: float) -> None:
    """Set learning rate and weight decay anew where a checkpoint has brought its own; the schedule stays at its step."""
    schedule.base_lrs = [learning_rate] * len(schedule.base_lrs)
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group.update(initial_lr=learning_rate, weight_decay=weight_decay)
        group["lr"] = learning_rate * factor(schedule.last_epoch)


class ShardedOptimizer(torch.optim.Optimizer):
    """Each process holds the optimizer's state of its share of the parameters, updates these, and sends them to the others.

    A share is made of whole parameters, and an optimizer that treats each by itself, as Adam does, makes the steps that it makes unsharded.
    `torch.distributed.optim.ZeroRedundancyOptimizer` does the same; but it puts the step counts of a state that it loads on the host, where
    a GPU's fused AdamW does not take them, holds a loaded share twice, and gathers shares in one piece.

    Args:
        parameters: all of them, with gradients that are the same on all processes.
        make: [{"params": a share of them}] → its optimizer.
        process, processes: this one's number, and how many there are.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], make: Made, process: int, processes: int) -> None:
        self.process, self.shares = process, share_out([parameter.numel() for parameter in parameters], processes)
        self.all = list(parameters)
        self.own = make([{"params": [self.all[index] for index in self.shares[process]]}])
        super().__init__(self.all, {key: value for key, value in self.own.param_groups[0].items() if key != "params"})
        self.state = self.own.state

    def tell(self) -> None:
        """Give the share's optimizer the rates that are set here."""
        self.own.param_groups[0].update({key: value for key, value in self.param_groups[0].items() if key != "params"})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the own share, and take the others' from their processes."""
        self.tell()
        self.own.step()
        for sender, share in enumerate(self.shares):
            for bucket in self.buckets(share):
                sizes = [self.all[index].numel() for index in bucket]
                flat = torch.empty(sum(sizes), dtype=self.all[bucket[0]].dtype, device=self.all[bucket[0]].device)
                parts = list(zip(bucket, flat.split(sizes), strict=True))
                for index, part in parts if sender == self.process else ():
                    part.copy_(self.all[index].reshape(-1))
                torch.distributed.broadcast(flat, sender)
                for index, part in parts if sender != self.process else ():
                    self.all[index].copy_(part.view(self.all[index].shape))

    def buckets(self, share: Sequence[int]) -> Iterator[list[int]]:
        """The indices of `share` in parts whose parameters take `BUCKET_BYTES`, are one, or have one precision."""
        bucket: list[int] = []
        for index in share:
            found = [self.all[other] for other in (*bucket, index)]
            if bucket and (sum(tensor.nbytes for tensor in found) > BUCKET_BYTES or found[0].dtype != found[-1].dtype):
                yield bucket
                bucket = []
            bucket.append(index)
        if bucket:
            yield bucket

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as unsharded, on the first process; without any parameter's on the others. All must call it together."""
        from accelerate.utils import gather_object

        mine = self.own.state_dict()["state"]
        about = {
            index: {key: layout(value) if isinstance(value, torch.Tensor) else value for key, value in mine[place].items()}
            for place, index in enumerate(self.shares[self.process])
            if place in mine
        }
        everything: list[dict[int, dict[str, Any]]] = gather_object([about])
        whole: dict[int, dict[str, Any]] = {}
        for sender, of_share in enumerate(everything):
            for index, entries in of_share.items():
                place = self.shares[sender].index(index)
                found = {key: self.send(sender, mine.get(place, {}).get(key), value) for key, value in entries.items()}
                if self.process == 0:
                    whole[index] = found
        groups = [{**self.param_groups[0], "params": list(range(len(self.all)))}]
        return {"state": dict(sorted(whole.items())), "param_groups": groups}

    def send(self, sender: int, own: Any, about: Any) -> Any:
        """A value of the sender's state on the first process's host; `about`: its `layout`, or the value where it is no tensor."""
        if not isinstance(about, tuple):
            return about
        if sender == 0:
            return own.cpu() if self.process == 0 else None
        shape, strides, dtype = about
        moved = torch.empty_strided(shape, strides, dtype=dtype, device=self.all[0].device)
        if sender == self.process:
            moved.copy_(own)
        torch.distributed.broadcast(moved.as_strided((moved.numel(),), (1,)), sender)
        return moved.cpu() if self.process == 0 else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the own share out of a whole state, of a sharded optimizer or of one that was not."""
        share = self.shares[self.process]
        [group] = state_dict["param_groups"]
        if len(group["params"]) != len(self.all):
            raise ValueError(f"the optimizer's state is of {len(group['params'])} parameters, not of {len(self.all)}")
        own = {place: state_dict["state"][index] for place, index in enumerate(share) if index in state_dict["state"]}
        self.own.load_state_dict({"state": own, "param_groups": [{**group, "params": list(range(len(share)))}]})
        self.state = self.own.state
        self.param_groups[0].update({key: value for key, value in group.items() if key != "params"})


def layout(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    """(shape, strides, precision): a fused optimizer takes a parameter's state only if it lies in memory as the parameter does."""
    return tuple(tensor.shape), tuple(torch.empty_like(tensor, device="meta").stride()), tensor.dtype


def share_out(sizes: Sequence[int], processes: int) -> list[list[int]]:
    """Indices of each process's share: the largest first, each to the process that has the least."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    held = [0] * processes
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        least = held.index(min(held))
        shares[least].append(index)
        held[least] += sizes[index]
    return [sorted(share) for share in shares]
