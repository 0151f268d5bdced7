"""Fetch the weights of a reward config's metrics into one folder, or check what is there; label_rewards.py --metrics_dir reads it.

Run it where there is a network and copy the folder. Every file's SHA-256 is kept in manifest.json and compared when the folder is used.
"""

from dataclasses import dataclass, field
from typing import Annotated

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import metavar


@dataclass(kw_only=True)
class FetchSettings(Settings):
    """Which metrics' weights are fetched, and to where."""

    reward_config: str = "default"
    """Name in configs/rewards or a YAML file."""
    extra_metrics: Annotated[list[str], metavar("METRIC")] = field(default_factory=list)
    """Further pyiqa metrics."""
    exclude_metrics: Annotated[list[str], metavar("METRIC")] = field(default_factory=list)
    """Metrics of the config to leave out."""
    fid: bool = False
    """Inception's weights too, for scripts/evaluate.py --fid."""
    metrics_dir: str
    """Folder to fill; files that are there are not fetched again."""


def main():
    args = parse(FetchSettings, description=__doc__)
    from dp2osr.outputs import check_output
    from dp2osr.rewards.config import MetricSpec, load_reward_config
    from dp2osr.rewards.fetch import fetch_weights
    from dp2osr.rewards.label import chosen_metrics

    check_output(args.metrics_dir, "--metrics_dir")
    specs = chosen_metrics(load_reward_config(args.reward_config), args.extra_metrics, args.exclude_metrics)
    specs += [MetricSpec("fid")] if args.fid else []
    print("\n".join(fetch_weights(specs, args.metrics_dir)))


if __name__ == "__main__":
    run(main)
