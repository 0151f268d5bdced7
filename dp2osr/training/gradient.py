"""The sum of a step's gradients over backward passes and processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

BUCKET_BYTES = 64 * 2**20  # of the tensors that processes add up: few enough calls, little memory beside the gradients

SUM_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}  # of --gradient_sum


class GradientSum:
    """Adds up what each backward pass leaves in the parameters' `grad`, then puts the sum of all processes there.

    In float64 the order of the sum does not show in float32, so the number of processes does not either; Adam would else turn the rounding
    of gradients near zero into steps of full size. It costs 8 bytes a parameter where a process makes several backward passes a step, and
    in any case two buckets of `BUCKET_BYTES`.

    Args:
        parameters: those that are trained.
        dtype: of the sum.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], dtype: torch.dtype) -> None:
        self.parameters, self.dtype = parameters, dtype
        self.sums: dict[int, torch.Tensor] = {}

    def take(self) -> None:
        """Add the gradients of one backward pass, and clear them; in the parameters' own precision autograd adds them up where they are."""
        if self.dtype == torch.float32:
            return
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            before = self.sums.get(index)
            self.sums[index] = parameter.grad if before is None else before.to(self.dtype).add_(parameter.grad)
            parameter.grad = None

    def give(self, accelerator: Accelerator) -> None:
        """Leave the sum over all processes in the parameters' `grad`; None where no process has any: the optimizer passes it over.

        Which parameters have one is asked once, for all; the sums then follow each other without the host waiting for the device.
        """
        several = accelerator.num_processes > 1
        found = [index in self.sums or parameter.grad is not None for index, parameter in enumerate(self.parameters)]
        if several:
            counts = torch.tensor(found, dtype=torch.int32, device=accelerator.device)
            torch.distributed.all_reduce(counts)
            found = (counts > 0).tolist()
        wanted = [index for index, there in enumerate(found) if there]
        if not several:
            for index in wanted:
                own = self.sums.pop(index, self.parameters[index].grad)
                self.parameters[index].grad = own.to(self.parameters[index].dtype)
            return
        sent: list[tuple[torch.distributed.Work, torch.Tensor, list[int]]] = []
        for bucket in self.buckets(wanted):
            flat = self.flat(bucket)
            sent.append((torch.distributed.all_reduce(flat, async_op=True), flat, bucket))
            if len(sent) == 2:  # one is filled while the other is added up
                self.spread(*sent.pop(0))
        for work in sent:
            self.spread(*work)

    def buckets(self, wanted: Sequence[int]) -> Iterator[list[int]]:
        """The indices `wanted` in order, in parts whose sums take `BUCKET_BYTES` or are one tensor."""
        bucket: list[int] = []
        room = BUCKET_BYTES
        for index in wanted:
            size = self.parameters[index].numel() * self.dtype.itemsize
            if bucket and size > room:
                yield bucket
                bucket, room = [], BUCKET_BYTES
            bucket.append(index)
            room -= size
        if bucket:
            yield bucket

    def flat(self, bucket: Sequence[int]) -> torch.Tensor:
        """This process's gradients of a bucket's parameters one after the other, 0 where it has none; they are let go of."""
        sizes = [self.parameters[index].numel() for index in bucket]
        flat = torch.zeros(sum(sizes), dtype=self.dtype, device=self.parameters[bucket[0]].device)
        for index, part in zip(bucket, flat.split(sizes), strict=True):
            parameter = self.parameters[index]
            own, parameter.grad = self.sums.pop(index, parameter.grad), None
            if own is not None:
                part.copy_(own.reshape(-1))
        return flat

    def spread(self, work: torch.distributed.Work, flat: torch.Tensor, bucket: Sequence[int]) -> None:
        """Put a bucket's sum, once it is there, into its parameters' `grad`, laid out in memory as they are."""
        work.wait()
        parts = flat.split([self.parameters[index].numel() for index in bucket])
        for index, part in zip(bucket, parts, strict=True):
            parameter = self.parameters[index]
            parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))
