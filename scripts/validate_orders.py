"""Ask each metric of a reward config for orders that a blur-loving metric gets wrong; see dp2osr/rewards/orders.py.

    python scripts/validate_orders.py embedded --gt_path preset/test/gt --sr_path runs/sr

Prints a Markdown table: the share of the crops that a metric puts in the order.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import metavar
from dp2osr.places import ROOT


@dataclass(kw_only=True)
class OrderSettings(Settings):
    """Which reward is asked, on which crops."""

    reward_config: tyro.conf.Positional[Annotated[str, metavar("CONFIG")]]
    """Name in configs/rewards or a YAML file."""
    gt_path: str = str(ROOT / "preset" / "test" / "gt")
    """Folder of GT crops of held-out photographs."""
    sr_path: str | None = None
    """A model's samples of them, of the same names; without it the orders of samples are left out."""
    extra_metrics: Annotated[list[str], metavar("NAME")] = field(default_factory=list)
    """Metrics beside the reward's."""
    output: str | None = None
    """Also write the numbers to this JSON file."""


def main():
    args = parse(OrderSettings, description=__doc__)
    from dp2osr.files import write_json
    from dp2osr.outputs import check_output
    from dp2osr.results import check_own_files, own_files
    from dp2osr.rewards.config import MetricSpec, load_reward_config
    from dp2osr.rewards.orders import format_orders, orders_of_config

    output = Path(args.output) if args.output else None
    if output:
        check_output(output, "--output", is_file=True)
        check_own_files(output.parent, [output.name], "--output")
    config, extra = load_reward_config(args.reward_config), [MetricSpec(name) for name in args.extra_metrics]
    results = orders_of_config(config, args.gt_path, args.sr_path, extra)
    print(format_orders(results))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        with own_files(output.parent, [output.name], "--output"):
            write_json(output, results)


if __name__ == "__main__":
    run(main)
