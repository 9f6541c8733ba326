"""The undo journal of one item: its segments, its epochs, and where each before-image lies.

Invariants: the index of a batch is published after its records are durable and before a disk is written; a segment
is deleted only when the manifest does not name it and nobody reads it. Written by the item's worker; `lookup` and
the leases may be called from any thread.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from backhaul.master_target.contract import JournalRoom
from backhaul.master_target.errors import (
    BeforeImageDamaged,
    JournalFull,
    JournalUnreadable,
    JournalWriteFailed,
    PointUnknown,
)
from backhaul.master_target.fuse import Fuse
from backhaul.master_target.index import ZEROS, EpochIndex, Piece, resolve
from backhaul.master_target.manifest import Manifest, SegmentEntry, encode
from backhaul.master_target.records import HASH, BadRecord, Record, RecordType, block_hashes
from backhaul.master_target.segment import Segment
from backhaul.replication.ports import Clock, Files
from backhaul.replication.units import BLOCK, GiB, MiB
from backhaul.replication.values import EpochBegin, EpochEnd, ItemId

SEGMENT_BYTES: Final = 1 * GiB
"""A longer segment is rolled: it bounds what one deletion must wait for and one file must hold."""
RESERVE: Final = 8 * MiB
"""Kept free on the journal's volume for BEGIN, COMPLETE, UNDO and the manifest."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Epoch:
    """One epoch as the journal holds it: from state `base` to state `number`; `end` None while it runs.

    undoing       its UNDO is in the journal
    newest_batch  of its records
    applied       newest frame applied of the stream of its newest try
    hashed        whether it has hashes of what it wrote
    damaged       records of it could not be read
    """

    number: int
    base: int
    segments: list[Segment]
    tries: list[EpochBegin] = field(default_factory=list)
    end: EpochEnd | None = None
    completed_ns: int = 0
    undoing: bool = False
    newest_batch: int = 0
    applied: int = 0
    hashed: bool = False
    damaged: bool = False
    index: EpochIndex = field(default_factory=EpochIndex)


