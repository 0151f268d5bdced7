"""Who visits which group of a step: a function of the step's groups and of the process's number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Visit:
    """One group of a step, visited by one process.

    Attributes:
        place: of the group in the step.
        index: of the group in `PreferenceGroups`.
        before: how often the step has seen the group before: where one epoch ends and the next begins, it may come twice.
        member, team: of the processes that share the group's candidates, this one's number and how many there are.
        groups: of the step, where some are shared; else 0.
    """

    place: int
    index: int
    before: int
    member: int = 0
    team: int = 1
    groups: int = 0

    def parts(self, candidates: int, micro_batch: int) -> tuple[list[slice], list[slice]]:
        """(all, this process's) micro-batches of a group's candidates, of at most `micro_batch` (0: any number), at least one a process."""
        size = micro_batch or candidates
        bounds = [*range(0, candidates, size), candidates]
        if len(bounds) <= self.team:
            bounds = [candidates * number // self.team for number in range(self.team + 1)]
        every = [slice(first, last) for first, last in pairwise(bounds)]
        return every, every[self.member :: self.team]


def visits_of(indices: Sequence[int], process: int, processes: int) -> list[Visit]:
    """The visits of a step with the groups `indices` that are process `process`'s of `processes`, in order.

    With more processes than groups each has one, which it shares with those whose number leaves the same rest.
    """

    def visit(place: int, *shared: int) -> Visit:
        return Visit(place, indices[place], list(indices[:place]).count(indices[place]), *shared)

    count = len(indices)
    if processes <= count:
        return [visit(place) for place in range(process, count, processes)]
    place = process % count
    return [visit(place, process // count, len(range(place, processes, count)), count)]
