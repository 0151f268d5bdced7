"""DP²O post-training: the loop of the paper's Algorithm, on groups.

Every step visits `groups_per_step` groups. For each: one timestep, each candidate's own noise, 2N errors of the policy and
2N of the reference, and from them the loss of all N² pairs. Groups, timesteps and noise follow from (seed, step) alone, so a
resumed run needs weights, optimizer, schedule, scaler and the step's number.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from tqdm import tqdm

from dp2osr.backbones import load_backbone, model_source
from dp2osr.data.images import save_image
from dp2osr.device import DTYPES, compute_device, set_tf32, usable_precision
from dp2osr.divergence import Divergence
from dp2osr.errors import memory_advice
from dp2osr.files import replace_folder, write_json
from dp2osr.hub.settings import without_hub
from dp2osr.preference.groups import PreferenceGroups, groups_of_step
from dp2osr.preference.reader import GroupReader
from dp2osr.provenance import legacy_weights_hash, versions, weights_hash
from dp2osr.rewards.chosen import as_dict, read_with_reward
from dp2osr.sampling.decode import stored_tiling
from dp2osr.sampling.defaults import NAMES
from dp2osr.sampling.store import CandidateStore, reading
from dp2osr.sharing import STALL, Launch
from dp2osr.training.adapters import distance, merged
from dp2osr.training.checkpoints import check_agreement, restore_checkpoint, save_checkpoint, save_controlnet
from dp2osr.training.checks import (
    check_libraries,
    check_model,
    check_neutral_start,
    check_options,
    check_processes,
    check_ranks,
    memory_flags,
)
from dp2osr.training.folder import FREE_SETTINGS, POLICY_FILES, check_folder, check_length, clear_parts, keep_run_settings
from dp2osr.training.gradient import SUM_DTYPES, GradientSum
from dp2osr.training.guard import CollapseGuard
from dp2osr.training.log import TrainingLog, start_tracker
from dp2osr.training.objective import STATISTICS, GroupObjective
from dp2osr.training.optimizers import ShardedOptimizer, adamw, restart_rates
from dp2osr.training.publication import Publication
from dp2osr.training.reference import load_networks
from dp2osr.training.reference_cache import open_cache
from dp2osr.training.settings import STEADY_SCHEDULES
from dp2osr.training.signals import StopRequest, end_early, noted_signals
from dp2osr.training.validation_sampling import candidates_settings
from dp2osr.training.visits import Visit, visits_of

if TYPE_CHECKING:
    from dp2osr.training.settings import TrainSettings
    from dp2osr.training.validation import RewardValidator

DISTANCE_STEPS = 10  # steps between two looks at how far the policy is from the reference


class PreferenceTrainer:
    """Policy, reference, data and optimizer of one run.

    Args:
        args: `TrainSettings`.

    Raises:
        UserError: candidates of another model, an impossible M or N, an output folder of another run.
    """

    def __init__(self, args: TrainSettings) -> None:
        from accelerate import Accelerator

        check_options(args)
        check_libraries(args)
        self.args, self.output = args, Path(args.output_dir)
        self.check_output()
        self.reference_path = args.reference_controlnet_model_name_or_path or args.controlnet_model_name_or_path
        self.validates = bool(args.validation_steps and args.validation_image_path)
        trackers = None if args.report_to == "none" else args.report_to
        device = compute_device()
        set_tf32(device, args.disable_tf32)
        self.accelerator = Accelerator(
            mixed_precision=usable_precision(args.mixed_precision, device),
            log_with=trackers,
            project_dir=args.output_dir,
            cpu=device.type == "cpu",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=STALL)],
        )
        self.request = StopRequest()
        check_processes(args, self.accelerator.num_processes)
        store = CandidateStore(args.candidates_dir)
        check_model(args, store)
        main = self.accelerator.is_main_process
        table, self.reward = read_with_reward(args.reward_config, args.candidates_dir, args.scores, print if main else None)
        self.groups = PreferenceGroups(store, table, self.reward, args.num_candidates, args.top_n, args.weighting)
        self.reader = GroupReader()
        check_ranks(args, store, self.groups.fingerprint(args.loss))
        dtype = DTYPES[self.accelerator.mixed_precision]  # what is frozen needs no more; policy and reference are in fp32, under autocast
        parts, held = ("vae", "denoiser"), args.quantize_backbone
        self.backbone = load_backbone(model_source(args), self.accelerator.device, dtype, parts, args.backbone, held)
        sampled = candidates_settings(store.settings, self.backbone)
        self.recommended = {name: sampled[name] for name in NAMES}
        self.backbone.guidance, self.control_scale = sampled["guidance_scale"], sampled["control_scale"]
        self.backbone.vae_tiling = stored_tiling(store.settings, self.backbone.vae_tiling)
        self.policy, self.reference, self.frozen, self.origin = load_networks(args, self.backbone, main)
        self.validator = self.make_validator() if self.validates else None
        cache = open_cache(args, self.backbone, store, self.accelerator.mixed_precision, self.control_scale)
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
        self.objective = GroupObjective(args, self.accelerator, self.backbone, self.policy, self.frozen, self.control_scale, cache)
        self.parts = {"policy": self.policy, "optimizer": self.optimizer, "schedule": self.schedule}
        if self.accelerator.scaler:
            self.parts["scaler"] = self.accelerator.scaler

    def check_output(self) -> None:
        """That the output folder can be written, and is not where an input lies or somebody else's files."""
        args = self.args
        names = ["controlnet_model_name_or_path", "reference_controlnet_model_name_or_path", "pretrained_model_name_or_path"]
        names += ["pretrained_vae_model_name_or_path", "candidates_dir", "scores", "validation_image_path", "validation_gt_path"]
        check_folder(args.output_dir, {f"--{name}": getattr(args, name) for name in names}, POLICY_FILES)
        check_length(args.output_dir, args.max_train_steps)

    def start_anew(self) -> None:
        """Step 0 of optimizer and schedule."""
        from diffusers.optimization import get_scheduler

        args = self.args
        self.accelerator._optimizers.clear()  # it would unscale the gradients once for every optimizer that it has prepared, and keep them
        make = partial(adamw, in_8_bits=args.use_8bit_adam, lr=args.learning_rate, weight_decay=args.adam_weight_decay)
        optimizer, processes = make(self.parameters), self.accelerator.num_processes
        if args.shard_optimizer and processes > 1:
            optimizer = ShardedOptimizer(self.parameters, make, self.accelerator.process_index, processes)
        # for fp16's scaler; gradients are summed over processes in train_step, and the state lies where the parameters are
        self.optimizer = self.accelerator.prepare(optimizer, device_placement=[False])
        self.schedule = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
        )
        self.step = 0

    def keep_settings(self, store: CandidateStore, forced: bool) -> None:
        """Write the run's settings, or compare them with those that are there; with --force, once its checkpoint is known to fit."""
        args = self.args
        if args.force != forced:
            return
        hashes = {
            "start_hash": weights_hash(args.controlnet_model_name_or_path),
            "reference_hash": weights_hash(self.reference_path),
            "groups_hash": self.groups.fingerprint(args.loss),
        }
        used = {"mixed_precision": self.accelerator.mixed_precision}  # an fp16 run has a scaler to resume
        used["num_groups"] = len(self.groups)
        settings = {**without_hub(args), **used, **hashes, "reward": as_dict(self.reward), "candidates": store.settings}
        steady = args.lr_scheduler in STEADY_SCHEDULES
        also: dict[str, Callable[[], Any]] = {
            "reward": lambda: None,  # from before it was written
            "use_8bit_adam": lambda: args.use_8bit_adam or None,
            "start_hash": partial(legacy_weights_hash, args.controlnet_model_name_or_path),
            "reference_hash": partial(legacy_weights_hash, self.reference_path),
        }
        keep_run_settings(self.output, settings, FREE_SETTINGS, steady, args.force, also)

    # -- one step ----------------------------------------------------------------------------------------------------

    def indices(self, step: int) -> list[int]:
        """The groups of a step."""
        return groups_of_step(step, self.args.groups_per_step, len(self.groups), self.args.seed)

    def own_visits(self, step: int) -> list[Visit]:
        """This process's visits of a step."""
        return visits_of(self.indices(step), self.accelerator.process_index, self.accelerator.num_processes)

    def train_step(self) -> tuple[dict[str, Any], list[str]]:
        """One optimizer step over the step's groups; returns its log record and their image ids."""
        args, accelerator = self.args, self.accelerator
        indices = self.indices(self.step)
        visits = args.groups_per_step * args.timesteps_per_group
        pairs = visits * (args.pairs_per_group or args.top_n**2)
        total = torch.zeros(2 + len(STATISTICS), dtype=torch.float64, device=self.backbone.device)
        gradient = GradientSum(self.parameters, SUM_DTYPES[args.gradient_sum])
        own = self.own_visits(self.step)
        following = [visit.index for visit in own + self.own_visits(self.step + 1)]
        for number, of_group in enumerate(own, 1):
            group = self.reader.take(self.groups, of_group.index, following[number:], self.backbone)
            for visit in range(of_group.before * args.timesteps_per_group, (of_group.before + 1) * args.timesteps_per_group):
                statistics = self.objective.visit(self.step, group, 1 / pairs, visit, of_group, gradient.take)
                total[:-1] += statistics
        total[-1] = bool(self.request.signal)
        total = accelerator.reduce(total, "sum")
        gradient.give(accelerator)
        norm = accelerator.clip_grad_norm_(self.parameters, args.max_grad_norm)
        loss, *means, signals = total.tolist()
        self.stopping = signals > 0
        record: dict[str, Any] = {
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
            check_neutral_start(self.objective, self.groups.only(indices), record)
        return record, [self.groups.image_ids[index] for index in indices]

    # -- the run -----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to `max_train_steps`, or to the end of the step in which a signal comes; leaves the policy in `output_dir`."""
        with noted_signals() as self.request:
            self.go_on()

    def go_on(self) -> None:
        """The loop of `train`."""
        args, main, validator = self.args, self.accelerator.is_main_process, self.validator
        if main:
            clear_parts(self.output)
        self.step = restore_checkpoint(self.output, self.parts)
        check_agreement(self.step, self.accelerator, self.parameters)
        if args.force:
            restart_rates(self.optimizer, self.schedule, args.learning_rate, args.adam_weight_decay)
            if main:
                self.keep_settings(self.groups.store, forced=True)
        log = TrainingLog(self.output / "train_log.jsonl", self.step) if main else None
        start_tracker(self.accelerator, args)
        guard = CollapseGuard(args.collapse_patience, log.records if log else ())
        stopped = self.validates and args.on_collapse == "stop" and self.has_collapsed(guard)  # it was stopped, and is run again
        last = self.step if stopped else args.max_train_steps
        if validator and self.step < last and self.lacks_validation(log):
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
            if self.step % DISTANCE_STEPS == 0 and main:
                record["distance"] = distance(self.policy, self.origin)
            smooth = record["implicit_accuracy"] if smooth is None else 0.9 * smooth + 0.1 * record["implicit_accuracy"]
            bar.set_postfix(loss=f"{record['loss']:.3f}", accuracy=f"{smooth:.2f}", refresh=False)
            self.log(log, record)
            if self.stopping and self.step < args.max_train_steps:  # a validation that is due is made when the run goes on
                self.save()
                end_early(self.accelerator, self.output, self.request.signal, self.step, args.max_train_steps)
            if self.validates and self.step % args.validation_steps == 0:
                if validator:
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

    def make_validator(self) -> RewardValidator:
        """Held-out validation by reward, which all ranks share."""
        args = self.args
        from dp2osr.training.validation import RewardValidator

        reference = self.backbone.load_controlnet(args.controlnet_model_name_or_path) if args.lora_rank else self.reference
        return RewardValidator(args, self.backbone, reference, self.reward, self.groups.store.settings, launch=Launch())

    def validate(self, validator: RewardValidator, guard: CollapseGuard, log: TrainingLog | None) -> None:
        """Log a validation and its pictures; keep the policy in `best/` if it is the best so far."""
        record = {"step": self.step, **validator(self.policy)}
        if not self.accelerator.is_main_process:
            return
        self.log(log, record)
        (self.output / "samples").mkdir(exist_ok=True)
        save_image(validator.sheet(), self.output / "samples" / f"step-{self.step:06d}.png")
        if guard.see(record):
            replace_folder(self.output / "best", lambda folder: save_controlnet(merged(self.policy), folder, self.recommended))
        guard.say(record)

    def has_collapsed(self, guard: CollapseGuard) -> bool:
        """Whether the run must stop, by the first process's validations; `--on_collapse` may only warn or lower the rate."""
        [collapsed] = broadcast_object_list([guard.collapsed])
        if not collapsed:
            return False
        action = self.args.on_collapse
        if self.accelerator.is_main_process:
            words = {"stop": "stops", "halve_lr": "goes on at half the learning rate", "warn": "goes on"}[action]
            print(
                f"\nwarning: {self.output}: G has fallen {guard.patience} validations in a row, best/ has the best policy; the run {words}",
                file=sys.stderr,
            )
        if action == "halve_lr":
            self.schedule.base_lrs = [rate / 2 for rate in self.schedule.base_lrs]
            for group in self.optimizer.param_groups:  # the next step's rate is set already
                group["lr"] /= 2
        return action == "stop"

    def log(self, log: TrainingLog | None, record: Mapping[str, Any]) -> None:
        if log:
            log.write(record)
            self.accelerator.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])

    def lacks_validation(self, log: TrainingLog | None) -> bool:
        """Whether a validation is due before the next step, by the first rank's log: at step 0, or one that a signal left out."""
        due = self.step % self.args.validation_steps == 0
        made = self.step > 0 and any(record["step"] == self.step and "loss" not in record for record in (log.records if log else ()))
        return broadcast_object_list([due and not made])[0]

    def save(self) -> None:
        """A checkpoint; before, all processes must have the same weights."""
        check_agreement(self.step, self.accelerator, self.parameters)
        main = self.accelerator.is_main_process
        save_checkpoint(self.output, self.step, self.parts, self.args.checkpoints_total_limit, writes=main)
        self.accelerator.wait_for_everyone()


def train_preferences(args: TrainSettings) -> None:
    """Train a policy; resumable. Where memory does not suffice, one line says what to set."""
    publication = Publication(args)
    with memory_advice(memory_flags(args, Launch().size)), reading([args.candidates_dir], "training"):
        trainer = PreferenceTrainer(args)
        publication.open()
        trainer.train()
    publication.finish(args.output_dir)
