"""Settings of experiments: which one, where, how its intervals are drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dp2osr.cli import Settings
from dp2osr.fields import Count, default_is, metavar


@dataclass(kw_only=True)
class RunSettings(Settings):
    """Which experiment, where, and how its intervals are drawn."""

    preset: Literal["tiny", "paper"] = "tiny"
    """configs/reproduce/<preset>."""
    experiment: Annotated[str | None, default_is("the program's")] = None
    """Another experiment of the same form, a YAML or a name of the preset's."""
    output_dir: str = "runs/reproduce"
    """Of all experiments, which share candidates."""
    plan: bool = False
    """Say what is missing and stop."""
    bootstrap: Count = 2000
    """Resamples for the intervals."""

    def results_folder(self, name: str) -> Path:
        """Where tables, figures and trainings go: an experiment of one's own is beside the presets', not over them."""
        return Path(self.output_dir) / ("own" if str(self.experiment).endswith((".yaml", ".yml")) else self.preset) / name


@dataclass(kw_only=True)
class ExperimentSettings(RunSettings):
    """An experiment by its name, and how many of its trainings run at once: `scripts/reproduce.py`."""

    jobs: Annotated[Count | None, default_is("the cores, eight at most; with a GPU 1")] = None
    """Runs side by side."""
    name: tyro.conf.Positional[Annotated[str, metavar("NAME")]]
    """An experiment of configs/reproduce/<preset>."""
