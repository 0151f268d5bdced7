"""One visit of a group: a timestep, each candidate's noise, 2N errors of policy and reference, the loss of all pairs, its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from dp2osr.device import without_cudnn_attention
from dp2osr.preference.loss import LOSSES, anchor_loss, pair_margins, prediction_errors, reads
from dp2osr.sampling.seeds import stable_seed
from dp2osr.training.visits import Visit

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dp2osr.backbones.base import Backbone, Steering
    from dp2osr.preference.groups import PreferenceGroup
    from dp2osr.training.reference_cache import ReferenceCache
    from dp2osr.training.settings import TrainSettings

STATISTICS = ("implicit_accuracy", "margin", "winner_error", "loser_error", "winner_gap", "loser_gap")


class GroupObjective:
    """The preference loss of groups under one policy and one reference.

    Args:
        args: `TrainSettings`.
        accelerator: for autocast and backward.
        backbone: the frozen model.
        policy, reference: ControlNets (or what is called like one).
        control_scale: factor on what a ControlNet adds, as sampled.
        cache: `ReferenceCache` or None.
    """

    def __init__(
        self,
        args: TrainSettings,
        accelerator: Accelerator,
        backbone: Backbone,
        policy: Steering,
        reference: Steering,
        control_scale: float = 1.0,
        cache: ReferenceCache | None = None,
    ) -> None:
        self.args, self.accelerator, self.backbone, self.cache = args, accelerator, backbone, cache
        self.policy, self.reference, self.control_scale = policy, reference, control_scale
        self.measures_distances = "distances" in reads(args.loss)

    def draw(self, step: int, group: PreferenceGroup, visit: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Timestep (1,) and noise (2N, C, h, w) of a visit: a stream for each candidate, or one for the group."""
        args, again = self.args, [visit] if visit else []
        generator = torch.Generator().manual_seed(stable_seed(args.seed, "timestep", step, group.image_id, *again))
        timestep = self.backbone.draw_timesteps(1, generator, args.timestep_range, **args.timestep_options())
        streams = ["shared"] * len(group.candidates) if args.shared_noise else group.candidates
        seeds = [stable_seed(args.seed, "noise", step, group.image_id, stream, *again) for stream in streams]
        shape = group.latents.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return timestep, noise.to(self.backbone.device, group.latents.dtype)

    def pair_weights(self, step: int, group: PreferenceGroup, visit: int = 0) -> torch.Tensor:
        """(N, N) weights: those of the group, or 0 but for `pairs_per_group` pairs drawn for this visit."""
        weights, count = group.weights, self.args.pairs_per_group
        if count:
            generator = torch.Generator().manual_seed(stable_seed(self.args.seed, "pairs", step, group.image_id, visit))
            kept = torch.zeros(weights.numel()).index_fill_(0, torch.randperm(weights.numel(), generator=generator)[:count], 1)
            weights = weights * kept.view_as(weights)
        return weights.to(self.backbone.device)

    def loss(
        self,
        gaps: torch.Tensor,
        weights: torch.Tensor,
        advantages: torch.Tensor | None = None,
        distances: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The sum over the group's pairs; `gaps`, `advantages` and `distances` (2N,), winners first; `weights` (N, N)."""
        args = self.args
        winners, losers = gaps.chunk(2)
        known: dict[str, object] = {"weights": weights, "advantages": advantages, "distances": distances}
        known |= {"beta": args.beta, "label_smoothing": args.label_smoothing}
        loss = LOSSES[args.loss](winners, losers, **{name: known[name] for name in reads(args.loss)})
        return loss + anchor_loss(winners, weights, args.beta, args.sft_weight) if args.sft_weight else loss

    def errors(
        self,
        controlnets: Sequence[Steering],
        group: PreferenceGroup,
        control: torch.Tensor,
        timestep: torch.Tensor,
        noise: torch.Tensor,
        part: slice,
    ) -> list[torch.Tensor]:
        """e of candidates `part` of the group under each ControlNet: one (B,) tensor each.

        For a loss that reads distances a further one: the mean squared difference of the first two predictions, the second detached.
        """
        backbone = self.backbone
        latents, noise = group.latents[part].to(backbone.device), noise[part]
        timesteps = timestep.expand(len(latents))
        noisy = backbone.add_noise(latents, noise, timesteps)
        with self.accelerator.autocast():
            predictions = backbone.predict(controlnets, noisy, timesteps, group.prompt, control, self.control_scale)
        target = backbone.target(latents, noise, timesteps)
        found = [prediction_errors(prediction, target) for prediction in predictions]
        if self.measures_distances and len(predictions) > 1:
            found.append(prediction_errors(predictions[0], predictions[1].detach()))
        return found

    @without_cudnn_attention()
    def visit(
        self, step: int, group: PreferenceGroup, scale: float, visit: int = 0, of_step: Visit | None = None,
        taken: Callable[[], object] = lambda: None,
    ) -> torch.Tensor:  # fmt: skip
        """Backward of `scale` × the group's loss in micro-batches; returns the group's statistics.

        The loss depends on a candidate through d_i alone, so its gradient is Σ_i (∂L/∂d_i) ∂e_θ(i): with more than one
        micro-batch the d_i are found first, without gradient, and any size gives the gradient of the whole. So do several processes,
        each of which makes the passes of its own micro-batches and learns the others' d_i. A distance is a second such number.

        Args:
            of_step: who shares the group; None: nobody.
            taken: called after each backward pass.
        """
        of_step = of_step or Visit(0, 0, 0)
        timestep, noise = self.draw(step, group, visit)
        control = self.backbone.prepare_control(group.control)
        weights = self.pair_weights(step, group, visit)
        advantages = None if group.advantages is None else group.advantages.to(self.backbone.device)
        every, parts = of_step.parts(len(group.candidates), self.args.micro_batch_size)
        cached = self.cache.read(group, timestep, step, visit) if self.cache else None
        models = [self.policy, self.reference] if cached is None else [self.policy]
        with torch.set_grad_enabled(len(parts) == 1):  # of a single micro-batch the graph is kept, and it is not computed again
            errors: list[list[torch.Tensor]] = [self.errors(models, group, control, timestep, noise, part) for part in parts]
        policy, reference, distances = self.of_all(parts, errors, cached, group, of_step)
        if self.cache and cached is None and of_step.member == 0:
            self.cache.write(group, timestep, step, visit, reference)
        gaps = policy - reference
        if len(every) == 1 and not of_step.groups:
            loss = self.loss(gaps, weights, advantages, distances)
            self.accelerator.backward(scale * loss)
            taken()
        else:
            numbers = [values.detach().requires_grad_(True) for values in (gaps, distances) if values is not None]
            loss = self.loss(numbers[0], weights, advantages, *numbers[1:])
            gradients = torch.autograd.grad(scale * loss, numbers)
            models = [self.policy, self.reference] if self.measures_distances else [self.policy]
            for part, found in zip(parts, errors, strict=True):
                again = found if len(parts) == 1 else self.errors(models, group, control, timestep, noise, part)
                own = again[::2] if self.measures_distances else again[:1]  # the policy's error, the distance
                self.accelerator.backward(torch.stack([(by[part] * values).sum() for by, values in zip(gradients, own, strict=True)]).sum())
                taken()
        statistics = self.statistics(loss.detach(), policy.detach(), gaps.detach())
        return statistics if of_step.member == 0 else torch.zeros_like(statistics)

    def of_all(
        self, parts: Sequence[slice], errors: Sequence[list[torch.Tensor]], cached: torch.Tensor | None, group: PreferenceGroup,
        of_step: Visit,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """(policy's errors, reference's, distances or None), (2N,) of all candidates: of this process's micro-batches `parts`, and of those
        of its team.

        All processes of a launch call it at the same time, if any group is shared: it is one sum over all of them.
        """
        if of_step.groups == 0:
            policy, *found = (torch.cat(of_model) for of_model in zip(*errors, strict=True))
            return policy, found[0].detach() if cached is None else cached.to(policy), found[1] if self.measures_distances else None
        device, dtype = self.backbone.device, group.latents.dtype
        rows, count = 2 + self.measures_distances, len(group.candidates)
        table = torch.zeros(of_step.groups, rows, count, dtype=torch.promote_types(dtype, torch.float32), device=device)
        for part, of_part in zip(parts, errors, strict=True):
            table[of_step.place, 0, part] = of_part[0].detach().to(table)
            table[of_step.place, 1, part] = of_part[1].detach().to(table) if cached is None else cached[part].to(table)
            if self.measures_distances:
                table[of_step.place, 2, part] = of_part[2].detach().to(table)
        torch.distributed.all_reduce(table)
        policy, reference, *distances = table[of_step.place]
        return policy, reference, distances[0] if distances else None

    def statistics(self, loss: torch.Tensor, policy: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
        """(7,): the loss, then the group's means of `STATISTICS`, to be added up over groups and processes."""
        winners, losers = gaps.chunk(2)
        margins = pair_margins(winners, losers, self.args.beta)
        accuracy = (margins > 0).double().mean() + 0.5 * (margins == 0).double().mean()
        errors = [part.double().mean() for part in (*policy.chunk(2), winners, losers)]
        return torch.stack([loss.double(), accuracy, margins.double().mean(), *errors])
