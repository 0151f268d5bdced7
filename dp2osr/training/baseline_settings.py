"""Settings of a baseline's training; names are those of diffusers' training scripts where these have them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dp2osr.backbones.settings import ModelSettings
from dp2osr.fields import Count, Finite, Natural, NonNegative, Positive, Share, Tokens, default_is, metavar
from dp2osr.hub.settings import HubSettings
from dp2osr.training.settings import Schedule, TimestepSettings


@dataclass(kw_only=True)
class BaselineSettings(HubSettings, TimestepSettings, ModelSettings):
    """Training of a baseline ControlNet: `scripts/train_controlnet.py`."""

    train_dir: str
    """HR photographs: a folder, a list of paths (.txt, or .csv with columns file and prompt), or WebDataset shards: a folder of
    .tar files, one, or a pattern as 'shards/{000..127}.tar'."""
    recursive: bool = False
    """Take the photographs of sub-folders too."""
    strict: bool = False
    """Stop at a photograph or shard that cannot be used; else it is told and skipped."""
    degradation: str = "resshift"
    """Name in configs/degradation or a YAML."""
    prompt_file: str | None = None
    """JSON {photograph's stem: tags}; over the captions of a list or of shards."""
    resolution: Count = 512
    """Side of a degraded GT crop, pixels."""
    window: Annotated[Count | None, default_is("the whole crop")] = None
    """Side of a training window in latent pixels, cut from the degraded crop."""
    full_window_share: Share = 1.0
    """Share of the steps, at the end, that train on whole crops."""
    crops_per_photograph: Count = 1
    """Samples in a row that are crops of one decoded photograph: decoding 12 megapixels takes longer than degrading a crop."""
    drop_share: Share = 0.1
    """Share of samples trained with an empty prompt."""
    negative_share: Share = 0.0
    """Share of samples that learn the degraded image under the negative prompt."""
    negative_prompt: str = "dotted, noise, blur, lowres, smooth"
    """The prompt of those samples."""
    dataloader_num_workers: Natural = 2
    """Processes that decode and degrade, for each training process; 0: itself. Samples do not depend on it."""
    dataloader_prefetch_factor: Count = 2
    """Batches that they prepare ahead."""
    pool_size: Natural = 0
    """Degrade and encode so many crops once, into pool.safetensors, and draw every window from them: for tiny models, whose
    steps take less time than their pairs; 0: each sample is new."""
    max_sequence_length: Annotated[Tokens | None, default_is("512")] = None
    """FLUX: tokens of a prompt that T5 embeds."""
    text_cache_gb: Positive = 16.0
    """Host memory for embedded prompts; beyond it the text encoders stay resident."""
    controlnet_model_name_or_path: str | None = None
    """Start from this ControlNet instead of a copy of the backbone's encoder."""
    output_dir: str
    """State, log, controlnet/ and, with --train_backbone, model/; run again to go on."""
    train_batch_size: Count = 8
    """Samples a micro-batch on each process; fewer when whole crops are trained after windows, the same pixels."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches a step; equals a larger batch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    max_train_steps: Count = 35000
    """Optimizer steps."""
    learning_rate: NonNegative = 0.0002
    """Peak rate."""
    lr_scheduler: Schedule = "constant_with_warmup"
    """Schedule of the rate."""
    lr_warmup_steps: Natural = 500
    """Warm-up, steps."""
    lr_num_cycles: Count = 1
    """Restarts of cosine_with_restarts."""
    lr_power: Positive = 1.0
    """Power of the polynomial schedule."""
    use_8bit_adam: bool = False
    """AdamW with 8-bit moments, by the package bitsandbytes."""
    adam_beta1: Share = 0.9
    """Of AdamW."""
    adam_beta2: Share = 0.999
    """Of AdamW."""
    adam_weight_decay: NonNegative = 0.01
    """Of AdamW."""
    adam_epsilon: Positive = 1e-08
    """Of AdamW."""
    max_grad_norm: NonNegative = 1.0
    """The step's gradient is clipped to this norm."""
    use_ema: bool = False
    """Keep a running mean of the weights; it is what is saved as a model and sampled."""
    ema_decay: Share = 0.9999
    """Of that mean, at most; (1 + step) / (10 + step) before."""
    train_backbone: bool = False
    """Train the backbone's denoiser and text encoders too (tiny models)."""
    conditioning_channels: Annotated[list[Count] | None, default_is("the published 16 32 96 256, as many as that takes")] = None
    """SD2: channels of the control embedding, one number more than the autoencoder halves an image's side."""
    num_double_layers: Natural = 4
    """FLUX: double blocks of the ControlNet."""
    num_single_layers: Natural = 0
    """FLUX: single blocks of the ControlNet."""
    image_weight: Share = 0.0
    """Share of the error that is weighed as the decoded image feels it; 0: plain latents."""
    guidance_range: Annotated[tuple[Finite, Finite], metavar("LOW HIGH")] = (1.0, 1.0)
    """FLUX: the guidance that the network is told, drawn for every sample."""
    save_fp16: bool = False
    """Store models in fp16."""
    checkpointing_steps: Count = 500
    """Steps between checkpoints."""
    checkpoints_total_limit: Count = 2
    """Checkpoints kept."""
    report_to: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Tracker."""
    validation_image: list[str] | None = None
    """LR images, or folders of them, that are sampled to samples/STEP.png."""
    validation_prompt: Annotated[list[str] | None, default_is("none")] = None
    """Their prompts: one for all, or one each."""
    validation_steps: Count = 500
    """Steps between these pictures."""
    num_validation_images: Count = 2
    """Samples of each."""
    num_inference_steps: Annotated[Count | None, default_is("the paper's")] = None
    """Denoising steps of these samples."""
    guidance_scale: Annotated[Finite | None, default_is("the paper's")] = None
    """Guidance of these samples."""
