"""Settings of the studies whose work is in a module beside the program: neither loads the other for them."""

from dataclasses import dataclass, field
from typing import Annotated

from dp2osr.cli import Settings
from dp2osr.fields import Count, Finite, Natural, NonNegative, Positive, RegularExpression, at_least, metavar
from dp2osr.training.baseline_settings import BaselineSettings


@dataclass(kw_only=True)
class TinyModelSettings(Settings):
    """An untrained tiny model of either kind."""

    vae: str
    """Folder of a trained AutoencoderKL."""
    manifest: str = "configs/photographs.csv"
    """Its prompts are the tokenizers' corpus."""
    output_dir: str
    """The diffusers folder."""
    text_width: Count = 64
    """Width of every text encoder."""
    seed: Natural = 0
    """Initial weights."""


@dataclass(kw_only=True)
class TinySD2Settings(TinyModelSettings):
    """Sizes of an untrained tiny SD2."""

    block_out_channels: list[Count] = field(default_factory=lambda: [32, 64, 128])
    """UNet channels a level."""
    conditioning_channels: list[Count] = field(default_factory=lambda: [8, 16, 32])
    """Channels of the control embedding."""


@dataclass(kw_only=True)
class TinyFluxSettings(TinyModelSettings):
    """Sizes of an untrained tiny FLUX."""

    width: Count = 192
    """Width of the transformer; a multiple of 16 × the number of heads."""
    num_attention_heads: Count = 6
    """Attention heads."""
    num_layers: Count = 4
    """Double blocks of the transformer."""
    num_single_layers: Natural = 4
    """Single blocks of the transformer."""
    num_double_layers: Count = 2
    """Double blocks of the ControlNet."""


@dataclass(kw_only=True)
class AutoencoderSettings(Settings):
    """Training of a small autoencoder."""

    train_dir: str
    """Folder of training photographs."""
    val_dir: str
    """Folder of held-out photographs."""
    output_dir: str
    """Checkpoint, log and final vae/ folder."""
    block_out_channels: list[Count] = field(default_factory=lambda: [16, 32, 64])
    """Channels a level; each level but the last halves the side."""
    latent_channels: Count = 4
    """Latent channels."""
    resolution: Count = 64
    """Side of a training crop, pixels."""
    train_batch_size: Count = 8
    """Crops a step."""
    max_train_steps: Count = 1800
    """Optimizer steps."""
    learning_rate: NonNegative = 0.0007
    """Peak rate; cosine to zero."""
    lr_warmup_steps: Count = 200
    """Linear warm-up, steps."""
    chroma_weight: NonNegative = 1.0
    """Weight of the L1 in Cb, Cr."""
    kl_weight: NonNegative = 1e-06
    """Weight of the mean KL."""
    checkpointing_steps: Count = 200
    """Steps between checkpoints and held-out scores."""
    seed: Natural = 0
    """Decides initial weights, crops and noise."""


@dataclass(kw_only=True)
class DecoderSettings(Settings):
    """Training of a decoder."""

    vae: str
    """Folder of a trained AutoencoderKL."""
    train_dir: str
    """Photographs, as scripts/train_controlnet.py takes them."""
    output_dir: str
    """Gets vae/, vae_without_discriminator/ and log.jsonl."""
    minutes: Positive = 5.0
    """Training time; the rate follows a cosine over it."""
    pool_size: Count = 8000
    """Crops that it is trained on."""
    resolution: Count = 128
    """Their side, pixels."""
    train_batch_size: Count = 32
    """Crops a step."""
    learning_rate: NonNegative = 5e-4
    """Peak rate of decoder and discriminator."""
    perceptual_weight: NonNegative = 0.1
    """Weight of the perceptual distance beside L1."""
    texture_weight: NonNegative = 0.2
    """Weight of `dp2o_dists`' distance."""
    discriminator_weight: NonNegative = 0.5
    """Share of the gradient at the last layer that the discriminator gets, beside what the rest has."""
    discriminator_from: NonNegative = 0.4
    """Share of the time without discriminator, at the start."""
    latent_noise: NonNegative = 0.1
    """Largest standard deviation of noise that is added to latents: what the decoder gets are samples."""
    ema_decay: NonNegative = 0.999
    """Of the mean of the weights, which is saved."""
    dataloader_num_workers: Natural = 2
    """Processes that read crops."""
    seed: Natural = 0
    """Decides crops and initial weights."""


@dataclass(kw_only=True)
class GpuTrainingSettings(BaselineSettings):
    """A baseline's settings, and how long to train; `max_train_steps`, `lr_scheduler` and checkpoints are not read."""

    minutes: Positive = 6.0
    """Training time, from the first step on."""
    snapshots: Natural = 4
    """Models kept from along the way, evenly over the time."""
    fresh: Count = 16
    """Crops of the pool that are replaced by new ones at a time."""
    refresh_every: Count = 4
    """Steps between these times."""
    perceptual_weight: NonNegative = 0.0
    """Weight of `dp2o_lpips`' distance between GT and the clean image that a prediction implies, both decoded."""
    texture_weight: NonNegative = 0.0
    """Weight of `dp2o_dists`' distance between them."""


@dataclass(kw_only=True)
class StepsSettings(Settings):
    """Which models, at which numbers of steps, on which photographs."""

    models: list[str]
    """NAME=BASE+CONTROLNET, diffusers' folders."""
    image_path: str
    """LR images."""
    gt_path: str
    """Their GT, by name."""
    prompt_file: str | None = None
    """JSON {image: tags}."""
    output_dir: str
    """Gets steps.csv and sheet.png, the first eight images."""
    steps: list[Count] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    """Numbers of sampling steps."""
    num_candidates: Count = 2
    """Seeds an image."""
    guidance_scale: Finite = 1.0
    """Guidance."""
    reward_config: str = "embedded"
    """Name in configs/rewards or a YAML, whose metrics are measured."""
    extra_metrics: list[str] = field(default_factory=lambda: ["dp2o_lpips2", "dp2o_dists2", "psnr", "vsi"])
    """Others."""


@dataclass(kw_only=True)
class LocalitySettings(Settings):
    """Where a policy changed its base's images."""

    candidates: Annotated[tuple[str, str], metavar("NAME=DIR")]
    """Candidate folders of the same images and seeds, the base first."""
    gt_path: str
    """Folder of GT images, named as the LR images."""
    output_dir: str
    """Figure, table and settings go here."""
    num_candidates: Annotated[int, at_least(2)] = 8
    """Seeds of an image that are compared."""
    num_shown: Count = 4
    """Images in the figure, evenly over how much they changed."""
    bootstrap: Count = 2000
    """Resamples for the intervals."""
    crop_suffix: RegularExpression = "_\\d\\d$"
    """Of image ids, after the photograph's name."""
