"""Whether given disks can be the item's: their number, order and sizes.

Invariant: what is refused here was refused before anything was written. Used by the item's worker.
"""

from __future__ import annotations

from collections.abc import Sequence

from backhaul.disks.contract import Disk
from backhaul.master_target.errors import DisksChanged, ReplicaTooSmall
from backhaul.replication.values import ItemDescriptor


def check_sizes(descriptor: ItemDescriptor, disks: Sequence[Disk]) -> None:
    """Raises DisksChanged when there are more or fewer, ReplicaTooSmall when one is smaller than its source."""
    if len(disks) != len(descriptor.disks):
        raise DisksChanged(item=descriptor.item, reason=f"{len(disks)} were given, it has {len(descriptor.disks)}")
    for identity, disk in zip(descriptor.disks, disks, strict=True):
        if disk.size < identity.size:
            raise ReplicaTooSmall(item=descriptor.item, disk=identity.index, needed=identity.size, size=disk.size)


def grow_disks(old: ItemDescriptor, new: ItemDescriptor, disks: Sequence[Disk]) -> None:
    """Make the disks as large as `new` says. Raises DisksChanged before any is grown, and the disks' own errors."""
    if [(disk.index, disk.name) for disk in new.disks] != [(disk.index, disk.name) for disk in old.disks]:
        raise DisksChanged(item=old.item, reason="they are not the same disks")
    for now, before in zip(new.disks, old.disks, strict=True):
        if now.size < before.size:
            raise DisksChanged(item=old.item, reason=f"disk {now.index} has shrunk")
    for now, disk in zip(new.disks, disks, strict=True):
        if now.size > disk.size:
            disk.grow(now.size)
