"""One visit of a group: a timestep, each candidate's noise, 2N errors of policy and reference, the loss of all pairs, its gradient."""

import torch

from dp2osr.preference.loss import LOSSES, anchor_loss, pair_margins, prediction_errors
from dp2osr.sampling.seeds import stable_seed

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

    def __init__(self, args, accelerator, backbone, policy, reference, control_scale=1.0, cache=None):
        self.args, self.accelerator, self.backbone, self.cache = args, accelerator, backbone, cache
        self.policy, self.reference, self.control_scale = policy, reference, control_scale

    def draw(self, step, group, visit=0):
        """Timestep (1,) and noise (2N, C, h, w) of a visit: a stream for each candidate, or one for the group."""
        args, again = self.args, [visit] if visit else []
        generator = torch.Generator().manual_seed(stable_seed(args.seed, "timestep", step, group.image_id, *again))
        timestep = self.backbone.draw_timesteps(1, generator, args.timestep_range, **args.timestep_options())
        streams = ["shared"] * len(group.candidates) if args.shared_noise else group.candidates
        seeds = [stable_seed(args.seed, "noise", step, group.image_id, stream, *again) for stream in streams]
        shape = group.latents.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return timestep, noise.to(self.backbone.device, group.latents.dtype)

    def pair_weights(self, step, group, visit=0):
        """(N, N) weights: those of the group, or 0 but for `pairs_per_group` pairs drawn for this visit."""
        weights, count = group.weights, self.args.pairs_per_group
        if count:
            generator = torch.Generator().manual_seed(stable_seed(self.args.seed, "pairs", step, group.image_id, visit))
            kept = torch.zeros(weights.numel()).index_fill_(0, torch.randperm(weights.numel(), generator=generator)[:count], 1)
            weights = weights * kept.view_as(weights)
        return weights.to(self.backbone.device)

    def loss(self, gaps, weights):
        """The sum over the group's pairs; `gaps` (2N,), winners first."""
        args = self.args
        winners, losers = gaps.chunk(2)
        smoothing = {"label_smoothing": args.label_smoothing} if args.label_smoothing else {}
        loss = LOSSES[args.loss](winners, losers, weights, args.beta, **smoothing)
        return loss + anchor_loss(winners, weights, args.beta, args.sft_weight) if args.sft_weight else loss

    def errors(self, controlnets, group, control, timestep, noise, part):
        """e of candidates `part` of the group under each ControlNet: one (B,) tensor each."""
        backbone = self.backbone
        latents, noise = group.latents[part].to(backbone.device), noise[part]
        timesteps = timestep.expand(len(latents))
        noisy = backbone.add_noise(latents, noise, timesteps)
        with self.accelerator.autocast():
            predictions = backbone.predict(controlnets, noisy, timesteps, group.prompt, control, self.control_scale)
        target = backbone.target(latents, noise, timesteps)
        return [prediction_errors(prediction, target) for prediction in predictions]

    def visit(self, step, group, scale, visit=0):
        """Backward of `scale` × the group's loss in micro-batches; returns the group's statistics.

        The loss depends on a candidate through d_i alone, so its gradient is Σ_i (∂L/∂d_i) ∂e_θ(i): with more than one
        micro-batch the d_i are found first, without gradient, and any size gives the gradient of the whole.
        """
        timestep, noise = self.draw(step, group, visit)
        control = self.backbone.prepare_control(group.control)
        weights = self.pair_weights(step, group, visit)
        total = len(group.candidates)
        size = self.args.micro_batch_size or total
        parts = [slice(first, first + size) for first in range(0, total, size)]
        cached = self.cache.read(group, timestep, step, visit) if self.cache else None
        models = [self.policy, self.reference] if cached is None else [self.policy]
        with torch.set_grad_enabled(len(parts) == 1):
            errors = [self.errors(models, group, control, timestep, noise, part) for part in parts]
        policy, *found = (torch.cat(of_model) for of_model in zip(*errors, strict=True))
        reference = found[0].detach() if found else cached.to(policy)
        if self.cache and found:
            self.cache.write(group, timestep, step, visit, reference)
        gaps = policy - reference
        if len(parts) == 1:
            loss = self.loss(gaps, weights)
            self.accelerator.backward(scale * loss)
        else:
            loss = self.loss(gaps.requires_grad_(True), weights)
            [gradient] = torch.autograd.grad(loss, gaps)
            for part in parts:
                [errors] = self.errors([self.policy], group, control, timestep, noise, part)
                self.accelerator.backward(scale * (gradient[part] * errors).sum())
        return self.statistics(loss.detach(), policy.detach(), gaps.detach())

    def statistics(self, loss, policy, gaps):
        """(7,): the loss, then the group's means of `STATISTICS`, to be added up over groups and processes."""
        winners, losers = gaps.chunk(2)
        margins = pair_margins(winners, losers, self.args.beta)
        accuracy = (margins > 0).double().mean() + 0.5 * (margins == 0).double().mean()
        errors = [part.double().mean() for part in (*policy.chunk(2), winners, losers)]
        return torch.stack([loss.double(), accuracy, margins.double().mean(), *errors])
