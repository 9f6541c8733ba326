"""Bringing a granule map up to date by reading its disk.

Invariant: the map's generation is taken before a piece is read or a hole is looked up, so that a write that comes
in meanwhile leaves its granules stale. Called from worker threads by agent and master target; several may work on
one disk and map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pyroaring import BitMap

from backhaul.disks.aligned import aligned_buffer
from backhaul.disks.contract import Disk
from backhaul.disks.errors import OutOfBounds
from backhaul.replication.maps import GranuleMap
from backhaul.replication.units import CHUNK, GRANULE

_PIECE_GRANULES = CHUNK // GRANULE


@dataclass(slots=True)
class Refreshed:
    """What `refresh` did, in granules.

    hashed   read and hashed
    zeros    holes, not read
    refused  of both: written meanwhile, so still stale
    """

    hashed: int = 0
    zeros: int = 0
    refused: int = 0


def refresh(
    disk: Disk,
    granule_map: GranuleMap,
    granules: Iterable[int] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Refreshed:
    """Hash the stale granules of `disk` (or the given ones) into `granule_map`, once each.

    Holes are not read. Memory: 1 MiB. `progress` is called with the bytes done since its last call, holes included;
    what it raises ends the work, and what was done stays done.

    Raises OutOfBounds when disk and map differ in size, MapRangeInvalid for granules behind the end, DiskReadFailed.
    """
    if disk.size != granule_map.size:
        raise OutOfBounds(disk=disk.name, offset=0, length=granule_map.size, size=disk.size)
    wanted = granule_map.stale_granules() if granules is None else BitMap(granules)
    if wanted:
        granule_map.zero_hash(wanted.max())  # refuses what lies behind the end before anything is read
    reader = _Reader(disk, granule_map, progress)
    for first, last in _runs(wanted):
        reader.run(first, last)
    return reader.done


class _Reader:
    """One call of `refresh`: its buffer and its count."""

    def __init__(self, disk: Disk, granule_map: GranuleMap, progress: Callable[[int], None] | None) -> None:
        self._disk = disk
        self._map = granule_map
        self._progress = progress
        self._buffer = aligned_buffer(CHUNK)
        self.done = Refreshed()

    def run(self, first: int, last: int) -> None:
        """Refresh the granules from `first` up to `last`, which is not included."""
        while first < last:
            seen = self._map.generation()
            offset = first * GRANULE
            data = next(iter(self._disk.data_ranges(offset, self._end(last) - offset)), None)
            begin = last if data is None else data[0] // GRANULE
            if begin > first:
                self._hole(first, begin, seen)
            if data is None:
                return
            first = min(last, -(-(data[0] + data[1]) // GRANULE))
            for piece in range(begin, first, _PIECE_GRANULES):
                self._read(piece, min(piece + _PIECE_GRANULES, first))

    def _hole(self, first: int, last: int, seen: int) -> None:
        taken = self._map.put_zeros(first, last - first, seen)
        self.done.zeros += last - first
        self.done.refused += last - first - taken
        self._tell(first, last)

    def _read(self, first: int, last: int) -> None:
        granule_map = self._map
        seen = granule_map.generation()
        offset = first * GRANULE
        view = self._buffer[: self._end(last) - offset]
        self._disk.read_into(offset, view)
        for index in range(first, last):
            start = index * GRANULE - offset
            if not granule_map.put(index, granule_map.hash_granule(view[start : start + GRANULE]), seen):
                self.done.refused += 1
        self.done.hashed += last - first
        self._tell(first, last)

    def _tell(self, first: int, last: int) -> None:
        if self._progress is not None:
            self._progress(self._end(last) - first * GRANULE)

    def _end(self, granule: int) -> int:
        """First byte of a granule, or the disk's end."""
        return min(granule * GRANULE, self._disk.size)


def _runs(granules: BitMap) -> Iterator[tuple[int, int]]:
    """The set as runs (first, behind the last), ascending."""
    if not granules:
        return
    last, end = 0, granules.max() + 1
    others = granules.flip(0, end + 1)  # one by one, the 33 million granules of 2 TiB would take seconds
    while last < end:
        first = granules.next_set_bit(last)
        last = others.next_set_bit(first)
        yield first, last
