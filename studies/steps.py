"""How good a model's samples are at each number of sampling steps: every metric, beside bicubic and GT, as one table.

    python studies/steps.py --models flux=preset/models/tiny-flux+preset/models/c-tiny-flux --image_path LR --gt_path GT \
        --output_dir runs/steps

A model may be given several times, from several stages of its training; then the table is the curve of that training.
"""

from dataclasses import dataclass, field

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, Finite


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


def main():
    args = parse(StepsSettings, description=__doc__)
    from studies.steps_table import tabulate

    tabulate(args)


if __name__ == "__main__":
    run(main)
