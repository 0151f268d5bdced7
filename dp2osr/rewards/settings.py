"""Settings of scoring candidates, and of explaining and checking a reward."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dp2osr.cli import Settings
from dp2osr.fields import Count, Natural, Positive, at_least, default_is, metavar
from dp2osr.sampling.settings import RestoreSettings


@dataclass(kw_only=True)
class LabelSettings(Settings):
    """Raw scores of all candidates: `label_rewards.py`."""

    candidates_dir: str
    """Folder made by gen_candidates.py."""
    gt_path: str | None = None
    """Folder of GT images, named as the LR images; needed by FR metrics."""
    reward_config: Annotated[
        str | None,
        default_is("default"),
    ] = None
    """Name in configs/rewards or a YAML file: `default` has the four and four metrics of the full-size models; `embedded`, for the tiny
    ones, needs no weights from a network."""
    extra_metrics: Annotated[list[str], metavar("METRIC")] = field(default_factory=list)
    """Further pyiqa metrics, outside the reward: psnr ssim ..."""
    output: Annotated[str | None, default_is("<candidates_dir>/scores.parquet")] = None
    """Score table."""
    exclude_metrics: Annotated[list[str], metavar("METRIC")] = field(default_factory=list)
    """Metrics of the config to leave out this time."""
    metrics_dir: Annotated[str | None, default_is("DP2OSR_METRICS_DIR, else pyiqa's own places")] = None
    """Folder of scripts/fetch_metrics.py with pyiqa's weights."""
    batch_size: Count = 8
    """Images scored together at most."""
    memory_limit: Annotated[Positive | None, default_is("no limit")] = None
    """GB a process may take, weights and all; batches shrink to it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the metrics' networks; what bf16 does to the first group's ranking is printed."""
    disable_tf32: bool = False
    """Score in full float32; by default GPUs that have TF32 use it, and what that does to the first group's ranking is printed."""
    compile: bool = False
    """Compile the metrics' networks with torch.compile: minutes at the start, then faster; what it does to the first
    group's ranking is printed."""
    strict: Annotated[bool, default_is("warn and go on")] = False
    """Stop at the first NaN or infinite score."""


@dataclass(kw_only=True)
class BestOfSettings(RestoreSettings):
    """SR images of a folder, all samples or the best by a reward: the test programs."""

    keep: Literal["all", "best"] = "all"
    """Write all --sample_times of an image, or as <stem>.png the best of them by --reward_config alone; <output_dir>/best.csv then has the
    scores of all."""
    reward_config: Annotated[str | None, default_is("nr_only")] = None
    """With --keep best: name in configs/rewards or a YAML file; the samples of an image are normalised together."""
    gt_path: str | None = None
    """With --keep best: folder of GT images, named as the inputs; needed by FR metrics."""
    metrics_dir: Annotated[str | None, default_is("DP2OSR_METRICS_DIR, else pyiqa's own places")] = None
    """With --keep best: folder of scripts/fetch_metrics.py with pyiqa's weights."""
    compare_with: Annotated[list[str], metavar("CONTROLNET")] = field(default_factory=list)
    """Further ControlNets for the same images and seeds. The results of each, the first one's too, are in <output_dir>/<its name>, and
    <output_dir>/comparison has a picture an image: LR, then each ControlNet's."""


@dataclass(kw_only=True)
class InspectRewardSettings(Settings):
    """What a reward is made of: `scripts/inspect_rewards.py`."""

    candidates_dir: str
    """Candidate folder of gen_candidates.py."""
    scores: str | None = None
    """Table of label_rewards.py; scores.parquet in the candidate folder if not given."""
    reward_config: str | None = None
    """Name in configs/rewards or a YAML; the one that the scores were made for if not given."""
    gt_path: str | None = None
    """Folder of GT images, named as the LR images: shown beside the candidates, and for the maps."""
    output_dir: str
    """Rewards.html, rewards.parquet and correlation.csv go here."""
    top_n: Count | None = None
    """N, candidates that count as winners; a quarter of M if not given."""
    max_groups_in_report: Natural = 5
    """Groups shown, evenly over the spread of their rewards."""
    validation_image_path: str | None = None
    """Folder of sharp photographs: also check which known distortions each metric orders."""
    resolution: Annotated[int, at_least(8)] = 128
    """Side of their crops, pixels: that of the candidates."""
    num_crops: Count = 20
    """Crops of them."""
    metrics_dir: str | None = None
    """Folder of scripts/fetch_metrics.py with pyiqa's weights."""


@dataclass(kw_only=True)
class ImportScoresSettings(Settings):
    """Scores that others computed: `scripts/import_scores.py`."""

    table: str
    """Their table, .csv or .parquet: columns image_id, candidate, and one a metric; or a folder of scripts/export_labels.py."""
    candidates_dir: str
    """The candidate folder that they are of."""
    lower_better: Annotated[list[str], metavar("METRIC")] = field(default_factory=list)
    """Metrics of which lower is better."""
    fr: Annotated[list[str], metavar("METRIC")] = field(default_factory=list)
    """Metrics that compare with the GT; of pyiqa's names and of those in the reward it is known."""
    metrics: Annotated[list[str] | None, default_is("all columns"), metavar("METRIC")] = None
    """Take these columns alone."""
    first_number: Natural = 0
    """Number of the first candidate in the table; it becomes candidate 0. The GT's rows, if there are any, are -1."""
    reward_config: Annotated[str | None, default_is("none")] = None
    """The reward that they are for, a name in configs/rewards or a YAML: training then takes it."""
    output: Annotated[str | None, default_is("<candidates_dir>/scores.parquet")] = None
    """Score table."""
