"""Values that a paper has published, to be set beside ours."""

from dataclasses import dataclass, field
from pathlib import Path

from dp2osr.cli import nearest_of
from dp2osr.fields import Finite
from dp2osr.places import CONFIGS
from dp2osr.rewards.config import find_named
from dp2osr.schema import read_typed

PUBLISHED_DIR = CONFIGS / "paper"


@dataclass(frozen=True)
class Published:
    """`methods[method][metric]` means and `spreads[method][metric]` standard deviations of a table."""

    metrics: list[str]
    methods: dict[str, dict[str, Finite]]
    spreads: dict[str, dict[str, Finite]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        for method, values in [*self.methods.items(), *self.spreads.items()]:
            for metric in values:
                if metric not in self.metrics:
                    raise ValueError(f"'{method}', '{metric}': is no metric of this table{nearest_of(metric, self.metrics)}")


def load_published(name_or_yaml: str | Path) -> Published:
    """The `Published` of a name in `configs/paper` or of a YAML; `UserError` where there is none, or it is of another form."""
    return read_typed(Published, find_named(name_or_yaml, PUBLISHED_DIR, "published table"), "a published table")
