"""The sum of a step's gradients over group visits and processes."""

import torch


class GradientSum:
    """Adds up what each visit leaves in the parameters' `grad`, then puts the sum of all processes there.

    In float64 the order of the sum does not show in float32, so the number of processes does not either; Adam would else turn the rounding
    of gradients near zero into steps of full size. It costs 8 bytes a parameter.

    Args:
        parameters: those that are trained.
        dtype: of the sum.
    """

    def __init__(self, parameters, dtype):
        self.parameters, self.dtype, self.sums = parameters, dtype, {}

    def take(self):
        """Add the gradients of one visit, and clear them; in the parameters' own precision autograd adds them up where they are."""
        if self.dtype == torch.float32:
            return
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            before = self.sums.get(index)
            self.sums[index] = parameter.grad if before is None else before.to(self.dtype).add_(parameter.grad)
            parameter.grad = None

    def give(self, accelerator):
        """Leave the sum over all processes in the parameters' `grad`; None where no process has any: the optimizer passes it over."""
        several = accelerator.num_processes > 1
        found = torch.tensor([index in self.sums or parameter.grad is not None for index, parameter in enumerate(self.parameters)])
        if several:
            found = accelerator.reduce(found.to(accelerator.device, torch.int32), "sum").bool()
        for index, parameter in enumerate(self.parameters):
            if not found[index]:
                continue
            own = self.sums.pop(index, parameter.grad)
            if several:
                own = accelerator.reduce(torch.zeros_like(parameter, dtype=self.dtype) if own is None else own.to(self.dtype), "sum")
            parameter.grad = own.to(parameter.dtype)
