"""Who is asked to stop while the spool runs short of space: by item, fairly, with hysteresis.

Below `throttle_below` free, items that hold at least the mean backlog stop first, until they hold half of it; below
`critical_below` everybody who holds anything stops. Above `resume_above` all go on. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from backhaul.process_server.errors import SettingRefused
from backhaul.replication.values import ItemId


class ThrottleLimits(msgspec.Struct, frozen=True):
    """Shares of free space, 0 to 1."""

    throttle_below: float = 0.20
    resume_above: float = 0.30
    critical_below: float = 0.10

    def check(self) -> None:
        """Raises SettingRefused unless 0 < critical < throttle < resume < 1."""
        if not 0 < self.critical_below < self.throttle_below < self.resume_above < 1:
            raise SettingRefused(name="throttle", reason="it must be 0 < critical < throttle < resume < 1")


class Throttle:
    """Remembers whether space is short; `decide` says who must stop."""

    def __init__(self, limits: ThrottleLimits) -> None:
        self.limits = limits
        self.short = False
        self._critical = False

    def decide(self, free_share: float, backlogs: Mapping[ItemId, int], stopped: frozenset[ItemId]) -> set[ItemId]:
        """Items that must stop, of `backlogs` (bytes held per item); `stopped` are those that were told to."""
        limits = self.limits
        self.short = free_share < (limits.resume_above if self.short else limits.throttle_below)
        resume = (limits.critical_below + limits.throttle_below) / 2
        self._critical = free_share < (resume if self._critical else limits.critical_below)
        held = {item: size for item, size in backlogs.items() if size}
        if not self.short or not held:
            return set()
        if self._critical:
            return set(held)
        mean = sum(held.values()) / len(held)
        return {item for item, size in held.items() if (size > mean / 2 if item in stopped else size >= mean)}
