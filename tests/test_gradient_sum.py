"""The sum of gradients over processes: in few calls, exact, laid out as the parameters are."""

from types import SimpleNamespace

import pytest
import torch

from dp2osr.training import gradient
from dp2osr.training.gradient import GradientSum


class OtherProcess:
    """Stands for `torch.distributed.all_reduce` beside a process that has the same gradients, but for those in `lacks`."""

    def __init__(self):
        self.calls = []

    def __call__(self, tensor, async_op=False):
        self.calls.append(tensor.numel())
        tensor *= 2
        return SimpleNamespace(wait=lambda: None) if async_op else None


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (7,), (5, 6), (2,), (3, 3)]
    found = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    found[0].data = found[0].data.to(memory_format=torch.channels_last)
    for parameter in found[:-1]:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_processes_are_added_up_in_buckets(monkeypatch, dtype):
    reduce, trained = OtherProcess(), parameters()
    expected = [None if parameter.grad is None else 2 * parameter.grad for parameter in trained]
    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    monkeypatch.setattr(gradient, "BUCKET_BYTES", 40 * dtype.itemsize)
    total = GradientSum(trained, dtype)
    total.take()
    total.give(SimpleNamespace(num_processes=2, device="cpu"))
    assert reduce.calls == [5, 108, 39]  # which have a gradient; the one that is larger than a bucket; 7 + 30 + 2
    for parameter, value in zip(trained, expected, strict=True):
        assert parameter.grad is None if value is None else torch.equal(parameter.grad, value)
    assert trained[0].grad.is_contiguous(memory_format=torch.channels_last) and not total.sums


def test_several_backward_passes_are_added_up_in_float64():
    [parameter] = trained = [torch.nn.Parameter(torch.zeros(1))]
    total = GradientSum(trained, torch.float64)
    for value in (1.0, 2.0**-30, -1.0):
        parameter.grad = torch.tensor([value])
        total.take()
    total.give(SimpleNamespace(num_processes=1))
    assert parameter.grad.item() == 2.0**-30
