"""Settings of preference training."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dp2osr.backbones.settings import ModelSettings
from dp2osr.cli import Settings
from dp2osr.fields import Count, Finite, Natural, NonNegative, Positive, RegularExpression, Share, at_least, checked, default_is, metavar
from dp2osr.hub.settings import HubSettings
from dp2osr.preference.settings import Weighting

Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]  # of diffusers.optimization
PAPERS_LOSS = "sigmoid"
STEADY_SCHEDULES = ("constant", "constant_with_warmup")  # do not depend on the number of steps: a longer run begins as a shorter one


def known_loss(word: str) -> str:
    """A name in `preference.loss.LOSSES`; ValueError for another. The paper's is known without torch, for --help's sake."""
    if word != PAPERS_LOSS:
        from dp2osr.preference.loss import LOSSES

        if word not in LOSSES:
            raise ValueError(f"is {word!r}, must be one of {', '.join(LOSSES)}")
    return word


@dataclass(kw_only=True)
class TimestepSettings(Settings):
    """Where on the noise schedule a denoiser is trained."""

    timestep_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    """FLUX: density of the training timesteps σ; those of SD2 are uniform."""
    logit_mean: Finite = 0.0
    """Of logit(σ); above 0: more noise."""
    logit_std: Positive = 1.0
    """Its standard deviation."""

    def timestep_options(self) -> dict[str, Any]:
        """Arguments of a backbone's `draw_timesteps`."""
        return {"timestep_sampling": self.timestep_sampling, "logit_mean": self.logit_mean, "logit_std": self.logit_std}


@dataclass(kw_only=True)
class ValidationSampling(Settings):
    """How validation samples where it is not to sample as the candidates were: fields of `SamplingSettings` or `GenerateSettings`."""

    num_inference_steps: Annotated[Count | None, default_is("the candidates'")] = None
    """Denoising steps in validation."""
    guidance_scale: Annotated[Finite | None, default_is("the candidates'")] = None
    """Guidance in validation."""
    scheduler: Annotated[str | None, default_is("the candidates'")] = None
    """Scheduler of the samples in validation; --lr_scheduler is that of the learning rate."""
    align_method: Annotated[Literal["adain", "wavelet", "nofix"] | None, default_is("the candidates'")] = None
    """Colour fix in validation."""
    upscale: Annotated[Positive | None, default_is("the candidates'")] = None
    """Size of GT over LR in validation."""


@dataclass(kw_only=True)
class ValidationSettings(ValidationSampling):
    """Held-out images that are sampled and scored during a training, and what their reward decides."""

    validation_image_path: str | None = None
    """Held-out LR images to sample and score during training."""
    validation_gt_path: str | None = None
    """Their GT, by name."""
    validation_prompt_file: Annotated[str | None, default_is("empty prompts")] = None
    """Their tags, JSON {image id: tags}."""
    validation_steps: Natural = 100
    """Steps between validations; 0: none."""
    validation_candidates: Annotated[int, at_least(2)] = 8
    """Samples a validation image."""
    collapse_patience: Natural = 3
    """Act when the held-out reward has fallen at this many validations in a row; 0: never."""
    on_collapse: Literal["stop", "halve_lr", "warn"] = "stop"
    """What to do then; best/ has the best policy in any case."""


