"""Digests of a disk's ranges: what an integrity report compares.

Invariant: `read_digests` believes nothing that was known before, every byte of the ranges is read (holes are zeros);
`map_digests` believes the map but for what is stale in it. Both end early, with fewer digests than were asked for, once
they have read a budget: so one request may cover a terabyte of holes, and takes no longer than one of data. Blocking,
in worker threads of agent and master target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from blake3 import blake3
from pyroaring import BitMap

from backhaul.disks.contract import Disk
from backhaul.disks.errors import OutOfBounds
from backhaul.disks.hashing import refresh
from backhaul.replication.maps import GranuleMap
from backhaul.replication.units import GRANULE, RANGE, RANGE_GRANULES

_LINEAGE: Final = b"backhaul/1 lineage of a granule key"
_LINEAGE_BYTES: Final = 16

_STEP: Final = 4
"""Ranges between two looks at the budget: 64 MiB at most are read beyond it. Of holes, 2 TiB take a second so."""

Progress = Callable[[int], None]
"""Told the bytes done since its last call; what it raises ends the reading."""


def lineage_of(key: bytes) -> bytes:
    """Names an item's granule key without giving it away: digests under two keys cannot be compared."""
    return blake3(_LINEAGE, key=key).digest(length=_LINEAGE_BYTES)


def is_of_lineage(granules: GranuleMap, lineage: bytes) -> bool:
    """Whether a map was made with the key of this lineage."""
    return granules.hash_granule(_LINEAGE)[:_LINEAGE_BYTES] == lineage


def read_digests(
    disk: Disk, key: bytes, first: int, count: int, progress: Progress | None = None, *, budget: int | None = None
) -> list[bytes]:
    """Digests of ranges of 16 MiB from range `first` on, under an item's key: of `count`, or of fewer, but one at
    least, once `budget` bytes of data were read. Memory: 1 MiB and their hashes.

    Raises OutOfBounds for ranges that the disk does not have, DiskReadFailed.
    """
    return map_digests(disk, GranuleMap.unknown(disk.size, key), first, count, progress, budget=budget)


def map_digests(
    disk: Disk,
    granules: GranuleMap,
    first: int,
    count: int,
    progress: Progress | None = None,
    *,
    budget: int | None = None,
) -> list[bytes]:
    """As `read_digests`, by the map, in which what is stale is read back. Raises the same."""
    if first < 0 or count < 1 or first + count > granules.range_count:
        raise OutOfBounds(disk=disk.name, offset=first * RANGE, length=count * RANGE, size=disk.size)
    stale = granules.stale_granules()
    digests: list[bytes] = []
    read, end = 0, first + count
    while (start := first + len(digests)) < end and (budget is None or read < budget):
        stop = min(start + _STEP, end)
        wanted = BitMap(range(start * RANGE_GRANULES, min(granules.count, stop * RANGE_GRANULES))) & stale
        read += refresh(disk, granules, wanted, progress=progress).hashed * GRANULE
        # Empty for a range that was written meanwhile: it equals nothing.
        digests += [granules.range_digest(index) or b"" for index in range(start, stop)]
    return digests
