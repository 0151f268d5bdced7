"""Settings of the check of a machine."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dp2osr.cli import Settings
from dp2osr.fields import Count, Positive, default_is

Part = Literal["sampling", "pixels", "training", "scoring", "gradient_sum"]
PARTS: tuple[Part, ...] = ("sampling", "pixels", "training", "scoring", "gradient_sum")


@dataclass(kw_only=True)
class CheckupSettings(Settings):
    """What is checked, and for how long: `scripts/check_gpu.py`."""

    output_dir: str = "runs/check_gpu"
    """Gets check_gpu.json and check_gpu.md, written anew after each line."""
    model: Annotated[list[Literal["tiny", "sd2", "flux"]] | None, default_is("sd2 flux; on a CPU tiny")] = None
    """Models: sd2 and flux are the published sizes with random weights, tiny the two of preset/models."""
    parts: Annotated[list[Part] | None, default_is("all")] = None
    """What is checked of them."""
    minutes: Positive = 10.0
    """Time for all; repeats are cut so that it suffices, and what has not begun by then is said not to have run."""
    batch_sizes: Annotated[list[Count] | None, default_is("sd2 1 8 32, flux 1 4 16, tiny 1 4")] = None
    """Candidates that are sampled together."""
    steps: Count = 3
    """Denoising steps that are timed."""
    pixel_steps: Count = 10
    """Denoising steps of the comparison in pixels."""
    repeats: Count = 3
    """Times that each is measured, at most."""
    reward_config: str = "embedded"
    """Name in configs/rewards or a YAML; embedded needs no download."""
    metrics_dir: str | None = None
    """Weights of the metrics, by scripts/fetch_metrics.py."""
    scored_images: Annotated[Count | None, default_is("16; on a CPU 6")] = None
    """Images that are scored."""
    scored_size: Annotated[Count | None, default_is("512; on a CPU 128")] = None
    """Their side, pixels."""
    processes: Annotated[Count | None, default_is("all visible GPUs; on a CPU 1")] = None
    """Processes that add up gradients, one a GPU."""
