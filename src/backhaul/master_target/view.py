"""Reading the replica as it was at a point, while replication goes on.

Invariant: the replica is read first and the index afterwards. A batch publishes its before-images before it writes
the disk, so a block that was overwritten before the read is found in the journal. Any thread may read.
"""

from __future__ import annotations

from collections.abc import Sequence

from backhaul.disks.contract import Disk
from backhaul.master_target.disk_blocks import CHUNK_BLOCKS, block_count, read_blocks
from backhaul.master_target.errors import ExtentOutside
from backhaul.master_target.index import ZEROS
from backhaul.master_target.journal import Journal
from backhaul.replication.units import BLOCK


def read_at_point(
    journal: Journal, disks: Sequence[Disk], point: int, disk: int, offset: int, buffer: bytearray | memoryview
) -> None:
    """Fill `buffer` with what `disk` held at `offset` when it was at `point`.

    Raises PointUnknown, ExtentOutside, DiskReadFailed, BeforeImageDamaged, JournalUnreadable, ReplicaPoisoned.
    """
    view = memoryview(buffer).cast("B")
    if not 0 <= disk < len(disks) or offset < 0 or offset + len(view) > disks[disk].size:
        raise ExtentOutside(item=journal.item, disk=disk, offset=offset, length=len(view), reason="no such place")
    while view:
        first = offset // BLOCK
        end = min(block_count(offset + len(view)), first + CHUNK_BLOCKS)
        skip = offset - first * BLOCK
        size = min((end - first) * BLOCK - skip, len(view))
        data = _read(journal, disks[disk], point, disk, first, end)
        view[:size] = memoryview(data)[skip : skip + size]
        view, offset = view[size:], offset + size


def _read(journal: Journal, source: Disk, point: int, disk: int, first: int, end: int) -> bytearray:
    while True:
        journal.fuse.check()
        undone = journal.undone
        data = read_blocks(source, first, end - first)
        with journal.lookup(point, disk, first, end) as pieces:
            for piece in pieces:
                low, high = (piece.first - first) * BLOCK, (piece.end - first) * BLOCK
                if piece.segment == ZEROS:
                    data[low:high] = bytes(high - low)
                else:
                    data[low:high] = journal.before_image(piece, disk, point)
        if journal.undone == undone:
            return data
        # An epoch was undone, and its index went, after the replica was read: what was read may be of that epoch.
        # It is read again, at most once more for each epoch that is undone meanwhile.


class PointView:
    """A view of one point; see `contract.View`."""

    def __init__(self, journal: Journal, disks: Sequence[Disk], point: int) -> None:
        """Raises PointUnknown."""
        journal.lease(point)
        self.point = point
        self._journal, self._disks = journal, disks
        self._open = True

    def read_into(self, disk: int, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer`. Raises as `read_at_point`."""
        read_at_point(self._journal, self._disks, self.point, disk, offset, buffer)

    def close(self) -> None:
        """Give the lease back."""
        if self._open:
            self._open = False
            self._journal.give_back(self.point)
