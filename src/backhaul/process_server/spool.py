"""The spool: an append-only log of sealed frames, durable before anybody is told so.

Invariants:
- `append` returns only when every entry it reports is synced; a failed write changes nothing but what was dropped.
- A failed sync raises SpoolSyncFailed, after which the object must not be used: the process ends and recovers.
- Files in the folder never pass the bound; the last segment's worth below it is kept for moving records.
Synchronous; all calls come from the one thread that the service gives it. Format: `records`; restart: `recovery`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backhaul.process_server.errors import SpoolDamaged, SpoolSyncFailed, SpoolWriteFailed
from backhaul.process_server.index import ItemIndex, SpoolIndex
from backhaul.process_server.records import (
    RECORD_HEADER,
    SALT,
    SEGMENT_HEADER,
    RecordKind,
    SegmentHeader,
    SegmentReader,
    check_of,
    decode_record,
    encode_record,
)
from backhaul.process_server.recovery import recover, segment_name
from backhaul.replication.ports import Clock, Files, OpenFile, Randomness
from backhaul.replication.units import KiB, MiB
from backhaul.replication.values import Fence, ItemId

MAX_SEGMENT: Final = 64 * MiB
"""Segments are deleted whole: small enough that a freed one comes back soon, large enough that few files are made."""

SEGMENTS_AT_LEAST: Final = 16
"""A spool has at least so many segments, so that one still in use pins at most a sixteenth of it."""

MAX_RECORDS: Final = 4_000_000
"""Records held at once: 80 MB of index. A spool that is full of tiny frames is full."""

_OPEN_FILES: Final = 8
"""Segments kept open for reading; reads go forward through few segments at a time."""

_SPARSE: Final = 0.75
"""A segment of which at most so much is live is worth moving when space is short: a third is won for each written."""

_SHORT: Final = 0.25
"""Below this share of free space sparse segments are moved; above it, waiting for them to empty costs nothing."""

_LAST_BYTES: Final = 1 * MiB
"""Of the volume, which may be smaller than the bound: left for beginning a segment and for grants, by which older
segments may go. A volume that frames have filled whole could never be freed again.
"""

_MOVE_BYTES: Final = 4 * MiB
"""Bytes moved per write: bounds the memory of moving."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record to append. For a grant `number` is what is applied (-1: nothing) and `payload` the agent's id."""

    kind: RecordKind
    item: ItemId
    fence: Fence
    number: int
    payload: bytes | bytearray | memoryview
    flags: int = 0
    stored_ns: int = 0


def grant_entry(item: ItemId, fence: Fence, agent: str, applied: int = -1) -> Entry:
    """`agent` (empty: nobody) may send under `fence`; lower streams are closed and their frames forgotten."""
    return Entry(RecordKind.GRANT, item, fence, applied, agent.encode())


def frame_entry(
    item: ItemId, fence: Fence, number: int, payload: bytes | bytearray | memoryview, flags: int = 0
) -> Entry:
    """Frame `number` of the stream; number 0 is its header."""
    return Entry(RecordKind.FRAME if number else RecordKind.STREAM, item, fence, number, payload, flags)


@dataclass(frozen=True, slots=True)
class SpooledItem:
    """An item as found at start. `lengths`: payload bytes of the records `last - len + 1 .. last`."""

    item: ItemId
    fence: Fence
    agent: str
    applied: int
    last: int
    lengths: array[int]
    oldest_ns: int


@dataclass(frozen=True, slots=True)
class SpoolReport:
    """What was found at start. `lost`: item -> first acknowledged number that is gone."""

    items: tuple[SpooledItem, ...]
    damages: tuple[SpoolDamaged, ...]
    lost: dict[ItemId, int]


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of the spool's files and bound, and of the volume that holds them."""

    used: int
    bound: int
    volume_free: int
    volume_total: int

    @property
    def free_share(self) -> float:
        """Free share of the bound or of the volume, whichever is less; 0 to 1."""
        volume = self.volume_free / self.volume_total if self.volume_total else 0.0
        return max(0.0, min(1 - self.used / self.bound, volume))


@dataclass(slots=True)
class _Head:
    """The segment that is being written."""

    number: int
    file: OpenFile
    salt: bytes
    offset: int
    created: bool = False
    """Its name is in the folder durably."""


