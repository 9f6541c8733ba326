"""A failed sync is fatal: the fuse that makes it so.

Invariant: after one sync failed, nothing works until the replica is opened again, for what was written since the
last good sync is unknown and the kernel tells of it only once. One fuse per open replica.
"""

from __future__ import annotations

from collections.abc import Callable

from backhaul.disks.errors import DiskError
from backhaul.master_target.errors import ReplicaPoisoned
from backhaul.replication.values import ItemId


class Fuse:
    """Blown by the first failed sync."""

    def __init__(self, item: ItemId) -> None:
        self.item = item
        self._cause: BaseException | None = None

    def check(self) -> None:
        """Raises ReplicaPoisoned when blown."""
        if self._cause is not None:
            raise ReplicaPoisoned(item=self.item, cause=self._cause) from self._cause

    def blow(self, cause: BaseException) -> ReplicaPoisoned:
        """Remember the cause; the error to raise."""
        self._cause = cause
        return ReplicaPoisoned(item=self.item, cause=cause)

    def sync(self, call: Callable[[], None]) -> None:
        """Make a sync. Raises ReplicaPoisoned if it fails."""
        self.check()
        try:
            call()
        except (OSError, DiskError) as error:
            raise self.blow(error) from error
