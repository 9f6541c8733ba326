"""Records of the undo journal: their bytes. Specification: docs/spec/journal.md.

Pure. Invariant: a record that decodes was written by this item, to this segment, at this offset; everything else
raises `BadRecord`, which never leaves the package. Used by segments, thinning and the tests.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from backhaul.disks.contract import Buffer
from backhaul.replication.units import BLOCK, MiB

HASH: Final = 16
VERSION: Final = 1
MAX_RUNS: Final = 4096
"""Runs of one record: bounds what must be read to check one."""
MAX_RUN_BLOCKS: Final = 256
"""Blocks of a run with data or a stored before-image (1 MiB), as large as a frame's chunk."""
MAX_PAYLOAD: Final = 8 * MiB
MAX_META: Final = 2 * MAX_PAYLOAD // BLOCK * HASH + MAX_RUNS * (16 + MAX_RUN_BLOCKS * HASH) + 64 * 1024
"""No record is larger; a length above it is damage and is never allocated."""

MAGIC: Final = b"BHJR"
_HEAD: Final = struct.Struct("!4sBBHIQQQQQQQ16s16s")
HEAD: Final = _HEAD.size
_RUN: Final = struct.Struct("!HBBIQ")
_COUNT: Final = struct.Struct("!I")
LAST: Final = 1

ZERO_BLOCK: Final = bytes(BLOCK)


class BadRecord(Exception):
    """The bytes are no valid record of this place."""


class RecordType(enum.IntEnum):
    """What a record says (docs/spec/journal.md, table)."""

    BEGIN = 1
    CHANGES = 2
    COMPLETE = 3
    UNDO = 4
    LAPSED = 5


class New(enum.IntEnum):
    """What a run wrote."""

    DATA = 0
    ZERO = 1
    UNCHECKED = 2


class Before(enum.IntEnum):
    """What a run overwrote."""

    NONE = 0
    ZERO = 1
    STORED = 2


@dataclass(slots=True)
class Run:
    """Consecutive blocks of one disk, changed alike. Hashes are 16 bytes per block; `stored` the before-images."""

    disk: int
    first: int
    count: int
    new: New
    before: Before
    hashes: bytes = b""
    before_hashes: bytes = b""
    stored: Sequence[Buffer] = ()

    @property
    def stored_bytes(self) -> int:
        """Length of the payload of this run."""
        return self.count * BLOCK if self.before is Before.STORED else 0


@dataclass(slots=True)
class Record:
    """One record. `payload_at` and `end` are offsets in its segment, set when it is placed or read."""

    type: RecordType
    epoch: int
    batch: int
    meta: bytes
    payload_length: int = 0
    first_frame: int = 0
    applied: int = 0
    offset: int = 0
    synced: int = 0
    last: bool = False
    stored: list[Buffer] = field(default_factory=list)

    @property
    def payload_at(self) -> int:
        """Offset of the payload in the segment."""
        return self.offset + HEAD + len(self.meta)

    @property
    def end(self) -> int:
        """First offset behind the record."""
        return self.payload_at + self.payload_length


def digest(key: bytes, *parts: Buffer) -> bytes:
    """Keyed BLAKE3 of the parts, 16 bytes."""
    state = blake3(key=key)
    for part in parts:
        state.update(part)
    return state.digest(length=HASH)


def block_hashes(key: bytes, data: Buffer) -> bytes:
    """Hashes of the 4 KiB blocks of `data`, whose length is a multiple of a block."""
    view = memoryview(data)
    return b"".join([blake3(view[at : at + BLOCK], key=key).digest(length=HASH) for at in range(0, len(view), BLOCK)])


def encode_head(key: bytes, record: Record) -> bytes:
    """The head for the record's place."""
    fixed = _HEAD.pack(
        MAGIC,
        record.type,
        LAST if record.last else 0,
        0,
        len(record.meta),
        record.payload_length,
        record.offset,
        record.synced,
        record.batch,
        record.epoch,
        record.first_frame,
        record.applied,
        digest(key, record.meta),
        bytes(HASH),
    )[:-HASH]
    return fixed + digest(key, fixed)


def decode_head(key: bytes, offset: int, head: bytes) -> tuple[Record, int, bytes]:
    """Record without meta, its meta's length and hash. Raises BadRecord."""
    if len(head) < HEAD or not head.startswith(MAGIC):
        raise BadRecord("no record")
    fields = _HEAD.unpack(head[:HEAD])
    kind, flags, meta_length, payload_length, at, synced, batch, epoch, first, applied = fields[1:3] + fields[4:12]
    if digest(key, head[: HEAD - HASH]) != fields[13]:
        raise BadRecord("head")
    if at != offset or meta_length > MAX_META or payload_length > 2 * MAX_PAYLOAD:
        raise BadRecord("place")
    record = Record(
        RecordType(kind), epoch, batch, b"", payload_length, first, applied, offset, synced, bool(flags & LAST)
    )
    return record, meta_length, fields[12]


def pack_runs(runs: Sequence[Run]) -> bytes:
    """Meta of a CHANGES record."""
    parts = [_COUNT.pack(len(runs))]
    parts += [_RUN.pack(run.disk, run.new, run.before, run.count, run.first) for run in runs]
    parts += [run.hashes for run in runs]
    parts += [run.before_hashes for run in runs]
    return b"".join(parts)


def unpack_runs(meta: bytes) -> Iterator[tuple[Run, int, int]]:
    """Runs with the offset of their before-images in the payload and of those images' hashes in the meta."""
    (count,) = _COUNT.unpack_from(meta)
    heads = [_RUN.unpack_from(meta, _COUNT.size + at * _RUN.size) for at in range(count)]
    hash_at = _COUNT.size + count * _RUN.size
    before_at = hash_at + sum(HASH * blocks for _, new, _, blocks, _ in heads if new == New.DATA)
    payload_at = 0
    for disk, new, before, blocks, first in heads:
        run = Run(disk, first, blocks, New(new), Before(before))
        if new == New.DATA:
            run.hashes = meta[hash_at : hash_at + HASH * blocks]
            hash_at += HASH * blocks
        yield_at = before_at
        if before == Before.STORED:
            run.before_hashes = meta[before_at : before_at + HASH * blocks]
            before_at += HASH * blocks
        yield run, payload_at, yield_at
        payload_at += run.stored_bytes


def changes(runs: Sequence[Run], epoch: int, batch: int, first_frame: int, applied: int) -> Iterator[Record]:
    """CHANGES records for the runs, within the bounds of a record."""
    group: list[Run] = []
    size = 0
    for run in runs:
        if group and (len(group) == MAX_RUNS or size + run.stored_bytes > MAX_PAYLOAD):
            yield _changes(group, size, epoch, batch, first_frame, applied)
            group, size = [], 0
        group.append(run)
        size += run.stored_bytes
    if group:
        yield _changes(group, size, epoch, batch, first_frame, applied)


def _changes(group: list[Run], size: int, epoch: int, batch: int, first_frame: int, applied: int) -> Record:
    stored = [part for run in group for part in run.stored]
    record = Record(RecordType.CHANGES, epoch, batch, pack_runs(group), size, first_frame, applied)
    record.stored = stored
    return record


def slice_run(run: Run, first: int, count: int) -> Run:
    """Part of a run, without its stored bytes (they are sliced by whoever has them)."""
    skip = (first - run.first) * HASH
    size = count * HASH
    return Run(
        run.disk,
        first,
        count,
        run.new,
        run.before,
        run.hashes[skip : skip + size] if run.hashes else b"",
        run.before_hashes[skip : skip + size] if run.before_hashes else b"",
    )
