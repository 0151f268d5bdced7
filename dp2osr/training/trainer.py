"""DP²O post-training: the loop of the paper's Algorithm, on groups.

Every step visits `groups_per_step` groups. For each: one timestep, each candidate's own noise, 2N errors of the policy and
2N of the reference, and from them the loss of all N² pairs. Groups, timesteps and noise follow from (seed, step) alone, so a
resumed run needs weights, optimizer, schedule, scaler and the step's number.
"""

import math
import sys
import time
from copy import deepcopy
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from tqdm import tqdm

from dp2osr.backbones import load_backbone, model_source
from dp2osr.data.images import save_image
from dp2osr.device import DTYPES, compute_device, usable_precision
from dp2osr.divergence import Divergence
from dp2osr.errors import UserError
from dp2osr.files import replace_folder, write_json
from dp2osr.preference.groups import PreferenceGroups, groups_of_step
from dp2osr.provenance import legacy_weights_hash, versions, weights_hash
from dp2osr.rewards.chosen import as_dict, read_with_reward
from dp2osr.sampling.decode import stored_tiling
from dp2osr.sampling.defaults import NAMES
from dp2osr.sampling.store import CandidateStore
from dp2osr.training.adapters import WithoutAdapters, add_adapters, distance, merged
from dp2osr.training.checkpoints import restore_checkpoint, save_checkpoint, save_controlnet
from dp2osr.training.checks import check_model, check_options
from dp2osr.training.folder import FREE_SETTINGS, POLICY_FILES, check_folder, check_length, clear_parts, keep_run_settings
from dp2osr.training.gradient import GradientSum
from dp2osr.training.guard import CollapseGuard
from dp2osr.training.log import TrainingLog, start_tracker
from dp2osr.training.objective import STATISTICS, GroupObjective
from dp2osr.training.reference_cache import ReferenceCache
from dp2osr.training.settings import STEADY_SCHEDULES
from dp2osr.training.validation_sampling import candidates_settings

GRADIENT_SUMS = {"fp32": torch.float32, "fp64": torch.float64}
DISTANCE_STEPS = 10  # steps between two looks at how far the policy is from the reference


