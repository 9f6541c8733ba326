"""Stamps: what a writer puts into a block, and what the oracle sees in one.

Every sector of 512 bytes of a stamped block says by itself which write it belongs to and where it should lie, so
that a torn write, and a block that lies elsewhere, show. Pure; called by writers' threads and by the checker.

Sector, big-endian: magic (8), machine (16), incarnation (4), disk (2), sector number (2), block (8), sequence (8),
wall clock in ns (8), filling (452: half random, half constant, so that it compresses as live data does), CRC-32 of
all before (4).
"""

from __future__ import annotations

import enum
import hashlib
import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from blake3 import blake3

from backhaul.replication.units import BLOCK, SECTOR

_HEAD: Final = struct.Struct(">8s16sIHHQQQ")
_CHECK: Final = struct.Struct(">I")
_MAGIC: Final = b"BHSTAMP1"
_SECTORS: Final = BLOCK // SECTOR
_FILL: Final = SECTOR - _HEAD.size - _CHECK.size
_NOISE: Final = _FILL // 2
_QUIET: Final = b"backhaul ".ljust(_FILL - _NOISE, b".")
_CHECKED: Final = SECTOR - _CHECK.size
_ZEROS: Final = bytes(BLOCK)
_ZERO_SECTOR: Final = bytes(SECTOR)
_NUMBER: Final = slice(30, 32)
"""Where the sector number lies: the only part of the head in which the sectors of a block differ."""
_NUMBERS: Final = [number.to_bytes(2, "big") for number in range(_SECTORS)]
_BLOCK_BITS: Final = 48

NOISE_BYTES: Final = _SECTORS * _NOISE
"""Random bytes that a stamp needs as filling."""


def machine_tag(name: str) -> bytes:
    """16 bytes that stand for a machine's name in stamps and logs."""
    return hashlib.sha256(b"backhaul oracle machine\0" + name.encode()).digest()[:16]


def place(disk: int, block: int) -> int:
    """A block of a disk as one number; `block` counts 4 KiB from the disk's start."""
    return disk << _BLOCK_BITS | block


def disk_and_block(where: int) -> tuple[int, int]:
    """The inverse of `place`."""
    return where >> _BLOCK_BITS, where & ((1 << _BLOCK_BITS) - 1)


class Stamp(NamedTuple):
    """Which write a block belongs to. Sequences are issue order, over all disks of a machine."""

    machine: bytes
    incarnation: int
    disk: int
    block: int
    sequence: int
    wall_ns: int


def stamped_block(stamp: Stamp, noise: bytes) -> bytes:
    """The 4 KiB that write `stamp`; `noise` is at least NOISE_BYTES long."""
    assert len(noise) >= NOISE_BYTES
    parts: list[bytes] = []
    for sector in range(_SECTORS):
        head = _HEAD.pack(
            _MAGIC,
            stamp.machine,
            stamp.incarnation,
            stamp.disk,
            sector,
            stamp.block,
            stamp.sequence,
            stamp.wall_ns,
        )
        body = head + noise[sector * _NOISE : (sector + 1) * _NOISE] + _QUIET
        parts += (body, _CHECK.pack(zlib.crc32(body)))
    return b"".join(parts)


class ContentKind(enum.IntEnum):
    """What a block that is not all zeros holds."""

    STAMP = 1
    OTHER = 2
    """No stamp at all: what was on the disk before the writers came."""
    TORN = 3
    """Sectors of different writes, or a sector that is damaged."""
    MISPLACED = 4
    """A whole stamp, but of another block, disk or machine."""


class Content(NamedTuple):
    """What was seen in one block. `incarnation`, `sequence`, `wall_ns` belong to STAMP, `digest` (64 bits of
    BLAKE3 of the block) to all others; `detail` says what is wrong with TORN and MISPLACED.
    """

    kind: ContentKind
    incarnation: int = 0
    sequence: int = 0
    wall_ns: int = 0
    digest: int = 0
    detail: str = ""

    def same_as(self, other: Content | None) -> bool:
        """Whether both are the same bytes; None stands for zeros."""
        if other is None:
            return False
        if self.kind is ContentKind.STAMP or other.kind is ContentKind.STAMP:
            mine, theirs = (self.kind, self.incarnation, self.sequence), (other.kind, other.incarnation, other.sequence)
            return mine == theirs
        return self.digest == other.digest


def observe(data: bytes, machine: bytes, disk: int, block: int) -> Content | None:
    """What the 4 KiB `data`, found at `block` of `disk`, hold; None for zeros."""
    if data == _ZEROS:
        return None
    magic, owner, incarnation, on_disk, sector, at_block, sequence, wall_ns = _HEAD.unpack_from(data)
    expected = (_MAGIC, machine, disk, 0, block)
    if (magic, owner, on_disk, sector, at_block) == expected and _uniform(data):
        return Content(ContentKind.STAMP, incarnation, sequence, wall_ns)
    return _suspicious(data, machine, disk, block)


def _uniform(data: bytes) -> bool:
    """Whether all sectors pass their check and say the same but for their number."""
    before, after = data[: _NUMBER.start], data[_NUMBER.stop : _HEAD.size]
    for number, start in enumerate(range(0, BLOCK, SECTOR)):
        body = data[start : start + _CHECKED]
        if (
            _CHECK.unpack_from(data, start + _CHECKED)[0] != zlib.crc32(body)
            or body[: _NUMBER.start] != before
            or body[_NUMBER.stop : _HEAD.size] != after
            or body[_NUMBER] != _NUMBERS[number]
        ):
            return False
    return True


def _suspicious(data: bytes, machine: bytes, disk: int, block: int) -> Content:
    """Why a block that is neither zeros nor a good stamp of its place is not one."""
    digest = int.from_bytes(blake3(data).digest(8), "big")
    sectors = list(_sectors(data))
    seen = {found for found in sectors if isinstance(found, Stamp)}
    if not any(data[start : start + len(_MAGIC)] == _MAGIC for start in range(0, BLOCK, SECTOR)):
        return Content(ContentKind.OTHER, digest=digest)
    if len(seen) == 1 and len([found for found in sectors if isinstance(found, Stamp)]) == _SECTORS:
        (stamp,) = seen
        whose = "" if stamp.machine == machine else " of another machine"
        return Content(
            ContentKind.MISPLACED,
            digest=digest,
            detail=f"holds write {stamp.incarnation}.{stamp.sequence} of disk {stamp.disk} block {stamp.block}{whose}",
        )
    parts = [f"{found.incarnation}.{found.sequence}" if isinstance(found, Stamp) else found for found in sectors]
    return Content(ContentKind.TORN, digest=digest, detail=f"sectors of writes {', '.join(parts)}")


def _sectors(data: bytes) -> Iterator[Stamp | str]:
    """The write each sector belongs to, or a word for what it is instead."""
    for number in range(_SECTORS):
        sector = data[number * SECTOR : (number + 1) * SECTOR]
        magic, owner, incarnation, disk, at, block, sequence, wall_ns = _HEAD.unpack_from(sector)
        if sector == _ZERO_SECTOR:
            yield "zeros"
        elif magic != _MAGIC:
            yield "no stamp"
        elif _CHECK.unpack_from(sector, _CHECKED)[0] != zlib.crc32(sector[:_CHECKED]):
            yield "damaged"
        elif at != number:
            yield f"sector {at} in place of {number}"
        else:
            yield Stamp(owner, incarnation, disk, block, sequence, wall_ns)
