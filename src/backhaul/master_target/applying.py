"""Applying: from what was staged to the journal and the disks, batch by batch.

Invariant: before-images are durable and published before a disk is written, disks are synced before a frame counts
as applied, and a batch that failed on the way goes on where it stopped. Used by the item's worker only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyroaring import BitMap64

from backhaul.disks.contract import Disk
from backhaul.master_target.batch import Batch, Planner, Stage, Write
from backhaul.master_target.crew import Crew
from backhaul.master_target.disk_blocks import write_blocks, zero_blocks
from backhaul.master_target.errors import JournalFull
from backhaul.master_target.index import pieces_of
from backhaul.master_target.journal import Epoch, Journal
from backhaul.master_target.map_store import MapStore
from backhaul.master_target.records import changes


class Applier:
    """Stage, batch in hand, and the blocks of a lapsed batch that must come again (`doubtful`)."""

    def __init__(
        self,
        journal: Journal,
        disks: Sequence[Disk],
        maps: MapStore,
        doubtful: dict[int, BitMap64],
        make_room: Callable[[], object],
        crew: Crew,
    ) -> None:
        """`make_room` thins to the floor; `crew` reads and writes the disks."""
        self._journal, self._disks, self._maps = journal, disks, maps
        self._make_room, self._crew = make_room, crew
        self.doubtful = doubtful
        self.stage = Stage()
        self._in_hand: Batch | None = None

    def forget(self, *, in_hand: bool) -> None:
        """Forget what was staged; `in_hand` also the batch that is in the journal (its epoch is being undone)."""
        self.stage.clear()
        if in_hand:
            self._in_hand = None

    def finish(self, epoch: Epoch) -> None:
        """Finish the batch that is in the journal already, if any. Raises as `apply`."""
        if self._in_hand is not None:
            self._write(epoch, self._in_hand)

    def apply(self, epoch: Epoch, sizes: Sequence[int], *, whole: bool) -> None:
        """Apply all that is staged. `whole`: the last frame is staged in full.

        Raises DiskReadFailed, DiskWriteFailed, JournalFull, JournalWriteFailed: call it again, nothing was lost;
        ReplicaPoisoned.
        """
        journal = self._journal
        journal.fuse.check()
        self.finish(epoch)
        while self.stage.extents:
            undoable = journal.manifest.floor <= epoch.base
            planner = Planner(self._disks, sizes, journal.key, epoch.index, self._crew, undoable=undoable)
            batch = planner.plan(self.stage, whole=whole, applied=epoch.applied)
            if not self._log(epoch, batch):
                continue  # room was made; the plan may have changed with it
            self.stage.advance(batch.taken, batch.rest)
            self._write(epoch, batch)

    def _log(self, epoch: Epoch, batch: Batch) -> bool:
        """Before-images and heads into the journal, durably, then into the index. False: try again."""
        journal = self._journal
        needed = batch.journal_bytes
        if needed > journal.room().free:
            before = journal.room().free
            self._make_room()
            free = journal.room().free
            if needed > free:
                raise JournalFull(item=journal.item, needed=needed, free=free)
            if free > before:
                return False
        journal.batch += 1
        records = list(changes(batch.runs, epoch.number, journal.batch, batch.first_frame, batch.applied))
        try:
            segment = journal.append(epoch, records)
        except JournalFull as error:
            before = journal.used_bytes()
            self._make_room()
            if journal.used_bytes() < before:
                return False
            raise JournalFull(item=journal.item, needed=needed, free=journal.room().free) from error
        self._in_hand = batch
        epoch.hashed = True
        for record in records:
            journal.publish(epoch, pieces_of(record, segment.id))
        return True

    def _write(self, epoch: Epoch, batch: Batch) -> None:
        disks, maps = self._disks, self._maps
        for write in batch.writes:
            maps.mark(write.disk, write.first, write.count)
        self._crew.each(self._write_one, batch.writes)  # no block occurs twice, so their order does not matter
        for number in sorted({write.disk for write in batch.writes}):
            self._journal.fuse.sync(disks[number].sync)
        for write in batch.writes:
            maps.mark(write.disk, write.first, write.count)  # a reader may have begun between mark and write
            if write.disk in self.doubtful:
                self.doubtful[write.disk].remove_range(write.first, write.first + write.count)
        epoch.applied = batch.applied
        self._in_hand = None
        self._journal.sweep()

    def _write_one(self, write: Write) -> None:
        if write.data is None:
            zero_blocks(self._disks[write.disk], write.first, write.count)
        else:
            write_blocks(self._disks[write.disk], write.first, write.data)
