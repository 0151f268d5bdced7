"""A pool of crops, degraded and encoded once, from which every window is drawn: for models whose steps take less time than their pairs."""

import numpy as np
import torch
from tqdm import tqdm


class LatentPool:
    """Encoded whole crops, in fp16 in the host's memory; all processes have the same, and each encodes its share.

    Args:
        batches: this process's share, by `BatchPlan.of_pool`: (numbers, latents, control, prompts).
    """

    def __init__(self, backbone, seed, batches, accelerator):
        self.backbone, self.seed = backbone, seed
        latents, control, prompts = [], [], []
        for _, *batch in tqdm(batches, desc="degrade and encode", unit="batch", mininterval=5, disable=not accelerator.is_main_process):
            latents.append(batch[0].half())
            control.append(batch[1].half())
            prompts.append(torch.tensor(batch[2], device=batch[0].device))
        shared = [accelerator.gather(torch.stack(parts)) for parts in (latents, control, prompts)]
        # (processes · batches, together, ...) in the processes' order → in the order of the samples' numbers
        ordered = [part.unflatten(0, (accelerator.num_processes, -1)).transpose(0, 1).flatten(0, 2).cpu() for part in shared]
        self.latents, self.control, self.prompts = ordered

    def batches(self, plan, rank, first, size):
        """Yield a process's micro-batches from step `first` on, windows of the first `size` crops; sample i follows from (seed, i)."""
        for step in range(first, plan.steps):
            window = plan.window_of(step) * self.latents.shape[-1] // plan.whole
            for micro in range(plan.accumulation):
                numbers = plan.samples(step, micro, rank)
                yield numbers, *self.draw(numbers, window, size)

    def draw(self, numbers, window, size):
        """(latents (B, C, w, w), control, prompts) of the samples `numbers`, windows of `window` latent pixels."""
        latents, control, prompts, side = [], [], [], self.latents.shape[-1]
        for number in numbers:
            rng = np.random.default_rng((self.seed, 1, number))
            index = int(rng.integers(size))
            top, left = (2 * rng.integers((side - window) // 2 + 1, size=2)).tolist()  # a control input may have tokens of 2 × 2 latents
            latents.append(self.latents[index, :, top : top + window, left : left + window])
            control.append(self.backbone.cut_control(self.control[index : index + 1], side, top, left, window))
            prompts.append(int(self.prompts[index]))
        device, dtype = self.backbone.device, self.backbone.dtype
        return torch.stack(latents).to(device, torch.float32), torch.cat(control).to(device, dtype), prompts
