"""DP²O post-training: the loop of the paper's Algorithm, on groups.

Every step visits `groups_per_step` groups. For each: one timestep, each candidate's own noise, 2N errors of the policy and
2N of the reference, and from them the loss of all N² pairs. Groups, timesteps and noise follow from (seed, step) alone, so a
resumed run needs weights, optimizer, schedule, scaler and the step's number.
"""

import math
import time
from copy import deepcopy
from pathlib import Path

import torch
from tqdm import tqdm

from dp2osr.backbones import load_backbone, model_source
from dp2osr.config import settle, write_json
from dp2osr.errors import UserError
from dp2osr.precision import usable_precision
from dp2osr.preference.groups import PreferenceGroups, groups_of_step
from dp2osr.preference.loss import group_dpo_loss, pair_margins, prediction_errors
from dp2osr.provenance import versions, weights_hash
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.seeds import stable_seed
from dp2osr.sampling.store import CandidateStore
from dp2osr.training.checkpoints import restore_checkpoint, save_checkpoint, save_controlnet
from dp2osr.training.log import TrainingLog

# Settings that may differ when a run goes on: they change nothing in the weights, or a hash stands for them.
FREE_SETTINGS = (
    "config", "output_dir", "report_to", "checkpointing_steps", "checkpoints_total_limit", "micro_batch_size", "gradient_checkpointing",
    "validation_steps", "validation_image_path", "validation_gt_path", "validation_prompt_file", "validation_candidates",
    "pretrained_model_name_or_path",
    "controlnet_model_name_or_path", "candidates_dir", "scores", "candidates",
)  # fmt: skip