class PreferenceTrainer:
    """Policy, reference, data and optimizer of one run.

    Args:
        args: `TrainSettings`.

    Raises:
        UserError: candidates of another model, an impossible M or N, an output folder of another run.
    """

    def __init__(self, args):
        from accelerate import Accelerator

        check_options(args)
        self.args, self.output = args, Path(args.output_dir)
        self.check_output()
        self.reference_path = args.reference_controlnet_model_name_or_path or args.controlnet_model_name_or_path
        self.validates = bool(args.validation_steps and args.validation_image_path)
        trackers = None if args.report_to == "none" else args.report_to
        device = compute_device()
        self.accelerator = Accelerator(
            mixed_precision=usable_precision(args.mixed_precision, device),
            log_with=trackers,
            project_dir=args.output_dir,
            cpu=device == "cpu",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],  # the others wait while the first one validates
        )
        if self.accelerator.num_processes > args.groups_per_step:
            raise UserError(
                f"--groups_per_step {args.groups_per_step}: fewer than the {self.accelerator.num_processes} processes; give more"
            )
        store = CandidateStore(args.candidates_dir)
        check_model(args, store)
        main = self.accelerator.is_main_process
        table, self.reward = read_with_reward(args.reward_config, args.candidates_dir, args.scores, print if main else None)
        self.groups = PreferenceGroups(store, table, self.reward, args.num_candidates, args.top_n, args.weighting)
        dtype = DTYPES[self.accelerator.mixed_precision]  # what is frozen needs no more; policy and reference are in fp32, under autocast
        self.backbone = load_backbone(model_source(args), self.accelerator.device, dtype, ("vae", "denoiser"), args.backbone)
        sampled = candidates_settings(store.settings, self.backbone)
        self.recommended = {name: sampled[name] for name in NAMES}
        self.backbone.guidance, self.control_scale = sampled["guidance_scale"], sampled["control_scale"]
        self.backbone.vae_tiling = stored_tiling(store.settings, self.backbone.vae_tiling)
        self.load_networks()
        self.validator = self.make_validator() if main and self.validates else None
        cache = self.reference_cache(store) if args.reference_cache else None
        if main:
            self.keep_settings(store, forced=False)
            for line in self.groups.warnings():
                print(f"warning: {store.folder}: {line}", file=sys.stderr)
        self.accelerator.wait_for_everyone()
        if args.gradient_checkpointing:
            self.policy.enable_gradient_checkpointing()
            self.backbone.denoiser.enable_gradient_checkpointing()
        self.parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self.start_anew()
        self.objective = GroupObjective(args, self.accelerator, self.backbone, self.policy, self.reference, self.control_scale, cache)
        self.parts = {"policy": self.policy, "optimizer": self.optimizer, "schedule": self.schedule}
        if self.accelerator.scaler:
            self.parts["scaler"] = self.accelerator.scaler

    def check_output(self):
        """That the output folder can be written, and is not where an input lies or somebody else's files."""
        args = self.args
        names = ("controlnet_model_name_or_path", "reference_controlnet_model_name_or_path", "pretrained_model_name_or_path")
        names += ("pretrained_vae_model_name_or_path", "candidates_dir", "scores", "validation_image_path", "validation_gt_path")
        check_folder(args.output_dir, {f"--{name}": getattr(args, name) for name in names}, POLICY_FILES)
        check_length(args.output_dir, args.max_train_steps)

    def start_anew(self):
        """Step 0 of optimizer and schedule."""
        from diffusers.optimization import get_scheduler

        args = self.args
        self.accelerator._optimizers.clear()  # it would unscale the gradients once for every optimizer that it has prepared, and keep them
        optimizer = torch.optim.AdamW(self.parameters, lr=args.learning_rate, weight_decay=args.adam_weight_decay, fused=True)
        self.optimizer = self.accelerator.prepare(optimizer)  # for fp16's scaler; gradients are summed over processes in train_step
        self.schedule = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
        )
        self.step = 0

    def load_networks(self):
        """Policy and reference: two ControlNets, or one with adapters that are on for the policy and off for the reference."""
        args = self.args
        start = self.backbone.load_controlnet(args.controlnet_model_name_or_path, torch.float32).requires_grad_(False)
        if args.lora_rank:
            torch.manual_seed(args.seed)
            self.policy = add_adapters(start, args.lora_rank).train()
            self.reference = WithoutAdapters(self.policy)
        else:
            other = args.reference_controlnet_model_name_or_path
            self.reference = self.backbone.load_controlnet(other, torch.float32).requires_grad_(False) if other else deepcopy(start)
            self.policy = start.requires_grad_(True).train()

    def keep_settings(self, store, forced):
        """Write the run's settings, or compare them with those that are there; with --force, once its checkpoint is known to fit."""
        args = self.args
        if args.force != forced:
            return
        hashes = {
            "start_hash": weights_hash(args.controlnet_model_name_or_path),
            "reference_hash": weights_hash(self.reference_path),
            "groups_hash": self.groups.fingerprint(),
        }
        precision = {"mixed_precision": self.accelerator.mixed_precision}  # what is used: an fp16 run has a scaler to resume
        settings = {**vars(args), **precision, **hashes, "reward": as_dict(self.reward), "candidates": store.settings}
        steady = args.lr_scheduler in STEADY_SCHEDULES
        also = {
            "reward": lambda: None,  # from before it was written
            "start_hash": partial(legacy_weights_hash, args.controlnet_model_name_or_path),
            "reference_hash": partial(legacy_weights_hash, self.reference_path),
        }
        keep_run_settings(self.output, settings, FREE_SETTINGS, steady, args.force, also)

    def reference_cache(self, store):
        """The cache of the reference's errors, filed under all that decides them beside group, timestep and noise."""
        args, precision = self.args, self.accelerator.mixed_precision
        origin = {
            "reference": weights_hash(self.reference_path),
            "model": store.settings["model_hash"],
            "variant": args.variant,
            "revision": args.revision,
            "guidance": self.backbone.guidance,
            "control_scale": self.control_scale,
            "seed": args.seed,
            "shared_noise": args.shared_noise,
            "device": self.backbone.device.type,
            "mixed_precision": precision,
            "frozen": str(self.backbone.dtype),
            # rounding depends on what is computed together, and β multiplies it: in 16 bits N and batch are part of what was computed
            "together": None if precision == "no" else [args.top_n, args.micro_batch_size],
        }
        return ReferenceCache(args.reference_cache, origin)

    # -- one step ----------------------------------------------------------------------------------------------------

    def train_step(self):
        """One optimizer step over the step's groups; returns its log record and their image ids."""
        args, accelerator = self.args, self.accelerator
        indices = groups_of_step(self.step, args.groups_per_step, len(self.groups), args.seed)
        visits = args.groups_per_step * args.timesteps_per_group
        pairs = visits * (args.pairs_per_group or args.top_n**2)
        total = torch.zeros(1 + len(STATISTICS), dtype=torch.float64, device=self.backbone.device)
        gradient = GradientSum(self.parameters, GRADIENT_SUMS[args.gradient_sum])
        for place in range(accelerator.process_index, len(indices), accelerator.num_processes):
            group = self.groups.read(indices[place], self.backbone)
            before = indices[:place].count(indices[place])  # where one epoch ends and the next begins, a step may see a group twice
            for visit in range(before * args.timesteps_per_group, (before + 1) * args.timesteps_per_group):
                total += self.objective.visit(self.step, group, 1 / pairs, visit)
                gradient.take()
        total = accelerator.reduce(total, "sum")
        gradient.give(accelerator)
        norm = accelerator.clip_grad_norm_(self.parameters, args.max_grad_norm)
        loss, *means = total.tolist()
        record = {
            "step": self.step + 1,
            "loss": loss / pairs,
            **{name: sum_ / visits for name, sum_ in zip(STATISTICS, means, strict=True)},
        }
        finite = math.isfinite(loss) and bool(torch.isfinite(norm))
        if finite or accelerator.scaler:  # fp16's scaler skips the step itself, and must see it to lower its scale
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        record |= {"grad_norm": float(norm), "learning_rate": self.schedule.get_last_lr()[0], "finite": finite}
        if self.step == 0 and finite and not args.reference_controlnet_model_name_or_path:
            self.check_neutral_start(indices, record)
        return record, [self.groups.image_ids[index] for index in indices]

    def check_neutral_start(self, indices, record):
        """Policy and reference are one at step 0: the margins are 0, the loss that of zero gaps (the paper's: ln 2 × the mean weight)."""
        if self.objective.cache and self.objective.cache.hits:  # errors of another run: the same but for rounding, which β multiplies
            return
        args, zeros = self.args, torch.zeros(2 * self.args.top_n)
        if not args.pairs_per_group:
            weights = torch.from_numpy(self.groups.weights[indices]).float()
            expected = float(sum(self.objective.loss(zeros, of_group) for of_group in weights)) / weights.numel()
            if not math.isclose(record["loss"], expected, rel_tol=1e-4):
                raise RuntimeError(f"step 0: the loss is {record['loss']}, not that of zero gaps, {expected}: policy and reference differ")
        if abs(record["margin"]) > 1e-3:
            raise RuntimeError(f"step 0: the mean margin is {record['margin']}, not 0: policy and reference differ before training")

    # -- the run -----------------------------------------------------------------------------------------------------

    def train(self):
        """Train to `max_train_steps`, from the newest checkpoint if there is one; leaves the policy in `output_dir`."""
        args, main, validator = self.args, self.accelerator.is_main_process, self.validator
        if main:
            clear_parts(self.output)
        self.step = restore_checkpoint(self.output, self.parts)
        if args.force:
            self.restart_schedule()
            if main:
                self.keep_settings(self.groups.store, forced=True)
        log = TrainingLog(self.output / "train_log.jsonl", self.step) if main else None
        start_tracker(self.accelerator, args)
        guard = CollapseGuard(args.collapse_patience, log.records if main else ())
        stopped = self.validates and args.on_collapse == "stop" and self.has_collapsed(guard)  # it was stopped, and is run again
        last = self.step if stopped else args.max_train_steps
        if validator and self.step == 0 < last:
            self.validate(validator, guard, log)
        bar = tqdm(range(self.step, last), "train", args.max_train_steps, initial=self.step, unit="step", disable=not main)
        divergence, smooth = Divergence(self.output), None
        for _ in bar:
            started = time.perf_counter()
            record, image_ids = self.train_step()
            self.step += 1
            divergence.see(self.step, record["finite"] or self.accelerator.scaler and math.isfinite(record["loss"]), image_ids)
            seconds = time.perf_counter() - started
            record["groups_per_second"] = args.groups_per_step / seconds
            record["pairs_per_second"] = args.groups_per_step * args.timesteps_per_group * (args.pairs_per_group or args.top_n**2) / seconds
            if self.step % DISTANCE_STEPS == 0:
                record["distance"] = distance(self.policy, self.reference)
            smooth = record["implicit_accuracy"] if smooth is None else 0.9 * smooth + 0.1 * record["implicit_accuracy"]
            bar.set_postfix(loss=f"{record['loss']:.3f}", accuracy=f"{smooth:.2f}", refresh=False)
            self.log(log, record)
            if self.validates and self.step % args.validation_steps == 0:
                if main:
                    self.validate(validator, guard, log)
                if self.has_collapsed(guard):
                    self.save()
                    break
            if self.step % args.checkpointing_steps == 0 or self.step == args.max_train_steps:
                self.save()
        bar.close()
        if main:
            divergence.warn()
            save_controlnet(merged(self.policy), self.output, self.recommended)
            write_json(self.output / "versions.json", versions())
        self.accelerator.end_training()

    def restart_schedule(self):
        """Learning rate and weight decay by the flags, not by the checkpoint's settings."""
        args, schedule = self.args, self.schedule
        schedule.base_lrs = [args.learning_rate] * len(schedule.base_lrs)
        for group, factor in zip(self.optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group.update(initial_lr=args.learning_rate, weight_decay=args.adam_weight_decay)
            group["lr"] = args.learning_rate * factor(schedule.last_epoch)

    def make_validator(self):
        """Held-out validation by reward; the first process does it for all."""
        args = self.args
        from dp2osr.training.validation import RewardValidator

        reference = self.backbone.load_controlnet(args.controlnet_model_name_or_path) if args.lora_rank else self.reference
        return RewardValidator(args, self.backbone, reference, self.reward, self.groups.store.settings)

    def validate(self, validator, guard, log):
        """Log a validation and its pictures; keep the policy in `best/` if it is the best so far."""
        record = {"step": self.step, **validator(self.policy)}
        self.log(log, record)
        (self.output / "samples").mkdir(exist_ok=True)
        save_image(validator.sheet(), self.output / "samples" / f"step-{self.step:06d}.png")
        if guard.see(record):
            replace_folder(self.output / "best", lambda folder: save_controlnet(merged(self.policy), folder, self.recommended))

    def has_collapsed(self, guard):
        """Whether the run must stop, by the first process's validations; `--on_collapse` may only warn or lower the rate."""
        [collapsed] = broadcast_object_list([guard.collapsed])
        if not collapsed:
            return False
        action = self.args.on_collapse
        if self.accelerator.is_main_process:
            words = {"stop": "stops", "halve_lr": "goes on at half the learning rate", "warn": "goes on"}[action]
            print(
                f"\nwarning: {self.output}: the held-out reward has fallen {guard.patience} validations in a row "
                f"(G = {guard.last:.2f}, best {guard.best:.2f}, kept in best/); the run {words}",
                file=sys.stderr,
            )
        if action == "halve_lr":
            self.schedule.base_lrs = [rate / 2 for rate in self.schedule.base_lrs]
            for group in self.optimizer.param_groups:  # the next step's rate is set already
                group["lr"] /= 2
        return action == "stop"

    def log(self, log, record):
        if log:
            log.write(record)
            self.accelerator.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])

    def save(self):
        if self.accelerator.is_main_process:
            save_checkpoint(self.output, self.step, self.parts, self.args.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()
