"""The whole method with a folder of settings, stage after stage: sample, score, train, test, evaluate.

    python scripts/run_stages.py configs/tiny_sd2/quickstart runs/quickstart

scripts/quickstart.sh and scripts/full_run.sh install the environment and call it. Run it again and it goes on where it was stopped.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, metavar


@dataclass(kw_only=True)
class StagesSettings(Settings):
    """Settings of the stages, where they write, and how many rounds there are."""

    configs: tyro.conf.Positional[Annotated[str, metavar("CONFIG_DIR")]]
    """Folder with the YAML of each stage: sample, label, train, test, label_test, evaluate."""
    output: tyro.conf.Positional[Annotated[str, metavar("OUTPUT_DIR")]]
    """All stages write here."""
    rounds: Count = 1
    """Of sampling and training; a further one starts from the policy of the one before."""
    reference: Literal["moved", "fixed"] = "moved"
    """Of a further round: the policy that it starts from, or the base."""


def main():
    args = parse(StagesSettings, description=__doc__)
    from dp2osr.experiments.all_stages import run_stages

    same_command = os.environ.get("SAME_COMMAND") or shlex.join(["python", *sys.argv])
    begun = os.environ.get("BEGUN")
    run_stages(args.configs, args.output, args.rounds, args.reference, same_command, float(begun) if begun else None)


if __name__ == "__main__":
    run(main)
