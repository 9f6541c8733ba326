"""Undoing the started epoch: its before-images are written back.

Invariant: idempotent at any instruction. The record UNDO is durable before the first block is written back, the
epoch leaves the journal only after the disks are synced, and what was written is marked stale durably before that.
Called by the item's worker and by an opening that finds an undo begun.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backhaul.disks.contract import Disk
from backhaul.master_target.disk_blocks import CHUNK_BLOCKS, write_blocks, zero_blocks
from backhaul.master_target.errors import UndoImpossible
from backhaul.master_target.index import ZEROS
from backhaul.master_target.journal import Epoch, Journal
from backhaul.master_target.map_store import MapStore
from backhaul.master_target.records import RecordType


def undo_epoch(journal: Journal, disks: Sequence[Disk], maps: MapStore) -> None:
    """Return to the state before the started epoch; nothing if none has started.

    Raises UndoImpossible when its before-images were given up, BeforeImageDamaged, DiskWriteFailed, JournalFull,
    JournalWriteFailed (call it again then), ReplicaPoisoned.
    """
    epoch = journal.started
    if epoch is None:
        return
    if journal.manifest.floor > epoch.base:
        raise UndoImpossible(item=journal.item, reason=f"the before-images of epoch {epoch.number} were given up")
    if not epoch.undoing:
        journal.append(epoch, [journal.record(RecordType.UNDO, epoch.number)])
        epoch.undoing = True
    for disk in epoch.index.disks():
        for first, end in epoch.index.runs(disk):
            _write_back(journal, epoch, disks[disk], disk, first, end)
            maps.mark(disk, first, end - first)
    for disk in epoch.index.disks():
        journal.fuse.sync(disks[disk].sync)
    maps.save_marks(journal.batch)
    gone = {segment.id for segment in epoch.segments}
    entries = tuple(entry for entry in journal.manifest.segments if entry.id not in gone)
    journal.keep(journal.epochs[:-1], msgspec.structs.replace(journal.manifest, segments=entries), undone=True)


def _write_back(journal: Journal, epoch: Epoch, disk: Disk, number: int, first: int, end: int) -> None:
    for piece in epoch.index.find(number, first, end):
        if piece.segment == ZEROS:
            zero_blocks(disk, piece.first, piece.count)
            continue
        for at in range(piece.first, piece.end, CHUNK_BLOCKS):
            part = piece.part(at, at + CHUNK_BLOCKS)
            write_blocks(disk, part.first, journal.before_image(part, number, epoch.base))