class PreferenceTrainer:
    """Policy, reference, data and optimizer of one run.

    Args:
        args: parsed flags of `train_sd2_dpo.py`.

    Raises:
        UserError: candidates of another model, an impossible M or N, an output folder of another run.
    """

    def __init__(self, args):
        from accelerate import Accelerator
        from diffusers.optimization import get_scheduler

        low, high = args.timestep_range
        if not 0 <= low < high <= 1:
            raise UserError(f"--timestep_range {low} {high}: must be 0 <= LOW < HIGH <= 1")
        self.args, self.output = args, Path(args.output_dir)
        trackers = None if args.report_to == "none" else args.report_to
        self.accelerator = Accelerator(
            mixed_precision=usable_precision(args.mixed_precision, "cuda" if torch.cuda.is_available() else "cpu"),
            log_with=trackers,
            project_dir=args.output_dir,
            cpu=not torch.cuda.is_available(),
        )
        store = CandidateStore(args.candidates_dir)
        if store.settings["model_hash"] != weights_hash(args.pretrained_model_name_or_path):
            raise UserError(
                f"{args.candidates_dir}: was sampled with the weights of {store.settings['model']}, which are not those of "
                f"{args.pretrained_model_name_or_path}; latents of another model cannot be trained on"
            )
        table = read_scores(args.scores or Path(args.candidates_dir) / "scores.parquet")
        config = load_reward_config(args.reward_config)
        self.groups = PreferenceGroups(store, table, config, args.num_candidates, args.top_n, args.weighting)
        self.backbone = load_backbone(model_source(args), self.accelerator.device, parts=("vae", "denoiser"), kind=args.backbone)
        self.backbone.guidance = store.settings["guidance_scale"]
        self.control_scale = store.settings.get("control_scale", 1.0)
        if self.accelerator.is_main_process:
            hashes = {"reference_hash": weights_hash(args.controlnet_model_name_or_path), "groups_hash": self.groups.fingerprint()}
            precision = {"mixed_precision": self.accelerator.mixed_precision}  # what is used: an fp16 run has a scaler to resume
            settle(self.output / "settings.json", {**vars(args), **precision, **hashes, "candidates": store.settings}, told=FREE_SETTINGS)
        self.accelerator.wait_for_everyone()
        self.reference = self.backbone.load_controlnet(args.controlnet_model_name_or_path, torch.float32).requires_grad_(False)
        self.policy = deepcopy(self.reference).requires_grad_(True).train()
        if args.gradient_checkpointing:
            self.policy.enable_gradient_checkpointing()
            self.backbone.denoiser.enable_gradient_checkpointing()
        self.parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(self.parameters, lr=args.learning_rate, weight_decay=args.adam_weight_decay, fused=True)
        self.optimizer = self.accelerator.prepare(optimizer)  # for fp16's scaler; gradients are summed over processes in train_step
        self.schedule = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
        )
        self.parts = {"policy": self.policy, "optimizer": self.optimizer, "schedule": self.schedule}
        if self.accelerator.scaler:
            self.parts["scaler"] = self.accelerator.scaler
        self.step = 0

    # -- one step ----------------------------------------------------------------------------------------------------

    def draw_noise(self, group):
        """Timestep of the group's visit and (2N, C, h, w) noise: a stream for each candidate, or one for the group."""
        generator = torch.Generator().manual_seed(stable_seed(self.args.seed, "timestep", self.step, group.image_id))
        timestep = self.backbone.draw_timesteps(1, generator, self.args.timestep_range)
        streams = ["shared"] * len(group.candidates) if self.args.shared_noise else group.candidates
        seeds = [stable_seed(self.args.seed, "noise", self.step, group.image_id, stream) for stream in streams]
        shape = group.latents.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return timestep, noise.to(self.backbone.device)

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

    def visit(self, group, scale):
        """Backward of `scale` × the group's loss in micro-batches; returns the group's statistics.

        The loss depends on a candidate through d_i alone, so its gradient is Σ_i (∂L/∂d_i) ∂e_θ(i): with more than one
        micro-batch the d_i are found first, without gradient, and any size gives the gradient of the whole.
        """
        timestep, noise = self.draw_noise(group)
        control = self.backbone.prepare_control(group.control)
        total = len(group.candidates)
        size = self.args.micro_batch_size or total
        parts = [slice(first, first + size) for first in range(0, total, size)]
        weights = group.weights.to(self.backbone.device)
        models = [self.policy, self.reference]
        if len(parts) == 1:
            policy, reference = self.errors(models, group, control, timestep, noise, parts[0])
            loss = self.group_loss(policy - reference.detach(), weights)
            self.accelerator.backward(scale * loss)
        else:
            with torch.no_grad():
                policy, reference = (
                    torch.cat(errors)
                    for errors in zip(*(self.errors(models, group, control, timestep, noise, part) for part in parts), strict=True)
                )
            gaps = (policy - reference).requires_grad_(True)
            loss = self.group_loss(gaps, weights)
            [gradient] = torch.autograd.grad(loss, gaps)
            for part in parts:
                [errors] = self.errors([self.policy], group, control, timestep, noise, part)
                self.accelerator.backward(scale * (gradient[part] * errors).sum())
        return self.statistics(loss.detach(), policy.detach(), reference.detach(), weights)

    def group_loss(self, gaps, weights):
        winners, losers = gaps.chunk(2)
        return group_dpo_loss(winners, losers, weights, self.args.beta, self.args.sft_weight)

    def statistics(self, loss, policy, reference, weights):
        """(7,) sums over the group's pairs and candidates, to be added up over groups and processes."""
        winners, losers = (policy - reference).chunk(2)
        margins = pair_margins(winners, losers, self.args.beta)
        pairs, count = margins.numel(), len(winners)
        correct = (margins > 0).sum() + 0.5 * (margins == 0).sum()
        return torch.stack(
            [loss, correct, margins.sum(), policy[:count].sum(), policy[count:].sum(), winners.sum(), losers.sum()]
        ).double() / torch.tensor(
            [1, 1, 1, count / pairs, count / pairs, count / pairs, count / pairs], dtype=torch.float64, device=loss.device
        )

    def train_step(self):
        """One optimizer step over the step's groups; returns its log record and their image ids."""
        args, accelerator = self.args, self.accelerator
        indices = groups_of_step(self.step, args.groups_per_step, len(self.groups), args.seed)
        pairs = args.groups_per_step * args.top_n**2
        total = torch.zeros(7, dtype=torch.float64, device=self.backbone.device)
        for index in indices[accelerator.process_index :: accelerator.num_processes]:
            total += self.visit(self.groups.read(index, self.backbone), 1 / pairs)
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, "sum")
            for parameter in self.parameters:
                parameter.grad = accelerator.reduce(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, "sum")
        norm = accelerator.clip_grad_norm_(self.parameters, args.max_grad_norm)
        total = (total / pairs).tolist()
        finite = math.isfinite(total[0]) and bool(torch.isfinite(norm))
        if finite or accelerator.scaler:  # fp16's scaler skips the step itself, and must see it to lower its scale
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        names = ("loss", "implicit_accuracy", "margin", "winner_error", "loser_error", "winner_gap", "loser_gap")
        record = {
            "step": self.step + 1,
            **dict(zip(names, total, strict=True)),
            "grad_norm": float(norm),
            "learning_rate": self.schedule.get_last_lr()[0],
            "finite": finite,
        }
        if self.step == 0:
            self.check_neutral_start(indices, total[0])
        return record, [self.groups.image_ids[index] for index in indices]

    def check_neutral_start(self, indices, loss):
        """Policy and reference are one at step 0: the loss is exactly ln 2 × the mean weight."""
        expected = math.log(2) * float(self.groups.weights[indices].mean())
        if not math.isclose(loss, expected, rel_tol=1e-4):
            raise RuntimeError(
                f"step 0: the loss is {loss}, not ln 2 × mean weight = {expected}: policy and reference differ before training"
            )

    # -- the run -----------------------------------------------------------------------------------------------------

    def train(self):
        """Train to `max_train_steps`, from the newest checkpoint if there is one; leaves the policy in `output_dir`."""
        args, main = self.args, self.accelerator.is_main_process
        self.step = restore_checkpoint(self.output, self.parts)
        log = TrainingLog(self.output / "train_log.jsonl", self.step) if main else None
        if args.report_to != "none":
            self.accelerator.init_trackers(
                "dp2o", config={key: value for key, value in vars(args).items() if isinstance(value, (int, float, str, bool))}
            )
        validator = self.make_validator()
        if validator and self.step == 0:
            self.log(log, {"step": 0, **validator(self.policy)})
        bar = tqdm(
            range(self.step, args.max_train_steps),
            initial=self.step,
            total=args.max_train_steps,
            unit="step",
            desc="train",
            disable=not main,
        )
        bad, smooth = 0, None
        for _ in bar:
            started = time.perf_counter()
            record, image_ids = self.train_step()
            self.step += 1
            bad = 0 if record["finite"] or self.accelerator.scaler and math.isfinite(record["loss"]) else bad + 1
            if bad == 3:
                raise UserError(
                    f"{self.output}: no finite loss in three steps in a row, the last at step {self.step} with the images "
                    f"{', '.join(image_ids)}; lower --learning_rate or check their scores"
                )
            record["pairs_per_second"] = args.groups_per_step * args.top_n**2 / (time.perf_counter() - started)
            smooth = record["implicit_accuracy"] if smooth is None else 0.9 * smooth + 0.1 * record["implicit_accuracy"]
            bar.set_postfix(loss=f"{record['loss']:.3f}", accuracy=f"{smooth:.2f}", refresh=False)
            self.log(log, record)
            if validator and self.step % args.validation_steps == 0:
                self.log(log, {"step": self.step, **validator(self.policy)})
            if self.step % args.checkpointing_steps == 0 or self.step == args.max_train_steps:
                self.save()
        if main:
            save_controlnet(self.policy, self.output)
            write_json(self.output / "versions.json", versions())
        self.accelerator.end_training()

    def make_validator(self):
        """Held-out validation by reward, if images for it are given; the first process does it for all."""
        if not (self.args.validation_steps and self.args.validation_image_path and self.accelerator.is_main_process):
            return None
        from dp2osr.training.validation import RewardValidator

        return RewardValidator(self.args, self.backbone, self.reference, self.control_scale)

    def log(self, log, record):
        if log:
            log.write(record)
            self.accelerator.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])

    def save(self):
        if self.accelerator.is_main_process:
            save_checkpoint(self.output, self.step, self.parts, self.args.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()
