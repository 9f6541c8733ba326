"""Opening a replica: what the journal and the disks say happened. Specification: docs/spec/journal.md, "Opening".

Invariant: idempotent at any instruction; nothing is decided that is not made durable before it is acted upon, and
nothing is withdrawn without a finding. Runs in the item's worker before the replica takes anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from pyroaring import BitMap64

from backhaul.disks.contract import Disk
from backhaul.master_target.disk_blocks import (
    CHUNK_BLOCKS,
    data_blocks,
    read_blocks,
    write_blocks,
    zero_blocks,
)
from backhaul.master_target.errors import (
    BeforeImageDamaged,
    DiskPutBack,
    JournalDamaged,
    JournalUnreadable,
    MasterTargetError,
    UndoImpossible,
)
from backhaul.master_target.index import pieces_of
from backhaul.master_target.journal import Epoch, Journal
from backhaul.master_target.map_store import MapStore
from backhaul.master_target.records import HASH, BadRecord, New, Record, RecordType, Run, block_hashes, unpack_runs
from backhaul.master_target.segment import Batch, Damage, Segment, aligned
from backhaul.master_target.thinning import CHECKED_EPOCHS, drop_below
from backhaul.master_target.undo import undo_epoch
from backhaul.replication.values import EpochBegin, EpochEnd, EpochReason

_Completed = tuple[EpochEnd, int]


@dataclass
class Restart:
    """One opening. `findings` are what it had to withdraw, `doubtful` the blocks that must be written again."""

    journal: Journal
    disks: Sequence[Disk]
    maps: MapStore
    findings: list[MasterTargetError] = field(default_factory=list)
    doubtful: dict[int, BitMap64] = field(default_factory=dict)
    _places: list[tuple[Segment, int]] = field(default_factory=list)  # CHANGES of the newest epochs, in order
    _void: set[int] = field(default_factory=set)  # batches that lapsed
    _tail: tuple[Segment, Batch] | None = None
    _before_tail: int = 0  # applied frame of the running try before its newest batch
    _floor: int = 0
    _lost: bool = False  # damage hides what must be known
    again: bool = False

    def run(self, *, rewrite: bool) -> bool:
        """Make the replica whole; True if it must run again, because damaged epochs were rewritten (`rewrite`).

        Raises JournalUnreadable, DiskReadFailed, DiskWriteFailed, JournalFull, JournalWriteFailed, ReplicaPoisoned.
        """
        try:
            self._sweep_files()
            self.maps.load()
            self._read_segments()
            if self.findings or self._lost:
                self._withdraw()
            self._cut_tail()
            if rewrite and any(epoch.damaged and epoch.end for epoch in self.journal.epochs):
                drop_below(self.journal, self.maps, self._floor)
                return True
            self._check_disks()
        except OSError as error:
            raise JournalUnreadable(item=self.journal.item, place=self.journal.folder.name, cause=error) from error
        self._finish_undo()
        return False

    def _sweep_files(self) -> None:
        journal = self.journal
        known = {f"{entry.id:08d}" for entry in journal.manifest.segments} | {"manifest"}
        for name in journal.files.names(journal.folder):
            if name not in known:
                journal.files.remove(journal.folder / name)

    # -- the journal -----------------------------------------------------------------------------------------------

    def _read_segments(self) -> None:
        journal = self.journal
        self._floor = journal.manifest.floor
        headless = False
        for entry in journal.manifest.segments:
            try:
                segment = Segment.open(journal.files, journal.folder, journal.key, entry.id)
            except (BadRecord, FileNotFoundError):
                headless = True
                continue
            segment.end = segment.synced = aligned(entry.sealed) or segment.end
            journal.segments[segment.id] = segment
            epoch = self._epoch_of(segment)
            if headless:
                self._damage(epoch.number, f"before {segment.path.name}")
                epoch.damaged = True
                headless = False
            for batch in segment.scan(entry.sealed):
                if isinstance(batch, Damage):
                    self._damage(epoch.number, f"{segment.path.name}:{batch.place}")
                    epoch.damaged = True
                else:
                    self._take(epoch, segment, batch)
        if headless:
            self._damage(max((epoch.number for epoch in journal.epochs), default=0) + 1, "its newest segment")
            self._lost = True
        self._drop_unknown()

    def _epoch_of(self, segment: Segment) -> Epoch:
        epochs = self.journal.epochs
        if not epochs or epochs[-1].number != segment.epoch:
            epochs.append(Epoch(segment.epoch, segment.base, []))
            newest = {epoch.number for epoch in epochs[-CHECKED_EPOCHS - 1 :]}
            self._places = [place for place in self._places if place[0].epoch in newest]
        epochs[-1].segments.append(segment)
        return epochs[-1]

    def _damage(self, epoch: int, place: str) -> None:
        self._floor = max(self._floor, epoch)
        self._places.clear()  # a newer record of the same block may be what was lost
        self.findings.append(JournalDamaged(item=self.journal.item, epoch=epoch, place=place, floor=epoch))

    def _take(self, epoch: Epoch, segment: Segment, batch: Batch) -> None:
        before = epoch.applied
        for record in batch.records:
            self._record(epoch, segment, record)
        epoch.newest_batch = batch.records[-1].batch
        self.journal.batch = max(self.journal.batch, epoch.newest_batch)
        self._tail, self._before_tail = (segment, batch), before

    def _record(self, epoch: Epoch, segment: Segment, record: Record) -> None:
        if record.type is RecordType.CHANGES:
            self._changes(epoch, segment, record)
            epoch.applied = max(epoch.applied, record.applied)
        elif record.type is RecordType.BEGIN:
            begin = msgspec.msgpack.decode(record.meta, type=EpochBegin)
            stream = epoch.tries[-1].stream if epoch.tries else self._stream_before(epoch)
            if begin.stream != stream:
                epoch.applied = 0
            elif not epoch.tries:
                epoch.applied = self._epoch_before(epoch).applied  # type: ignore[union-attr]
            epoch.tries.append(begin)
            for disk in begin.compares:
                self.doubtful.pop(disk, None)
        elif record.type is RecordType.COMPLETE:
            epoch.end, epoch.completed_ns = msgspec.msgpack.decode(record.meta, type=_Completed)
            epoch.applied = record.applied
        elif record.type is RecordType.UNDO:
            epoch.undoing = True
        else:
            self._lapsed(epoch, int.from_bytes(record.meta, "big"))

    def _epoch_before(self, epoch: Epoch) -> Epoch | None:
        return next((other for other in reversed(self.journal.epochs) if other.number < epoch.number), None)

    def _stream_before(self, epoch: Epoch) -> int:
        before = self._epoch_before(epoch)
        return before.tries[-1].stream if before and before.tries else -1

    def _changes(self, epoch: Epoch, segment: Segment, record: Record) -> None:
        for disk, pieces in pieces_of(record, segment.id).items():
            epoch.index.add(disk, pieces)
        for run, _, _ in unpack_runs(record.meta):
            self.maps.replay(run.disk, run.first, run.count, record.batch)
            epoch.hashed |= run.new is not New.UNCHECKED
            blocks = self.doubtful.get(run.disk)
            if blocks:
                blocks.remove_range(run.first, run.first + run.count)
        self._places.append((segment, record.offset))

    def _lapsed(self, epoch: Epoch, batch: int) -> None:
        self._void.add(batch)
        epoch.applied = self._before_tail
        found = False
        for segment, offset in reversed(self._places):
            record = segment.read_record(offset, segment.file.size())
            if record.batch == batch:
                self._doubt(record)
                found = True
            elif record.batch < batch:
                break
        self._lost |= not found  # which blocks it may have spoiled cannot be told

    def _doubt(self, record: Record) -> None:
        for run, _, _ in unpack_runs(record.meta):
            self.doubtful.setdefault(run.disk, BitMap64()).add_range(run.first, run.first + run.count)

    def _drop_unknown(self) -> None:
        """Epochs that damage left without begin or end: an old one is passed over, a new one voids everything."""
        journal = self.journal
        bad = [
            e for n, e in enumerate(journal.epochs) if not e.tries or (e.end is None and n < len(journal.epochs) - 1)
        ]
        if bad:
            ends = [epoch.number for epoch in journal.epochs if epoch.end]
            self._lost |= bad[-1].number >= max(ends, default=0) or not journal.epochs[-1].tries
            self._damage(bad[-1].number, "its begin or end")
            journal.epochs = [epoch for epoch in journal.epochs if epoch not in bad]

    def _withdraw(self) -> None:
        journal = self.journal
        self.maps.void()
        if self._lost:
            journal.void()
            self._tail = None
            return
        pins = {name: state for name, state in journal.manifest.pins.items() if state >= self._floor}
        kept = {segment.id for epoch in journal.epochs for segment in epoch.segments}
        entries = tuple(entry for entry in journal.manifest.segments if entry.id in kept)
        manifest = msgspec.structs.replace(journal.manifest, floor=self._floor, pins=pins, segments=entries)
        journal.keep(journal.epochs, manifest)

    def _cut_tail(self) -> None:
        """Cut what was torn, and make what was read durable: a page cache may hold what the disk does not."""
        journal = self.journal
        entries = journal.manifest.segments
        if not entries or entries[-1].sealed:
            return
        segment = journal.segments[entries[-1].id]
        segment.cut(segment.end)
        if self._tail and self._tail[0] is segment and self._tail[1].unsettled:
            start = self._tail[1].start
            segment.file.write_at(start, [segment.read_at(start, self._tail[1].end - start)])
        journal.fuse.sync(segment.file.sync)

    # -- the disks -------------------------------------------------------------------------------------------------

    def _check_disks(self) -> None:
        """Compare the newest record of each block with its disk; the last batch only tells whether it counts."""
        journal = self.journal
        if not journal.epochs:
            return
        newest = {epoch.number for epoch in journal.epochs[-CHECKED_EPOCHS:]}
        started = journal.started
        tail = self._last_changes()
        seen: dict[int, BitMap64] = {}
        if started and started.undoing:
            newest = {epoch.number for epoch in journal.epochs[-CHECKED_EPOCHS - 1 : -1]}
            for disk in started.index.disks():
                for first, end in started.index.runs(disk):
                    seen.setdefault(disk, BitMap64()).add_range(first, end)
        last_good = True
        for segment, offset in reversed(self._places):
            if segment.epoch not in newest:
                continue
            record = segment.read_record(offset, segment.file.size())
            for run, _, _ in unpack_runs(record.meta):
                if run.new is New.UNCHECKED:
                    continue
                blocks = seen.setdefault(run.disk, BitMap64())
                if record.batch == tail:
                    last_good = last_good and self._differs(run, [(run.first, run.first + run.count)]) is None
                elif record.batch not in self._void:
                    wrong = self._differs(run, _unseen(blocks, run.first, run.first + run.count))
                    if wrong is not None:
                        self._put_back(run.disk, wrong)
                        return
                blocks.add_range(run.first, run.first + run.count)
        if tail is not None:
            self._settle_tail(tail, last_good)

    def _last_changes(self) -> int | None:
        """The batch that may have reached the disks in part."""
        started = self.journal.started
        if self._tail is None or started is None or started.undoing:
            return None
        record = self._tail[1].records[0]
        return record.batch if record.type is RecordType.CHANGES and record.epoch == started.number else None

    def _differs(self, run: Run, ranges: Sequence[tuple[int, int]]) -> int | None:
        """The first block that the disk does not hold as the run wrote it."""
        disk = self.disks[run.disk]
        for first, end in ranges:
            if run.new is New.ZERO:
                parts = data_blocks(disk, first, end)
            else:
                parts = iter([(first, end)])
            for low, high in parts:
                for at in range(low, high, CHUNK_BLOCKS):
                    count = min(CHUNK_BLOCKS, high - at)
                    data = read_blocks(disk, at, count)
                    skip = (at - run.first) * HASH
                    if run.new is New.ZERO:
                        good = data == bytes(len(data))
                    else:
                        good = block_hashes(self.journal.key, data) == run.hashes[skip : skip + count * HASH]
                    if not good:
                        return at
        return None

    def _put_back(self, disk: int, block: int) -> None:
        self.findings.append(DiskPutBack(item=self.journal.item, disk=disk, block=block))
        self.maps.void()
        self.journal.void()
        self.doubtful.clear()

    def _settle_tail(self, batch: int, good: bool) -> None:
        journal, started = self.journal, self.journal.started
        assert started is not None
        records = self._tail[1].records if self._tail else []
        if good:
            self._write_again(records)
            return
        lapse = journal.record(RecordType.LAPSED, started.number, batch.to_bytes(8, "big"))
        journal.append(started, [lapse])
        started.applied = self._before_tail
        for record in records:
            self._doubt(record)

    def _write_again(self, records: Sequence[Record]) -> None:
        touched = set()
        for record in records:
            for run, _, _ in unpack_runs(record.meta):
                disk = self.disks[run.disk]
                touched.add(run.disk)
                if run.new is New.ZERO:
                    zero_blocks(disk, run.first, run.count)
                else:
                    write_blocks(disk, run.first, read_blocks(disk, run.first, run.count))
        for number in touched:
            self.journal.fuse.sync(self.disks[number].sync)

    def _finish_undo(self) -> None:
        """An undo that had begun goes on; a change of point that had not ended is taken back."""
        started = self.journal.started
        if started is None or not (started.undoing or started.tries[-1].reason is EpochReason.UNDO):
            return
        try:
            undo_epoch(self.journal, self.disks, self.maps)
        except (BeforeImageDamaged, UndoImpossible) as error:
            self.findings.append(error)
            self.maps.void()
            self.journal.void()
        self.doubtful.clear()


def _unseen(blocks: BitMap64, first: int, end: int) -> list[tuple[int, int]]:
    """Ranges within [first, end) that are not in the set."""
    return list(_halves(blocks, first, end))


def _halves(blocks: BitMap64, first: int, end: int) -> Iterator[tuple[int, int]]:
    inside = blocks.range_cardinality(first, end) if blocks else 0
    if not inside:
        yield first, end
    elif inside < end - first:
        middle = (first + end) // 2
        yield from _halves(blocks, first, middle)
        yield from _halves(blocks, middle, end)
