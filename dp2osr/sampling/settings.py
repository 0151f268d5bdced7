"""Settings of sampling: candidates for a training, or the restoration of a folder."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from dp2osr.backbones.settings import ModelSettings
from dp2osr.cli import Settings
from dp2osr.data.settings import PartSettings
from dp2osr.fields import Count, Finite, Natural, NonNegative, PartOfAName, Positive, Tokens, at_least, default_is, metavar


@dataclass(kw_only=True)
class PromptSettings(Settings):
    """Where prompts come from."""

    prompt_source: Annotated[Literal["ram", "file", "text", "none"] | None, default_is("the one that is given, else none")] = None
    """ram: tags of the LR image by --ram_path; file: tags from --prompt_file; text: --prompt; none: empty prompts."""
    ram_path: str | None = None
    """RAM: ram_swin_large_14m.pth, or the file that scripts/convert_ram.py made of it."""
    dape_path: str | None = None
    """DAPE.pth, RAM's update for degraded images; not needed where it is merged."""
    prompt_file: str | None = None
    """JSON {image id: tags}, with --prompt_source file."""
    prompt: str | None = None
    """One prompt for all images, with --prompt_source text."""


@dataclass(kw_only=True)
class LeverSettings(Settings):
    """What makes samples cheaper and other than the model's own: docs/cheap.md."""

    guidance_interval: Annotated[tuple[NonNegative, NonNegative] | None, metavar("LOW HIGH"), default_is("all steps")] = None
    """SD2: guide only where LOW < noise over signal <= HIGH; the other steps take one pass. For SDXL 0.28 5.42 were published."""
    cache_interval: Count = 1
    """Of so many steps one computes the ControlNet (SD2: and the UNet's encoder), more of the first and fewer of the last; the others take
    what it gave. 1: all compute it."""
    taylorseer_interval: Count = 1
    """FLUX: of so many steps one computes the transformer's attention and feed-forward layers, the others forecast what they give
    (TaylorSeer); the first eighth of the steps computes all. 1: all compute them."""
    branch_at: Natural = 0
    """The samples of an image begin at this step, 1 to steps - 1, with one shared sample noised to its level, each with its own noise.
    0: each has the whole trajectory."""


LEVERS_OFF = {entry.name: entry.default for entry in fields(LeverSettings)}  # the value with which a lever does nothing


@dataclass(kw_only=True)
class SamplingSettings(LeverSettings, PromptSettings):
    """How a model samples; the defaults of those that are None are the model's own, see `sampling.defaults`."""

    controlnet_model_name_or_path: str
    """ControlNet: a diffusers folder, a hub id, one safetensors file, or the checkpoint-STEP.pt of a training."""
    policy_strength: NonNegative = 1.0
    """How much of a training's change is applied: the ControlNet's weights become base + S * (policy - base). 0 is the base, 1 the policy,
    above 1 goes on in the direction of the training."""
    base_controlnet_model_name_or_path: Annotated[str | None, default_is("the start that the training's settings.json names")] = None
    """The base's ControlNet, of which --policy_strength other than 1 needs the weights."""
    num_inference_steps: Annotated[Count | None, default_is("the model's sampling_settings.json, else the paper's: SD2 50, FLUX 25")] = None
    """Denoising steps."""
    guidance_scale: Annotated[Finite | None, default_is("the model's sampling_settings.json, else the paper's: SD2 3.5, FLUX 2.5")] = None
    """Classifier-free guidance; 1 switches it off and halves the time."""
    scheduler: Annotated[str | None, default_is("the model's sampling_settings.json, else ddpm; flow_euler")] = None
    """SD2: ddpm, ddim, euler, euler_ancestral, dpm, unipc; FLUX: flow_euler, flow_heun (two passes a step), and flow_dpm, flow_unipc, which
    take few steps; or any diffusers scheduler class that fits."""
    align_method: Annotated[Literal["adain", "wavelet", "nofix"] | None, default_is("the model's sampling_settings.json, else adain")] = (
        None
    )
    """Colour fix against the upsampled LR."""
    negative_prompt: Annotated[str | None, default_is("the model's sampling_settings.json, else 'dotted, noise, blur, lowres, smooth'")] = (
        None
    )
    """SD2: used where guidance is on."""
    max_sequence_length: Annotated[Tokens | None, default_is("512")] = None
    """FLUX: tokens of a prompt that T5 embeds. 128 take 1.35 times less time and a quarter of the disk; longer prompts are cut."""
    batch_size: Count = 8
    """Samples of the model's own size denoised together, on each process; of larger images as many as have the same pixels."""
    enable_xformers_memory_efficient_attention: bool = False
    """Attention by xformers, which must be installed; without it PyTorch's own memory-efficient attention is used."""
    compile: bool = False
    """Compile the networks' repeated blocks by torch.compile: a minute or more at the start and at each new size, then faster."""
    control_scale: Annotated[Finite | None, default_is("the model's sampling_settings.json, else 1")] = None
    """Factor on what the ControlNet adds."""
    tile_size: Annotated[Count | None, default_is("1.5 times the model's size")] = None
    """Larger images are denoised in tiles of this side, pixels."""
    tile_overlap: Annotated[Natural | None, default_is("a third of the tile")] = None
    """Least overlap of neighbouring tiles, pixels."""
    vae_tile_size: Annotated[Count | None, default_is("twice the model's size")] = None
    """Larger images are encoded and decoded in tiles of this side, pixels."""