class Journal:
    """Segments in order, epochs in order. `epochs` is replaced as a whole, never changed in place."""

    def __init__(
        self, folder: Path, item: ItemId, key: bytes, files: Files, clock: Clock, fuse: Fuse, manifest: Manifest
    ) -> None:
        self.folder, self.item, self.key = folder, item, key
        self.files, self.clock, self.fuse = files, clock, fuse
        self.manifest = manifest
        self.limit_bytes = 0
        self.batch = manifest.batch
        self.epochs: list[Epoch] = []
        self.segments: dict[int, Segment] = {}
        self.segment_bytes = SEGMENT_BYTES
        self.leases: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._undone = 0
        self._retired: list[Segment] = []

    @property
    def started(self) -> Epoch | None:
        """The epoch that runs."""
        return self.epochs[-1] if self.epochs and self.epochs[-1].end is None else None

    @property
    def complete(self) -> Epoch | None:
        """The newest COMPLETE epoch."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.end is not None), None)

    # -- writing ---------------------------------------------------------------------------------------------------

    def start_epoch(self, begin: EpochBegin, base: int, *, floor: int, must_compare: bool) -> None:
        """A new epoch with its segment, durable on return. Raises JournalFull, JournalWriteFailed, ReplicaPoisoned."""
        epoch = Epoch(begin.number, base, [], [begin])
        segment = self.new_segment(begin.number, base)
        try:
            record = self.record(RecordType.BEGIN, begin.number, msgspec.msgpack.encode(begin))
            self._write(segment, [record])
            self._settle(segment)
            manifest = msgspec.structs.replace(
                self._sealed(), floor=floor, must_compare=must_compare, next_segment=segment.id + 1
            )
            entries = (*manifest.segments, SegmentEntry(segment.id))
            self.swap(msgspec.structs.replace(manifest, segments=entries))
        except (JournalFull, JournalWriteFailed):
            self.discard(segment)
            raise
        epoch.newest_batch = record.batch
        self._adopt(epoch, segment)
        with self._lock:
            self.epochs = [*self.epochs, epoch]

    def new_segment(self, epoch: int, base: int, number: int | None = None) -> Segment:
        """A file of its own that the manifest does not name yet; `number` defaults to the next one."""
        self.fuse.check()
        now = self.clock.wall_ns()
        number = number or self.manifest.next_segment
        try:
            return Segment.create(self.files, self.folder, self.item, self.key, number, epoch, base, now)
        except OSError as error:
            raise self.write_failed(error, BLOCK) from error

    def discard(self, segment: Segment) -> None:
        """Drop a segment that the manifest does not name; what cannot be removed now goes at the next opening."""
        segment.file.close()
        try:
            self.files.remove(segment.path)
        except OSError:
            pass  # opening deletes every file that the manifest does not name

    def record(self, kind: RecordType, epoch: int, meta: bytes = b"", applied: int = 0) -> Record:
        """A record that is a batch of its own."""
        self.batch += 1
        return Record(kind, epoch, self.batch, meta, applied=applied)

    def append(self, epoch: Epoch, records: Sequence[Record]) -> Segment:
        """Append one batch to the running epoch; durable on return. The records know their places then.

        Raises JournalFull or JournalWriteFailed, after which nothing of the batch counts; ReplicaPoisoned.
        """
        self.fuse.check()
        segment = epoch.segments[-1]
        sealed = any(entry.sealed for entry in self.manifest.segments if entry.id == segment.id)
        if sealed or segment.end >= self.segment_bytes:
            segment = self._roll(epoch)
        self._write(segment, records)
        self.fuse.sync(segment.file.sync)
        segment.synced = segment.end
        epoch.newest_batch = records[-1].batch
        return segment

    def _write(self, segment: Segment, records: Sequence[Record]) -> None:
        start = segment.end
        end = segment.place(records)
        try:
            segment.write(records)
        except OSError as error:
            try:
                segment.cut(start)
            except OSError as again:
                raise self.fuse.blow(again) from again
            raise self.write_failed(error, end - start) from error

    def _settle(self, segment: Segment) -> None:
        self.fuse.sync(segment.file.sync)
        segment.synced = segment.end
        self.fuse.sync(lambda: self.files.sync_folder(self.folder))

    def _roll(self, epoch: Epoch) -> Segment:
        segment = self.new_segment(epoch.number, epoch.base)
        try:
            self._settle(segment)
            sealed = self._sealed()
            entries = (*sealed.segments, SegmentEntry(segment.id))
            self.swap(msgspec.structs.replace(sealed, segments=entries, next_segment=segment.id + 1))
        except (JournalFull, JournalWriteFailed):
            self.discard(segment)
            raise
        self._adopt(epoch, segment)
        return segment

    def _adopt(self, epoch: Epoch, segment: Segment) -> None:
        with self._lock:
            epoch.segments.append(segment)
            self.segments[segment.id] = segment

    def void(self, *, must_compare: bool = True) -> None:
        """No state can be reached any more, durably. Raises as `swap`."""
        self.keep([], Manifest(next_segment=self.manifest.next_segment, must_compare=must_compare), undone=True)

    def _sealed(self) -> Manifest:
        """The manifest with every segment sealed at its length."""
        entries = tuple(
            entry if entry.sealed else SegmentEntry(entry.id, self.segments[entry.id].end)
            for entry in self.manifest.segments
        )
        return msgspec.structs.replace(self.manifest, segments=entries)

    def swap(self, manifest: Manifest) -> None:
        """Replace it durably. Raises JournalFull or JournalWriteFailed (the old one stands), ReplicaPoisoned."""
        self.fuse.check()
        manifest = msgspec.structs.replace(manifest, batch=self.batch)
        path = self.folder / "manifest"
        try:
            self.files.replace(path, encode(manifest))
        except OSError as error:
            try:
                stands = self.files.read(path) == encode(self.manifest)
            except OSError:
                stands = False
            if not stands:  # renamed, but perhaps not durably
                raise self.fuse.blow(error) from error
            raise self.write_failed(error, BLOCK) from error
        self.manifest = manifest

    def write_failed(self, error: OSError, needed: int) -> JournalFull | JournalWriteFailed:
        """The error for a failed write of the journal."""
        if error.errno in FULL:
            return JournalFull(item=self.item, needed=needed, free=0)
        return JournalWriteFailed(item=self.item, cause=error)

    def publish(self, epoch: Epoch, pieces: dict[int, list[Piece]]) -> None:
        """Let readers find the before-images of a durable batch."""
        with self._lock:
            for disk, found in pieces.items():
                epoch.index.add(disk, found)

    def keep(self, epochs: list[Epoch], manifest: Manifest, *, undone: bool = False) -> None:
        """Go on with these epochs: manifest swap, then the segments nobody names any more are retired."""
        self.swap(manifest)
        named = {entry.id for entry in manifest.segments}
        with self._lock:
            self.epochs = epochs
            self._undone += undone
            for segment in [segment for number, segment in self.segments.items() if number not in named]:
                self._retired.append(self.segments.pop(segment.id))
            for epoch in epochs:
                for segment in epoch.segments:
                    self.segments[segment.id] = segment
        self.sweep()

    def sweep(self) -> None:
        """Delete retired segments that nobody reads; the others wait for the next sweep, or opening."""
        with self._lock:
            free = [segment for segment in self._retired if not segment.readers]
            self._retired = [segment for segment in self._retired if segment.readers]
        for segment in free:
            self.discard(segment)

    # -- room ------------------------------------------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.end for segment in self.segments.values())

    def room(self) -> JournalRoom:
        """Raises JournalUnreadable when the volume does not answer."""
        try:
            volume, _ = self.files.free_bytes(self.folder)
        except OSError as error:
            raise JournalUnreadable(item=self.item, place=self.folder.name, cause=error) from error
        used = self.used_bytes()
        free = max(volume - RESERVE, 0)
        if self.limit_bytes:
            free = min(free, max(self.limit_bytes - used, 0))
        return JournalRoom(used, self.limit_bytes, free)

    # -- reading ---------------------------------------------------------------------------------------------------

    def reachable(self, state: int) -> bool:
        """Whether the state is the base or the end of an epoch, and not below the floor."""
        if state < self.manifest.floor:
            return False
        states = {epoch.number for epoch in self.epochs if epoch.end} | {epoch.base for epoch in self.epochs}
        return state in states or (not self.epochs and state == 0)

    def lease(self, state: int) -> None:
        """Keep a state while a view reads it. Raises PointUnknown."""
        with self._lock:
            if not self.reachable(state):
                raise PointUnknown(item=self.item, point=state)
            self.leases[state] += 1

    def give_back(self, state: int) -> None:
        """End a lease."""
        with self._lock:
            self.leases[state] -= 1
            self.leases += Counter()

    @contextmanager
    def lookup(self, state: int, disk: int, first: int, end: int) -> Iterator[list[Piece]]:
        """Before-images of what changed in [first, end) since `state`; their segments stay while the context is open.

        Raises PointUnknown when the state is gone.
        """
        with self._lock:
            if not self.reachable(state):
                raise PointUnknown(item=self.item, point=state)
            pieces = resolve((e.index for e in self.epochs if e.number > state), disk, first, end)
            held = [self.segments[piece.segment] for piece in pieces if piece.segment != ZEROS]
            for segment in held:
                segment.readers += 1
        try:
            yield pieces
        finally:
            with self._lock:
                for segment in held:
                    segment.readers -= 1

    @property
    def undone(self) -> int:
        """Counts undone epochs: a reader that saw it change reads again."""
        with self._lock:
            return self._undone

    def before_image(self, piece: Piece, disk: int, state: int) -> bytes:
        """The bytes of a piece, checked. Raises BeforeImageDamaged, JournalUnreadable."""
        if piece.segment == ZEROS:
            return bytes(piece.count * BLOCK)
        segment = self.find_segment(piece.segment)
        try:
            hashes = segment.read_at(piece.hash_at, piece.count * HASH)
        except BadRecord as error:
            raise BeforeImageDamaged(item=self.item, disk=disk, block=piece.first, point=state) from error
        except OSError as error:
            raise JournalUnreadable(item=self.item, place=segment.path.name, cause=error) from error
        return self.stored_image(segment, piece, hashes, disk, state)

    def stored_image(self, segment: Segment, piece: Piece, hashes: bytes, disk: int, state: int) -> bytes:
        """The bytes of a stored piece, which must have these hashes. Raises as `before_image`."""
        try:
            data = segment.read_at(piece.at, piece.count * BLOCK)
        except BadRecord:
            data = b""  # reported below, as every other damage of it
        except OSError as error:
            raise JournalUnreadable(item=self.item, place=segment.path.name, cause=error) from error
        if len(data) != piece.count * BLOCK or block_hashes(self.key, data) != hashes:
            raise BeforeImageDamaged(item=self.item, disk=disk, block=piece.first, point=state)
        return data

    def find_segment(self, number: int) -> Segment:
        """A segment that is named or still being read."""
        with self._lock:
            found = self.segments.get(number)
            return found or next(segment for segment in self._retired if segment.id == number)

    def close(self) -> None:
        """Close all files."""
        for segment in [*self.segments.values(), *self._retired]:
            segment.file.close()