class Spool:
    """The log in one folder. Call `recover` first."""

    def __init__(self, files: Files, folder: Path, bound_bytes: int, clock: Clock, randomness: Randomness) -> None:
        self._files = files
        self._folder = folder
        self._bound = bound_bytes
        self._segment_bytes = max(64 * KiB, min(MAX_SEGMENT, bound_bytes // SEGMENTS_AT_LEAST))
        self._clock = clock
        self._randomness = randomness
        self._index = SpoolIndex()
        self._sizes: dict[int, int] = {}
        self._salts: dict[int, bytes] = {}
        self._used = 0
        self._head: _Head | None = None
        self._previous = (0, 0)
        self._next = 1
        self._reading: OrderedDict[int, OpenFile] = OrderedDict()
        self._unmovable: set[int] = set()
        self._dirty: set[ItemId] = set()
        self._drops: dict[ItemId, Fence] = {}
        self._dropped: dict[ItemId, str] = {}

    def recover(self) -> SpoolReport:
        """Read all segments back. Raises OSError when the disk cannot be read."""
        self._files.make_folder(self._folder)
        found = recover(self._files, self._folder)
        self._index, self._sizes, self._salts = found.index, found.sizes, found.salts
        self._used = sum(found.sizes.values())
        self._previous = found.newest
        self._next = max(found.sizes, default=0) + 1
        items = tuple(
            SpooledItem(name, one.fence, one.agent, one.applied, one.position, one.records.lengths(), one.oldest_ns)
            for name, one in self._index.items.items()
        )
        return SpoolReport(items, tuple(found.damages), found.lost)

    def append(self, entries: Sequence[Entry]) -> dict[ItemId, tuple[Fence, int]]:
        """All entries in one write and one sync; fence and position of each item named in them afterwards.

        Entries that are not next in order, or of a closed stream, are left out: the position shows it. Raises
        SpoolWriteFailed (nothing was changed, try again when there is space) and SpoolSyncFailed (fatal).
        """
        batch = self._fitting(entries)
        if batch:
            offsets = self._write([*self._notes(), *batch])[-len(batch) :]
            number = self._number()
            for entry, offset in zip(batch, offsets, strict=True):
                self._take(entry, number, offset)
        return {
            entry.item: (known.fence, known.position)
            for entry in entries
            if (known := self._index.items.get(entry.item)) is not None
        }

    def free(self, item: ItemId, fence: Fence, number: int) -> None:
        """Everything up to `number` of the stream is durable at the target. Touches memory only."""
        known = self._index.items.get(item)
        if known is not None and known.fence == fence and number > known.applied:
            self._index.free(known, number)
            self._dirty.add(item)

    def forget(self, item: ItemId) -> None:
        """The item is not relayed here any more, and holds nothing."""
        known = self._index.items.pop(item, None)
        assert known is None or not len(known.records), "an item with a backlog is never forgotten"
        self._dirty.discard(item)

    def take_dropped(self) -> dict[ItemId, str]:
        """Items that lost what was spooled of them since the last call, and why: their positions went back."""
        dropped, self._dropped = self._dropped, {}
        return dropped

    def read(self, item: ItemId, fence: Fence, first: int, limit_bytes: int) -> list[tuple[bytes, int]]:
        """Payloads and flags of records `first ..`, at least one and at most `limit_bytes` unless one is larger.

        Fewer or none where the stream was closed, freed or dropped meanwhile, or damage shows: see `take_dropped`.
        """
        known = self._index.items.get(item)
        if known is None or known.fence != fence or first < known.records.first:
            return []
        found: list[tuple[bytes, int]] = []
        number, size = first, 0
        while number <= known.records.last:
            segment, offset, length = known.records.at(number)
            if found and size + length > limit_bytes:
                break
            one = self._read_record(segment, offset, length)
            if one is None:
                self._drop(item, f"segment {segment} is damaged at byte {offset}")
                break
            found.append(one)
            size += length
            number += 1
        return found

    def collect(self) -> None:
        """Delete segments that hold nothing; while space is short, move what is left in one that holds little.

        Raises SpoolSyncFailed. A write that fails here is left for the next time: nothing depends on it.
        """
        with contextlib.suppress(SpoolWriteFailed):
            if self._has_dead() and self._dirty:
                self._write(self._notes())
        self._remove_dead()
        if self.space().free_share < _SHORT:
            with contextlib.suppress(SpoolWriteFailed):
                self._move_sparsest()

    def reopen(self) -> None:
        """Begin a new segment: proves that the spool can be written. Raises SpoolWriteFailed, SpoolSyncFailed."""
        self._abandon_head()
        self._write(self._notes())

    def space(self) -> Space:
        """Space used and free. A volume that cannot be asked counts as full."""
        try:
            free, total = self._files.free_bytes(self._folder)
        except OSError:
            free, total = 0, 1
        return Space(self._used, self._bound, free, total)

    def close(self) -> None:
        """Write down what is applied, so that a restart sends nothing twice. Raises as `append`."""
        if self._dirty or self._drops:
            self._write(self._notes())
        self._abandon_head()
        while self._reading:
            _close(self._reading.popitem()[1])

    # Choosing what is written

    def _fitting(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries that are next in order, after room was made for them."""
        while batch := self._in_order(entries):
            needed = sum(RECORD_HEADER + len(entry.payload) for entry in batch) + self._notes_bytes()
            frames = sum(entry.kind is not RecordKind.GRANT for entry in batch)
            if self._make_room(needed, frames):
                break
            victim = self._index.largest()
            if victim is None:
                raise SpoolWriteFailed(folder=self._folder, reason=f"{needed} bytes do not fit into {self._bound}")
            self._drop(victim, "the spool is full and this item held most of it")
        return batch

    def _in_order(self, entries: Sequence[Entry]) -> list[Entry]:
        ahead: dict[ItemId, tuple[Fence, int]] = {}
        taken: list[Entry] = []
        for entry in entries:
            state = ahead.get(entry.item)
            if state is None:
                known = self._index.items.get(entry.item)
                state = (known.fence, known.position) if known is not None else None
            if entry.kind is RecordKind.GRANT:
                if state is not None and entry.fence < state[0]:
                    continue
                same = state is not None and entry.fence == state[0]
                ahead[entry.item] = (entry.fence, max(state[1], entry.number) if state and same else entry.number)
            elif state is None or entry.fence != state[0] or entry.number != state[1] + 1:
                continue
            else:
                ahead[entry.item] = (entry.fence, entry.number)
            taken.append(entry)
        return taken

    def _make_room(self, needed: int, frames: int) -> bool:
        """Whether `needed` bytes fit, after deleting and moving what can be."""
        limit = self._bound - self._segment_bytes
        while self._used + needed + self._head_bytes() > limit:
            if not self._newest():
                self._write(self._notes())  # begins a segment that names all items: now older ones may go
            elif not self._remove_dead() and not self._roll_dead_head() and not self._move_sparsest():
                return False
        return self._index.records + frames <= MAX_RECORDS

    def _drop(self, item: ItemId, reason: str) -> None:
        known = self._index.items[item]
        self._index.forget(known)
        self._drops[item] = known.fence
        self._dropped[item] = reason

    def _notes(self) -> list[Entry]:
        """Drops and newly applied positions: they ride with the next write."""
        items = self._index.items
        drops = [
            Entry(RecordKind.DROP, name, fence, items[name].applied, b"")
            for name, fence in self._drops.items()
            if name in items
        ]
        return drops + [self._mark(name, items[name]) for name in self._dirty if name in items]

    def _notes_bytes(self) -> int:
        agents = sum(len(self._index.items[name].agent) for name in self._dirty if name in self._index.items)
        return (len(self._drops) + len(self._dirty)) * RECORD_HEADER + agents

    @staticmethod
    def _mark(name: ItemId, item: ItemIndex) -> Entry:
        return grant_entry(name, item.fence, item.agent, item.applied)

    def _take(self, entry: Entry, segment: int, offset: int) -> None:
        if entry.kind is RecordKind.GRANT:
            self._index.grant(entry.item, entry.fence, bytes(entry.payload).decode(), entry.number)
            return
        self._index.add(self._index.items[entry.item], segment, offset, len(entry.payload))

    # Writing

    def _write(self, entries: Sequence[Entry]) -> list[int]:
        """One write and one sync; the offset of each entry."""
        self._check_volume(entries)
        if self._head is not None and self._head.offset >= self._segment_bytes:
            self._abandon_head()
        try:
            head = self._head or self._open_head()
            buffers, offsets, end = self._encode(head, entries)
            head.file.write_at(head.offset, buffers)
        except OSError as error:
            self._abandon_head()
            raise SpoolWriteFailed(folder=self._folder, reason=error.strerror or str(error)) from error
        self._sync(head)
        self._grow(head, end)
        self._dirty.clear()
        self._drops.clear()
        return offsets

    def _check_volume(self, entries: Sequence[Entry]) -> None:
        """Raises SpoolWriteFailed where frames, new or moved, would take the last of the volume."""
        frames = sum(
            RECORD_HEADER + len(entry.payload)
            for entry in entries
            if entry.kind in (RecordKind.STREAM, RecordKind.FRAME)
        )
        if not frames:
            return
        try:
            free, _ = self._files.free_bytes(self._folder)
        except OSError:
            return  # the write itself tells
        if frames + _LAST_BYTES > free:
            raise SpoolWriteFailed(folder=self._folder, reason=os.strerror(errno.ENOSPC))

    def _encode(
        self, head: _Head, entries: Sequence[Entry]
    ) -> tuple[list[bytes | bytearray | memoryview], list[int], int]:
        now, offset, salt = self._clock.wall_ns(), head.offset, head.salt
        buffers: list[bytes | bytearray | memoryview] = []
        offsets: list[int] = []
        if not head.created:
            previous, length = self._previous
            buffers.append(SegmentHeader(head.number, previous, length, salt).encode())
            entries = [*(self._mark(name, item) for name, item in self._index.items.items()), *entries]
            offset = SEGMENT_HEADER
        for entry in entries:
            buffers.append(
                encode_record(
                    entry.kind,
                    entry.item,
                    entry.fence,
                    entry.number,
                    entry.payload,
                    flags=entry.flags,
                    durable=head.offset,
                    stored_ns=entry.stored_ns or now,
                    salt=salt,
                )
            )
            buffers.append(entry.payload)
            offsets.append(offset)
            offset += RECORD_HEADER + len(entry.payload)
        return buffers, offsets, offset

    def _sync(self, head: _Head) -> None:
        try:
            head.file.sync()
            if not head.created:
                self._files.sync_folder(self._folder)
                head.created = True
                self._next = head.number + 1
        except OSError as error:
            raise SpoolSyncFailed(folder=self._folder, reason=error.strerror or str(error)) from error

    def _open_head(self) -> _Head:
        """A new segment. One whose first write failed is begun again under its number, so that none pile up."""
        number, salt = self._next, self._randomness.token(SALT)
        file = self._files.open(self._folder / segment_name(number), create=True)
        self._head = head = _Head(number, file, salt, 0)
        self._sizes.setdefault(number, 0)
        self._index.live.setdefault(number, 0)
        file.truncate(0)
        self._grow(head, 0)
        self._salts[number] = salt
        return head

    def _grow(self, head: _Head, end: int) -> None:
        self._used += end - self._sizes[head.number]
        self._sizes[head.number] = head.offset = end

    def _abandon_head(self) -> None:
        """Nothing more is written to the head; the next segment's header names its good length."""
        head, self._head = self._head, None
        if head is None:
            return
        if head.created:
            self._previous = (head.number, head.offset)
        else:  # its first write failed: what it holds counts against the bound until it is begun again
            with contextlib.suppress(OSError):
                self._grow(head, head.file.size())
        _close(head.file)

    def _number(self) -> int:
        assert self._head is not None, "a write leaves a head"
        return self._head.number

    def _head_bytes(self) -> int:
        """Bytes a new segment begins with, when one is due."""
        if self._head is not None and self._head.offset < self._segment_bytes:
            return 0
        return SEGMENT_HEADER + sum(RECORD_HEADER + len(item.agent) for item in self._index.items.values())

    # Reading, deleting, moving

    def _read_record(self, segment: int, offset: int, length: int) -> tuple[bytes, int] | None:
        """Payload and flags; None where they are damaged or cannot be read."""
        try:
            data = self._open_for_reading(segment).read_at(offset, RECORD_HEADER + length)
        except OSError:
            return None
        header = decode_record(data[:RECORD_HEADER], self._salts[segment])
        payload = data[RECORD_HEADER:]
        if header is None or len(payload) != length or check_of(payload) != header.payload_check:
            return None
        return payload, header.flags

    def _open_for_reading(self, segment: int) -> OpenFile:
        file = self._reading.get(segment)
        if file is None:
            file = self._files.open(self._folder / segment_name(segment), writable=False)
            self._reading[segment] = file
            if len(self._reading) > _OPEN_FILES:
                _close(self._reading.popitem(last=False)[1])
        self._reading.move_to_end(segment)
        return file

    def _has_dead(self) -> bool:
        return any(segment != self._newest() for segment in self._index.dead())

    def _newest(self) -> int:
        """The segment whose beginning names all items durably; without one no older segment may go."""
        return self._head.number if self._head is not None and self._head.created else 0

    def _remove_dead(self) -> bool:
        """Delete segments that hold nothing; whether one was deleted."""
        newest = self._newest()
        doomed = [segment for segment in self._index.dead() if newest and segment != newest]
        return sum([self._remove(segment) for segment in doomed]) > 0

    def _roll_dead_head(self) -> bool:
        """Begin a new segment when the head holds nothing but its past, and delete it; whether it was."""
        head = self._head
        beginning = SEGMENT_HEADER + sum(RECORD_HEADER + len(item.agent) for item in self._index.items.values())
        if head is None or self._index.live[head.number] or head.offset <= 2 * beginning + self._notes_bytes():
            return False
        self.reopen()
        return self._remove_dead()

    def _remove(self, segment: int) -> bool:
        if segment in self._reading:
            _close(self._reading.pop(segment))
        try:
            self._files.remove(self._folder / segment_name(segment))
        except OSError:  # it stays counted and is tried again; what it holds is applied, so it harms nobody
            return False
        self._used -= self._sizes.pop(segment)
        self._salts.pop(segment, None)
        self._unmovable.discard(segment)
        del self._index.live[segment]
        return True

    def _move_sparsest(self) -> bool:
        """Copy what is live of the segment that holds least to the head, and delete it; whether one was deleted."""
        newest = self._newest()
        candidates = [
            (live / self._sizes[segment], segment)
            for segment, live in self._index.live.items()
            if newest and segment not in (newest, *self._unmovable) and live and live <= _SPARSE * self._sizes[segment]
        ]
        if not candidates:
            return False
        segment = min(candidates)[1]
        if self._used + self._index.live[segment] + self._head_bytes() + self._notes_bytes() > self._bound:
            return False
        try:
            self._move(segment)
        except OSError:  # it cannot be read now; what it holds stays where it is
            self._unmovable.add(segment)
            return False
        if self._index.live[segment]:  # a header is damaged: whoever has a record there has lost it
            for name, item in self._index.items.items():
                if item.records.touches(segment):
                    self._drop(name, f"segment {segment} is damaged")
        return self._remove(segment)

    def _move(self, segment: int) -> None:
        reader = SegmentReader(self._open_for_reading(segment), self._salts[segment], self._sizes[segment])
        batch: list[Entry] = []
        size = 0
        for one in reader.records(verify=False):
            header = one.header
            item = self._index.items.get(header.item)
            if item is None or header.kind not in (RecordKind.STREAM, RecordKind.FRAME) or header.fence != item.fence:
                continue
            held = item.records.first <= header.number <= item.records.last
            if not held or item.records.at(header.number)[:2] != (segment, one.offset):
                continue
            found = self._read_record(segment, one.offset, header.length)
            if found is None:
                self._drop(header.item, f"segment {segment} is damaged at byte {one.offset}")
                continue
            batch.append(
                Entry(header.kind, header.item, header.fence, header.number, found[0], found[1], header.stored_ns)
            )
            size += header.length
            if size >= _MOVE_BYTES:
                self._rewrite(batch)
                batch, size = [], 0
        self._rewrite(batch)

    def _rewrite(self, batch: Sequence[Entry]) -> None:
        items = self._index.items
        held = [entry for entry in batch if len(items[entry.item].records)]
        if held:
            offsets = self._write([*self._notes(), *held])[-len(held) :]
            for entry, offset in zip(held, offsets, strict=True):
                self._index.move(items[entry.item], entry.number, self._number(), offset)


def _close(file: OpenFile) -> None:
    """Closing tells nothing that the last sync or read did not."""
    with contextlib.suppress(OSError):
        file.close()