@dataclass(kw_only=True)
class TrainSettings(HubSettings, ValidationSettings, TimestepSettings, ModelSettings):
    """Preference training: `train_sd2_dpo.py`, `train_flux_dpo.py`."""

    controlnet_model_name_or_path: str
    """Where the policy starts, and the reference."""
    reference_controlnet_model_name_or_path: Annotated[str | None, default_is("the start")] = None
    """A reference other than the policy's start: a further round may keep the first one."""
    candidates_dir: str
    """Candidate folder of gen_candidates.py."""
    scores: Annotated[str | None, default_is("scores.parquet in the candidate folder")] = None
    """Table of label_rewards.py."""
    reward_config: Annotated[str | None, default_is("the one that the scores were made for")] = None
    """Name in configs/rewards or a YAML."""
    output_dir: str
    """Checkpoints, log and, at the end, the policy; run again to go on."""
    force: bool = False
    """Go on in an output folder of other settings, which are shown; the rate is the flags' again."""
    num_candidates: Annotated[Count | None, default_is("all that are scored")] = None
    """M: use the first M candidates of each image."""
    top_n: Count = 8
    """N: best and worst candidates of a group."""
    beta: NonNegative = 5000.0
    """β of Diffusion-DPO."""
    sft_weight: NonNegative = 0.0
    """λ of the winners' own errors beside the preference."""
    loss: Annotated[str, checked(known_loss, str)] = PAPERS_LOSS
    """A loss of `dp2osr/preference/loss.py`: sigmoid (the paper's), ipo, hinge, plackett_luce, group_advantage, dgpo, nft."""
    label_smoothing: NonNegative = 0.0
    """Share of pairs whose label is taken to be wrong, below 0.5, with --loss sigmoid."""
    weighting: Weighting = "both"
    """Hierarchical weights of pairs; group_advantage, dgpo and nft have none."""
    shared_noise: bool = False
    """One noise for a group's candidates, as public Diffusion-DPO code has it for a pair."""
    timestep_range: Annotated[tuple[Share, Share], default_is("0 1"), metavar("LOW HIGH")] = (0.0, 1.0)
    """Share of the noise schedule that timesteps are drawn from, 0: clean, 1: noise."""
    groups_per_step: Count = 16
    """Groups an optimizer step over all processes; 16 × 8² = 1024 pairs."""
    timesteps_per_group: Count = 1
    """Timesteps, with their own noise, in a visit of a group."""
    pairs_per_group: Natural = 0
    """Pairs drawn from a group's N² at each visit, as a batch of pairs has; 0: all, at the same cost."""
    gradient_sum: Literal["fp32", "fp64"] = "fp64"
    """Precision in which gradients of groups and processes are added; fp64 makes the weights the same for any number of
    processes, for 8 bytes a parameter."""
    reference_cache: str | None = None
    """Folder that keeps the reference's errors: trainings on the same visits (same seed) need not run it again."""
    shard_optimizer: bool = False
    """Each process holds AdamW's state of its share of the parameters: 8 bytes a parameter, less by so many processes."""
    use_8bit_adam: bool = False
    """AdamW with 8-bit moments, by the package bitsandbytes."""
    quantize_backbone: Literal["int8", "nf4"] | None = None
    """Hold the frozen transformer or U-Net in 8 or 4 bits, by the package bitsandbytes, on a GPU; ControlNets are never quantised."""
    lora_rank: Natural = 0
    """Train LoRA adapters of this rank instead of the whole ControlNet; 0: the whole."""
    micro_batch_size: Natural = 0
    """Candidates in one backward pass; 0: the 2N of a group; same gradient for any."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    learning_rate: NonNegative = 2e-05
    """AdamW rate."""
    lr_scheduler: Schedule = "constant_with_warmup"
    """Schedule of the rate."""
    lr_warmup_steps: Natural = 0
    """Warm-up, steps."""
    adam_weight_decay: NonNegative = 0.01
    max_grad_norm: NonNegative = 1.0
    """Gradient clipping."""
    max_train_steps: Count = 1000
    """Optimizer steps; with a constant rate more may be asked for later."""
    checkpointing_steps: Count = 100
    """Steps between checkpoints."""
    checkpoints_total_limit: Count = 2
    """Checkpoints kept."""
    report_to: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Tracker."""


@dataclass(kw_only=True)
class ProbeSettings(TrainSettings):
    """A few steps of training for each of several M and N: `scripts/suggest_nm.py`."""

    sizes: Annotated[list[Annotated[int, at_least(2)]] | None, default_is("powers of two from 4 to all that are scored")] = None
    """M that are tried."""
    tops: Annotated[list[Count] | None, default_is("powers of two up to M/2")] = None
    """N that are tried."""
    probe_steps: Count = 20
    """Optimizer steps for each."""
    probe_visits: Annotated[int, at_least(2)] = 32
    """Candidates a step, for every N."""
    held_out_share: Positive = 0.25
    """Of the photographs."""
    held_out_groups: Annotated[int, at_least(2)] = 24
    """Held-out groups that judge."""
    held_out_candidates: Annotated[int, at_least(2)] = 16
    """Candidates of each."""
    held_out_timesteps: Count = 4
    """Timesteps for each."""
    crop_suffix: RegularExpression = "_\\d\\d$"
    """Of image ids, after the photograph's name."""
