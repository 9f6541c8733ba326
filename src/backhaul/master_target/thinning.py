"""Thinning: neighbouring epochs are merged, and what nobody can want any more is dropped.

Invariant: at every instant the manifest names a journal from which every kept state can be reached; the first
before-image wins. New segments are synced before the manifest names them, old ones are deleted after their last
reader. Called by the item's worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

import msgspec

from backhaul.master_target.errors import JournalDamaged, JournalFull, JournalUnreadable, JournalWriteFailed
from backhaul.master_target.index import Piece, pieces_of
from backhaul.master_target.journal import Epoch, Journal
from backhaul.master_target.manifest import SegmentEntry
from backhaul.master_target.map_store import MapStore
from backhaul.master_target.records import (
    MAX_RUN_BLOCKS,
    Before,
    New,
    Record,
    RecordType,
    Run,
    changes,
    slice_run,
    unpack_runs,
)
from backhaul.master_target.segment import Damage, Segment
from backhaul.replication.units import BLOCK

CHECKED_EPOCHS = 2
"""Epochs whose newest hashes are compared with the disks at every opening."""


def thin(journal: Journal, maps: MapStore, keep: Collection[int]) -> int:
    """Keep these states, the newest point, pins and leases; bytes freed.

    Raises JournalFull or JournalWriteFailed (what was thinned before stays so), JournalDamaged, ReplicaPoisoned.
    """
    journal.fuse.check()
    complete = journal.complete
    if journal.manifest.held or complete is None:
        return 0
    wanted = {*keep, *journal.manifest.pins.values(), *journal.leases, complete.number}
    states = sorted(state for state in wanted if journal.reachable(state))
    before = journal.used_bytes()
    drop_below(journal, maps, states[0])
    for low, high in itertools.pairwise(states):
        group = [epoch for epoch in journal.epochs if low < epoch.number <= high]
        if len(group) > 1:
            merged = _copy(journal, group, images=True)
            _swap(journal, maps, {epoch.number: None for epoch in group[:-1]} | {high: merged}, None)
    return max(before - journal.used_bytes(), 0)


def drop_below(journal: Journal, maps: MapStore, floor: int) -> None:
    """Make `floor` the oldest state: epochs below go, its own keeps header and hashes only. Raises as `thin`."""
    changed: dict[int, Epoch | None] = {}
    newest = _checked(journal)
    for epoch in journal.epochs:
        if epoch.number > floor or (epoch.end is None and epoch.number != floor):
            continue
        if epoch.number < floor and epoch.number not in newest:
            changed[epoch.number] = None
        elif epoch.damaged or epoch.index.disks() or (epoch.hashed and epoch.number not in newest):
            changed[epoch.number] = _copy(journal, [epoch], images=False, reserved=_new_segments(changed))
    if changed or floor > journal.manifest.floor:
        _swap(journal, maps, changed, floor)


def _new_segments(changed: dict[int, Epoch | None]) -> int:
    return sum(len(epoch.segments) for epoch in changed.values() if epoch)


def _checked(journal: Journal) -> set[int]:
    """The newest epochs, whose hashes are kept: with the started one, should it be undone, one more."""
    ended = [epoch.number for epoch in journal.epochs if epoch.end]
    newest = {*ended[-CHECKED_EPOCHS:], *(e.number for e in journal.epochs if e.end is None)}
    damaged = max((epoch.number for epoch in journal.epochs if epoch.damaged), default=0)
    return {number for number in newest if number > damaged}  # newer hashes of the same blocks may have been lost


def _swap(journal: Journal, maps: MapStore, changed: dict[int, Epoch | None], floor: int | None) -> None:
    """Put copies in the place of epochs (None: drop), and raise the floor."""
    copies = [epoch for epoch in changed.values() if epoch]
    epochs = [changed.get(epoch.number, epoch) for epoch in journal.epochs]
    left = [epoch for epoch in epochs if epoch is not None]
    sealed = {entry.id: entry for entry in journal.manifest.segments}
    for epoch in copies:
        sealed |= {segment.id: SegmentEntry(segment.id, segment.end) for segment in epoch.segments}
    entries = tuple(sealed[segment.id] for epoch in left for segment in epoch.segments)
    fresh = [segment for epoch in copies for segment in epoch.segments]
    manifest = msgspec.structs.replace(
        journal.manifest,
        segments=entries,
        floor=journal.manifest.floor if floor is None else floor,
        next_segment=max([journal.manifest.next_segment, *(segment.id + 1 for segment in fresh)]),
    )
    try:
        maps.save_marks(journal.batch)
        journal.keep(left, manifest)
    except (JournalFull, JournalWriteFailed):
        for segment in fresh:
            journal.discard(segment)
        raise


def _copy(journal: Journal, group: Sequence[Epoch], *, images: bool, reserved: int = 0) -> Epoch:
    """The group as one epoch in new, synced segments that the manifest does not name yet."""
    last = group[-1]
    copy = Epoch(
        last.number, group[0].base, [], list(last.tries), last.end, last.completed_ns, last.undoing, last.newest_batch
    )
    copy.applied = last.applied
    writer = _Writer(journal, copy, reserved)
    hashes = _checked(journal)
    try:
        for epoch in group:
            for segment, records in _batches(journal, epoch, images=images):
                kept = _filter(journal, copy, segment, records, epoch, images, epoch.number in hashes)
                writer.append(kept)
        writer.finish()
    except (OSError, JournalFull, JournalWriteFailed, JournalDamaged, JournalUnreadable) as error:
        for segment in copy.segments:
            journal.discard(segment)
        if isinstance(error, OSError):
            raise journal.write_failed(error, BLOCK) from error
        raise
    return copy


def _batches(journal: Journal, epoch: Epoch, *, images: bool) -> Iterator[tuple[Segment, list[Record]]]:
    for segment in epoch.segments:
        for batch in segment.scan(segment.end):
            if isinstance(batch, Damage):
                if not images:
                    continue  # its before-images are given up anyway; the hashes that can be read are kept
                place = f"{segment.path.name}:{batch.place}"
                raise JournalDamaged(item=journal.item, epoch=epoch.number, place=place, floor=epoch.number)
            yield segment, batch.records


def _filter(
    journal: Journal, copy: Epoch, segment: Segment, records: list[Record], epoch: Epoch, images: bool, hashes: bool
) -> list[Record]:
    """What of a batch goes into the copy."""
    kept: list[Record] = []
    for record in records:
        if record.type is RecordType.CHANGES:
            runs = [
                run
                for old, at, _ in unpack_runs(record.meta)
                for run in _runs(journal, copy, segment, old, record.payload_at + at, images, hashes, epoch.base)
            ]
            kept += changes(runs, copy.number, record.batch, record.first_frame, record.applied)
            copy.hashed |= hashes and bool(runs)
        elif hashes if record.type is RecordType.LAPSED else epoch.number == copy.number:
            kept.append(Record(record.type, copy.number, record.batch, record.meta, applied=record.applied))
    return kept


def _runs(
    journal: Journal, copy: Epoch, segment: Segment, old: Run, at: int, images: bool, hashes: bool, base: int
) -> Iterator[Run]:
    """Parts of a run: with its before-image where it is the first, with its hashes where they are kept."""
    new = old.new if hashes else New.UNCHECKED
    end = old.first + old.count
    first = old.first
    missing = list(copy.index.missing(old.disk, first, end)) if images and old.before is not Before.NONE else []
    for low, high in missing:
        if first < low and hashes:
            yield _part(old, first, low, new, Before.NONE)
        if old.before is Before.ZERO:
            yield _part(old, low, high, new, Before.ZERO)
        else:
            for start in range(low, high, MAX_RUN_BLOCKS):
                stop = min(start + MAX_RUN_BLOCKS, high)
                run = _part(old, start, stop, new, Before.STORED)
                piece = Piece(start, stop - start, segment.id, at + (start - old.first) * BLOCK)
                run.stored = [journal.stored_image(segment, piece, run.before_hashes, old.disk, base)]
                yield run
        first = high
    if first < end and hashes:
        yield _part(old, first, end, new, Before.NONE)


def _part(old: Run, first: int, end: int, new: New, before: Before) -> Run:
    run = slice_run(old, first, end - first)
    run.new, run.before = new, before
    if new is not New.DATA:
        run.hashes = b""
    if before is not Before.STORED:
        run.before_hashes = b""
    return run


class _Writer:
    """Appends batches to new segments of a copy."""

    def __init__(self, journal: Journal, copy: Epoch, reserved: int) -> None:
        self._journal, self._copy = journal, copy
        self._next = journal.manifest.next_segment + reserved

    def append(self, records: list[Record]) -> None:
        """One batch, if anything of it is left."""
        if not records:
            return
        segment = self._copy.segments[-1] if self._copy.segments else self._open()
        if segment.end >= self._journal.segment_bytes:
            segment = self._open()
        segment.place(records)
        segment.write(records)
        for record in records:
            if record.type is RecordType.CHANGES:
                for disk, pieces in pieces_of(record, segment.id).items():
                    self._copy.index.add(disk, pieces)

    def _open(self) -> Segment:
        segment = self._journal.new_segment(self._copy.number, self._copy.base, self._next)
        self._next += 1
        self._copy.segments.append(segment)
        return segment

    def finish(self) -> None:
        """Make it durable."""
        for segment in self._copy.segments:
            self._journal.fuse.sync(segment.file.sync)
            segment.synced = segment.end
        self._journal.fuse.sync(lambda: self._journal.files.sync_folder(self._journal.folder))
