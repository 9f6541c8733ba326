"""Format of the spool's segments, and reading one back.

A segment is a header, then records, one after the other, without padding; integers are big-endian.

    segment   magic 8 | number u64 | previous number u64 | good length of the previous u64 | salt 32 | check 8
    record    magic 4 | kind u8 | 0 u8 | flags u16 | item 16 | term u32 | generation u32 | stream u64 | number u64
              | length u32 | durable u64 | stored_ns u64 | payload check 8 | header check 8 | payload

`check` is BLAKE3 cut to 8 bytes; a record's header check is keyed with the segment's salt, so that nothing an agent
puts into a payload can pass for a record when damage makes the reader look for the next one. `durable` is where the
batch began that the record was written with: everything before it was synced. So a bad record before the highest
`durable` (or before the good length that the next segment names) is damage, and behind it a torn tail that nobody
was told about. Pure but for the `OpenFile` that is read; called from the spool's one thread.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from backhaul.replication.ports import OpenFile
from backhaul.replication.units import MiB
from backhaul.replication.values import Fence, ItemId

_SEGMENT: Final = struct.Struct("!8sQQQ32s8s")
_RECORD: Final = struct.Struct("!4sBBH16sIIQQIQQ8s8s")
_SEGMENT_MAGIC: Final = b"BHSPOOL1"
_RECORD_MAGIC: Final = b"BHrc"
_CHECK: Final = 8
SEGMENT_HEADER: Final = _SEGMENT.size
RECORD_HEADER: Final = _RECORD.size
SALT: Final = 32
_WINDOW: Final = 1 * MiB
"""Bytes read at once when a segment is scanned: few calls, little memory."""


class RecordKind(enum.IntEnum):
    """What a record says."""

    STREAM = 1  # the stream's header, number 0
    FRAME = 2
    GRANT = 3  # agent (payload) may send under fence; everything up to number is applied; lower fences are closed
    DROP = 4  # what was spooled of the item so far is given up


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Head of a segment file. `previous_length` in bytes; 0 for `previous` means there was none."""

    number: int
    previous: int
    previous_length: int
    salt: bytes

    def encode(self) -> bytes:
        """The header's fixed bytes."""
        body = _SEGMENT.pack(_SEGMENT_MAGIC, self.number, self.previous, self.previous_length, self.salt, bytes(_CHECK))
        return body[:-_CHECK] + check_of(body[:-_CHECK])

    @staticmethod
    def decode(data: bytes) -> SegmentHeader | None:
        """The header, or None where there is no valid one."""
        if len(data) < SEGMENT_HEADER or data[:8] != _SEGMENT_MAGIC:
            return None
        _, number, previous, length, salt, check = _SEGMENT.unpack(data[:SEGMENT_HEADER])
        if check_of(data[: SEGMENT_HEADER - _CHECK]) != check:
            return None
        return SegmentHeader(number, previous, length, salt)


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """Head of a record. `length` and `durable` in bytes, `stored_ns` wall clock."""

    kind: RecordKind
    item: ItemId
    fence: Fence
    number: int
    flags: int
    length: int
    durable: int
    stored_ns: int
    payload_check: bytes


@dataclass(frozen=True, slots=True)
class Scanned:
    """A record that was found at `offset`; `payload` where it was asked for."""

    offset: int
    header: RecordHeader
    payload: bytes | None

    @property
    def end(self) -> int:
        """First byte behind the record."""
        return self.offset + RECORD_HEADER + self.header.length


def check_of(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of `data`, cut to 8 bytes: detects damage, and proves nothing."""
    return blake3(data).digest(length=_CHECK)


def encode_record(
    kind: RecordKind,
    item: ItemId,
    fence: Fence,
    number: int,
    payload: bytes | bytearray | memoryview,
    *,
    flags: int,
    durable: int,
    stored_ns: int,
    salt: bytes,
) -> bytes:
    """The header that goes before `payload`. A grant's number is stored plus one, so that -1 has a place."""
    stored = number + 1 if kind in (RecordKind.GRANT, RecordKind.DROP) else number
    packed = _RECORD.pack(
        _RECORD_MAGIC,
        kind,
        0,
        flags,
        bytes.fromhex(item),
        fence.term,
        fence.generation,
        fence.stream,
        stored,
        len(payload),
        durable,
        stored_ns,
        check_of(payload),
        b"",
    )
    body = packed[:-_CHECK]
    return body + blake3(body, key=salt).digest(length=_CHECK)


def decode_record(data: bytes, salt: bytes) -> RecordHeader | None:
    """The header at the start of `data`, or None where there is no valid one."""
    if len(data) < RECORD_HEADER or data[:4] != _RECORD_MAGIC:
        return None
    if blake3(data[: RECORD_HEADER - _CHECK], key=salt).digest(length=_CHECK) != data[RECORD_HEADER - _CHECK :]:
        return None
    _, kind, _, flags, item, term, generation, stream, number, length, durable, stored_ns, check, _ = _RECORD.unpack(
        data
    )
    kind = RecordKind(kind)
    if kind in (RecordKind.GRANT, RecordKind.DROP):
        number -= 1
    fence = Fence(term, generation, stream)
    return RecordHeader(kind, ItemId(item.hex()), fence, number, flags, length, durable, stored_ns, check)


class SegmentReader:
    """Reads one segment from front to back, past damage."""

    def __init__(self, file: OpenFile, salt: bytes, limit: int) -> None:
        self._file = file
        self._salt = salt
        self.limit = limit
        self.bad: list[int] = []
        """Offsets at which a record was due and none was found."""
        self._window = b""
        self._start = 0

    def records(self, *, verify: bool) -> Iterator[Scanned]:
        """All valid records in order. `verify`: check the payloads of frames too (grants' always are)."""
        offset = SEGMENT_HEADER
        while offset < self.limit:
            found = self._record_at(offset, verify)
            if found is None:
                self.bad.append(offset)
                offset = self._next_magic(offset + 1)
                continue
            yield found
            offset = found.end

    def _record_at(self, offset: int, verify: bool) -> Scanned | None:
        header = decode_record(self._bytes(offset, RECORD_HEADER), self._salt)
        if header is None or offset + RECORD_HEADER + header.length > self.limit:
            return None
        if not verify and header.kind in (RecordKind.STREAM, RecordKind.FRAME):
            return Scanned(offset, header, None)
        payload = self._bytes(offset + RECORD_HEADER, header.length)
        if len(payload) < header.length or check_of(payload) != header.payload_check:
            return None
        return Scanned(offset, header, payload)

    def _next_magic(self, offset: int) -> int:
        """Where the next valid header begins at or behind `offset`; the limit when there is none."""
        while offset < self.limit:
            window = self._bytes(offset, min(_WINDOW, self.limit - offset))
            at = window.find(_RECORD_MAGIC)
            while at >= 0:
                if decode_record(self._bytes(offset + at, RECORD_HEADER), self._salt) is not None:
                    return offset + at
                at = window.find(_RECORD_MAGIC, at + 1)
            if len(window) < len(_RECORD_MAGIC):
                break
            offset += len(window) - len(_RECORD_MAGIC) + 1
        return self.limit

    def _bytes(self, offset: int, size: int) -> bytes:
        start = offset - self._start
        if start < 0 or start + size > len(self._window):
            self._window = self._file.read_at(offset, max(size, _WINDOW))
            self._start, start = offset, 0
        return self._window[start : start + size]
