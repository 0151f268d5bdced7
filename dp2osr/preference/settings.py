"""Settings of curation: which candidates of a group are compared, and how much each pair counts."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dp2osr.cli import Settings
from dp2osr.fields import Count, float_that

Weighting = Literal["none", "intra", "inter", "both"]  # hierarchical weights (Sec. 4.3), the rows of the paper's ablation


@dataclass(kw_only=True)
class RankedSettings(Settings):
    """Candidates, and the reward that ranks them."""

    candidates_dir: str
    """Candidate folder of gen_candidates.py."""
    scores: str | None = None
    """Table of label_rewards.py; scores.parquet in the candidate folder if not given."""
    reward_config: str | None = None
    """Name in configs/rewards or a YAML; the one that the scores were made for if not given."""
    num_candidates: Count | None = None
    """M; all that are scored if not given."""


@dataclass(kw_only=True)
class CurationSettings(RankedSettings):
    """Which candidates curation takes."""

    top_n: Count = 8
    """N."""


@dataclass(kw_only=True)
class PreferenceSettings(CurationSettings):
    """What curation makes of scores: `scripts/inspect_preferences.py`."""

    weighting: Literal["none", "intra", "inter", "both"] = "both"
    """Hierarchical weights."""


@dataclass(kw_only=True)
class PruneSettings(CurationSettings):
    """What of a candidate folder is kept: `scripts/prune.py`."""

    dry_run: bool = False
    """Only say what would be kept, and the disk before and after."""


@dataclass(kw_only=True)
class WidestSettings(RankedSettings):
    """Which groups are sampled on: `scripts/widest_groups.py`."""

    image_path: str
    """Folder of the LR images that the candidates were sampled from."""
    share: Annotated[float, float_that(lambda share: 0 < share <= 1, "be above 0 and at most 1")] = 1 / 3
    """Of the groups this share is kept, those whose rewards spread most."""
    output_dir: str
    """Gets these groups as a candidate folder, and images.csv, their LR images for gen_candidates.py."""


@dataclass(kw_only=True)
class ExportSettings(RankedSettings):
    """Which candidates become images: `scripts/export.py`."""

    output_dir: str
    """Gets <image>.png, or with --top above 1 <image>_00.png, ... by rank; run again to go on."""
    top: Count = 1
    """Candidates of an image that are written, the best first."""
    worst: bool = False
    """Write the worst instead, the worst first."""


@dataclass(kw_only=True)
class ExportLabelsSettings(Settings):
    """Labels that others can load: `scripts/export_labels.py`."""

    candidates_dir: str
    """Candidate folder of gen_candidates.py."""
    scores: str | None = None
    """Table of label_rewards.py; scores.parquet in the candidate folder if not given."""
    reward_config: str | None = None
    """Name in configs/rewards or a YAML, for the column `reward`; the one that the scores were made for if not given."""
    output_dir: str
    """Gets candidates.parquet, gt.parquet and README.md, the card."""
