"""Groups are read before they are needed, while the device computes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dp2osr.preference.groups import PreferenceGroup, PreferenceGroups


class GroupReader:
    """Gives groups in the order in which they are visited, and meanwhile reads the next ones on a thread.

    What it gives does not depend on what was read ahead. An error of reading is raised where its group is asked for.

    Args:
        ahead: groups that are held beside the one that is given.
    """

    def __init__(self, ahead: int = 2) -> None:
        self.ahead = ahead
        self.pending: dict[tuple[PreferenceGroups, int], Future[PreferenceGroup]] = {}
        self.threads: ThreadPoolExecutor | None = None

    def take(self, groups: PreferenceGroups, index: int, coming: Sequence[int], backbone: Any) -> PreferenceGroup:
        """Group `index` of `groups`, on the backbone's device; the first of `coming`, those after it, are read meanwhile."""
        wanted = dict.fromkeys([index, *coming[: self.ahead]])
        for number in wanted:
            self.start(groups, number, backbone)
        self.pending = {(groups, number): self.pending[groups, number] for number in wanted}
        return self.pending[groups, index].result().on(backbone)

    def start(self, groups: PreferenceGroups, index: int, backbone: Any) -> None:
        """Begin to read a group, unless it was begun."""
        if self.threads is None:
            self.threads = ThreadPoolExecutor(1, thread_name_prefix="groups")
        if (groups, index) not in self.pending:
            self.pending[groups, index] = self.threads.submit(groups.load, index, backbone)