@dataclass(kw_only=True)
class GenerateSettings(PartSettings, SamplingSettings, ModelSettings):
    """M candidates an LR image: `gen_candidates.py`."""

    image_path: str
    """Folder of LR images (or one image)."""
    output_dir: str
    """The candidate folder; run again to go on where it stopped."""
    num_candidates: Count = 32
    """M, candidates an LR image."""
    upscale: Positive = 4
    """Size of the result over size of the LR image."""
    save_images: Literal["all", "none"] = "none"
    """PNGs beside the latents."""


@dataclass(kw_only=True)
class ImportSettings(PromptSettings, ModelSettings):
    """Candidates that others sampled: `scripts/import_candidates.py`."""

    image_path: str
    """Folder of the LR images that they were sampled from."""
    output_dir: str
    """The candidate folder; run again to go on where it stopped."""
    images: str | None = None
    """Folder of their images: <image_id>/NNN.png, or <image_id>_NN.png."""
    latents: str | None = None
    """Folder of their latents instead, scaled as the base model's denoiser sees them: <image_id>.safetensors with "latents" (M, C, h, w),
    or .pt, .npy."""
    first_number: Natural = 0
    """Number of the first candidate in the names of --images; it becomes candidate 0."""
    upscale: Positive = 4
    """Size of the candidates over size of the LR image."""
    align_method: Literal["adain", "wavelet", "nofix"] = "nofix"
    """Colour fix of the decoded candidates, which scoring and the trained policy go by."""
    num_inference_steps: Annotated[Count | None, default_is("the model's sampling_settings.json, else the paper's")] = None
    """Denoising steps that they were sampled with: validation goes by it."""
    guidance_scale: Annotated[Finite | None, default_is("the model's sampling_settings.json, else the paper's")] = None
    """Guidance that they were sampled with: validation goes by it, and the training of FLUX."""
    scheduler: Annotated[str | None, default_is("the model's sampling_settings.json, else its kind's")] = None
    """Scheduler that they were sampled with: validation goes by it."""


@dataclass(kw_only=True)
class RestoreSettings(PartSettings, SamplingSettings, ModelSettings):
    """SR images of a folder: the test programs."""

    image_path: str
    """Folder of LR images, or one image, of any size."""
    output_dir: str
    """Gets <stem>.png (or as --format says), or <stem>_00.png, ... where several are asked for; run again to go on."""
    upscale: Positive = 1
    """Size of the result over size of the input; 1 as published."""
    process_size: Annotated[Count | None, default_is("the model's")] = None
    """Inputs with a smaller side are enlarged to it first, pixels."""
    sample_times: Count = 1
    """Samples an image, each from its own seed."""
    suffix: Annotated[PartOfAName, default_is("none")] = ""
    """Appended to the stem of every result."""
    format: Literal["png", "jpg", "webp"] = "png"
    """Of the results. JPEG has full colour (4:4:4) and no transparency, which is put on white. EXIF and the colour profile of the input are
    kept in all of them."""
    quality: Annotated[Annotated[int, at_least(1, most=100)] | None, default_is("jpg 95, webp lossless")] = None
    """Of --format jpg or webp, 1 to 100; webp with it is lossy."""
    save_prompts: bool = False
    """Also write each image's tags to <output_dir>/txt/<stem>.txt."""
    overwrite: bool = False
    """Make anew what is there, also with other settings; each stays until the new one is whole."""
