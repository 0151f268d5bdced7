"""Photographs that a training cannot use: told once, counted and replaced, or with --strict the end of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dp2osr.errors import UserError, listed
from dp2osr.prompts.source import read_tags

if TYPE_CHECKING:
    from dp2osr.data.collection import Collection
    from dp2osr.training.baseline_settings import BaselineSettings

LINES = 20  # then they are counted alone


class Skipped:
    """What was found broken while a training ran: `found`, {photograph or shard: why}."""

    def __init__(self, where: str, strict: bool) -> None:
        self.where, self.strict = where, strict
        self.found: dict[str, str] = {}

    def note(self, problems: Iterable[tuple[str, str]]) -> None:
        """Tell of each (place, reason) that is new.

        Raises:
            UserError: there is one, with --strict.
        """
        for place, reason in problems:
            if place in self.found:
                continue
            if self.strict:
                raise UserError(f"{self.where}: {place}: {reason}; mend or remove it, or leave --strict out to go on without it")
            self.found[place] = reason
            if len(self.found) <= LINES:
                last = "; further ones are counted alone" if len(self.found) == LINES else ""
                print(f"\nwarning: {self.where}: {place}: {reason}; skipped{last}", file=sys.stderr)

    def sum_up(self, output: str | Path) -> None:
        """The count, at the end."""
        if self.found:
            print(f"{output}: {len(self.found)} photographs or shards were skipped: {listed(list(self.found))}", file=sys.stderr)


def check_photographs(collection: Collection, args: BaselineSettings, told: bool) -> None:
    """Look at some of the photographs before anything expensive; what is wrong is told, and an error with --strict or where all are.

    Raises:
        UserError: as said.
    """
    found, count = collection.look(args.resolution)
    problems = {**collection.problems, **found}
    if not problems:
        return
    lines = listed([f"{place}: {reason}" for place, reason in problems.items()])
    if args.strict or len(found) == count:
        of = f"{len(found)} of {count} photographs looked at" if found else f"{len(problems)} shards"
        raise UserError(f"{args.train_dir}: {of} cannot be used: {lines}; mend or remove them, or take a smaller --resolution")
    if told:
        print(f"warning: {args.train_dir}: {len(problems)} cannot be used and are skipped: {lines}", file=sys.stderr)


def take_tags(collection: Collection, path: str | Path, told: bool) -> None:
    """Give the photographs the prompts of a file; those that it lacks are said, and where it has none it is refused (`UserError`)."""
    missing = collection.take_tags(read_tags(path))
    if len(missing) == len(collection):
        raise UserError(
            f"--prompt_file {path}: names none of the {len(missing)} photographs, as {listed(missing, 3)}; its keys are their stems"
        )
    if missing and told:
        print(f"warning: --prompt_file {path}: lacks {len(missing)} of {len(collection)} photographs ({listed(missing)})", file=sys.stderr)
