"""What a piece of code costs, found by running it on tensors without memory: its FLOPs, and the most memory that it holds."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten


@dataclass
class Cost:
    """FLOPs (two a multiply-add), and peak bytes beside what was there before."""

    flops: float
    peak_bytes: float


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


CPU_ATTENTION = {  # the counter knows the GPU's kernels only
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


class CostCounter(TorchDispatchMode):
    """Within, counts FLOPs, and the bytes of all tensors that are alive; `peak` is the most of these.

    For fake tensors: nothing is allocated for them that a profiler or the process's size could show, so their storages are counted here.
    FLOPs are by the formulas of torch's own counter, which itself keeps tensors alive.

    Args:
        known: tensors that were there before and are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.flops, self.alive, self.peak, self.seen = 0, 0, 0, WeakIdKeyDictionary()
        self.formulas = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION).flop_registry
        for tensor in known:
            self.seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = self.formulas.get(getattr(func, "_overloadpacket", func))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        tree_map_only(torch.Tensor, self.see, result)
        return result

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.seen:
            return
        self.seen[storage] = True
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self.forget, storage.nbytes())

    def forget(self, size: int) -> None:
        self.alive -= size


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """Within, norms take and give float32, as under a GPU's autocast; a CPU's leaves them in 16 bits, and they are much of what is kept."""

    def in_float32(norm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
            return norm(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for module, name in ((F, "group_norm"), (F, "layer_norm"), (F, "rms_norm"), (torch, "rms_norm")):
            stack.enter_context(mock.patch.object(module, name, in_float32(getattr(module, name))))
        yield


def measure(function: Callable[[], object], known: Iterable[torch.Tensor] = ()) -> Cost:
    """The `Cost` of calling `function`, once; call within a `FakeTensorMode`."""
    counter = CostCounter(known)
    with counter:
        function()
    return Cost(counter.flops, counter.peak)


def weights_of(networks: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """Parameters and buffers of networks, each once."""
    return list({id(tensor): tensor for network in networks for tensor in [*network.parameters(), *network.buffers()]}.values())


def weight_bytes(*networks: torch.nn.Module) -> int:
    """Bytes of their parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weights_of(networks))
