"""What a piece of code costs, found by running it on tensors without memory: its FLOPs, and the most memory that it holds."""

import weakref
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Cost:
    """FLOPs (two a multiply-add), and peak bytes beside what was there before."""

    flops: float
    peak_bytes: float


class PeakMemory(TorchDispatchMode):
    """Within, keeps count of the bytes of all tensors that are alive; `peak` is the most.

    Args:
        known: tensors that were there before and are not counted.
    """

    def __init__(self, known=()):
        super().__init__()
        self.alive, self.peak = 0, 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.see, result)
        return result

    def see(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.seen.discard(key)
        self.alive -= size


def measure(function, known=()):
    """The `Cost` of calling `function`; call within a `FakeTensorMode`. It is called twice: the counter of FLOPs keeps tensors alive."""
    memory = PeakMemory(known)
    with memory:
        function()
    with FlopCounterMode(display=False) as counter:
        function()
    return Cost(counter.get_total_flops(), memory.peak)


def weight_bytes(*modules):
    """Bytes of the parameters and buffers of modules, each counted once."""
    tensors = {id(tensor): tensor for module in modules for tensor in [*module.parameters(), *module.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
