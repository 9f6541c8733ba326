"""The records of the acknowledgement log: 32 bytes each, fixed, each with its own check.

Big-endian: kind (1), disk (1), zero (2), three numbers (8 each), CRC-32 of all before (4). Pure.

| kind | a | b | c |
|---|---|---|---|
| START | incarnation | first sequence | wall ns |
| MACHINE | tag, first half | tag, second half | parent incarnation, 0: none |
| REGION | first block | blocks | 0 |
| BASE_STAMP | sequence | block | incarnation |
| BASE_OTHER | digest | block | 0 |
| READY | number of BASE records | 0 | wall ns |
| ISSUE, ACK | sequence | block | wall ns |
| STOP | newest sequence | 0 | wall ns |

START, MACHINE, then REGION and BASE in any number, then READY. A block of a region without a BASE record was zeros.
ISSUE lies in the log before the write is handed to the disk, ACK before the writer goes on, both through the page
cache, which outlives the process. The order of the records is therefore the order of the events: if the ACK of A
lies before the ISSUE of B, A was acknowledged before B was issued.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Final, NamedTuple

_BODY: Final = struct.Struct(">BBHQQQ")
_CHECK: Final = struct.Struct(">I")

RECORD: Final = _BODY.size + _CHECK.size
"""Bytes of a record."""


class RecordKind(enum.IntEnum):
    """What a record says."""

    START = 1
    MACHINE = 2
    REGION = 3
    BASE_STAMP = 4
    BASE_OTHER = 5
    READY = 6
    ISSUE = 7
    ACK = 8
    STOP = 9


class Record(NamedTuple):
    """One record; the meaning of a, b, c is in the module's table."""

    kind: RecordKind
    disk: int
    a: int
    b: int
    c: int


_KINDS: Final = {int(kind): kind for kind in RecordKind}


def encode(kind: RecordKind, disk: int, a: int, b: int, c: int) -> bytes:
    """The 32 bytes of a record."""
    body = _BODY.pack(kind, disk, 0, a, b, c)
    return body + _CHECK.pack(zlib.crc32(body))


def decode(data: bytes) -> Record | None:
    """The record, or None where the 32 bytes are none."""
    kind, disk, _zero, a, b, c = _BODY.unpack_from(data)
    known = _KINDS.get(kind)
    if known is None or _CHECK.unpack_from(data, _BODY.size)[0] != zlib.crc32(data[: _BODY.size]):
        return None
    return Record(known, disk, a, b, c)
