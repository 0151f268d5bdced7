"""Settings of comparisons: methods by their candidates or their images."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dp2osr.cli import Settings
from dp2osr.fields import Count, Natural, Positive, RegularExpression, at_least, default_is, metavar
from dp2osr.sampling.settings import RestoreSettings


@dataclass(kw_only=True)
class EvaluateSettings(Settings):
    """A comparison of methods: `scripts/evaluate.py`."""

    candidates: Annotated[list[str] | None, metavar("NAME=DIR")] = None
    """Candidate folders with scores.parquet; the first is the reference of all comparisons."""
    images: Annotated[list[str] | None, metavar("NAME=DIR")] = None
    """Folders of SR images named as their GT, or with _00, _01 ... for several samples; a name given again has
    further samples; the first is the reference of all comparisons."""
    gt_path: str | None = None
    """Folder of GT images, named as the LR images; --images without it: NR metrics alone."""
    output_dir: str
    """Tables, and what else there is, go here; run again to go on."""
    bootstrap: Count = 2000
    """Resamples for the intervals."""
    seed: Natural = 0
    """Of the resampling."""
    crop_suffix: RegularExpression = "_\\d\\d$"
    """Regular expression of what an image id has beyond its photograph's name; '' if every image is a photograph."""
    metrics_dir: Annotated[str | None, default_is("DP2OSR_METRICS_DIR, else pyiqa's own places")] = None
    """Folder of scripts/fetch_metrics.py with pyiqa's weights."""
    reward_config: Annotated[str | None, default_is("the one that the scores were made for"), metavar("NAME_OR_YAML")] = None
    """A name in configs/rewards or a YAML."""
    training_log: list[str] | None = None
    """Train_log.jsonl of the policy's training, or one a round, for its curves."""
    num_candidates: Annotated[Annotated[int, at_least(2)] | None, default_is("the smallest M among the methods")] = None
    """Use the first M candidates of each image."""
    max_images_in_report: Natural = 12
    """Images shown, evenly over the gains."""
    no_bicubic: bool = False
    """Leave out bicubic, whose metrics are computed here."""
    protocol: Annotated[str, metavar("NAME_OR_YAML")] = "offline"
    """Metrics: a name in configs/evaluation or a YAML."""
    lr_path: str | None = None
    """Folder of LR images, whose names tell samples from images where there is no GT."""
    suffix: Annotated[str, default_is("none")] = ""
    """What is behind the names of the SR images; not needed for those of the test programs."""
    channel: Annotated[Literal["y", "rgb"] | None, default_is("the protocol's")] = None
    """Of PSNR and SSIM."""
    crop_border: Annotated[Natural | None, default_is("the protocol's")] = None
    """Of PSNR and SSIM, pixels cut on each side."""
    center_crop: Annotated[Annotated[int, at_least(8)] | None, default_is("all")] = None
    """Score the middle square of this side, pixels."""
    exclude_metrics: Annotated[list[str], metavar("METRIC")] = field(default_factory=list)
    """Metrics of the protocol to leave out."""
    fid: bool = False
    """FID of each method's images against the GT too; 100 images at least, whole (no --center_crop)."""
    published: Annotated[str | None, metavar("NAME_OR_YAML")] = None
    """Published values to set beside: a name in configs/paper (table1_realsr ...) or a YAML."""


OF_CANDIDATES = ("reward_config", "training_log", "num_candidates", "max_images_in_report", "no_bicubic")
OF_IMAGES = ("protocol", "lr_path", "suffix", "channel", "crop_border", "center_crop", "exclude_metrics", "fid", "published")


@dataclass(kw_only=True)
class AcceptanceSettings(RestoreSettings):
    """A few images restored by a released model, beside what was published of it: `scripts/acceptance.py`."""

    gt_path: str
    """Folder of their GT, named as the LR images."""
    method: str
    """The model's row in the published table: C-SD2, DP2O-SD2, C-FLUX, DP2O-FLUX."""
    num_images: Count = 10
    """How many images are restored, evenly spaced over the folder."""
    upscale: Positive = 4
    """Size of the result over size of the input."""
    published: Annotated[str, metavar("NAME_OR_YAML")] = "table1_realsr"
    """Published values: a name in configs/paper or a YAML."""
    protocol: Annotated[str, metavar("NAME_OR_YAML")] = "paper"
    """Metrics: a name in configs/evaluation or a YAML."""
    exclude_metrics: Annotated[list[str], metavar("METRIC")] = field(default_factory=list)
    """Metrics of the protocol to leave out, as qalign with its 16.4 GB of weights."""
    metrics_dir: Annotated[str | None, default_is("DP2OSR_METRICS_DIR, else pyiqa's own places")] = None
    """Folder of scripts/fetch_metrics.py with pyiqa's weights."""
    bootstrap: Count = 2000
    """Resamples for the intervals."""
