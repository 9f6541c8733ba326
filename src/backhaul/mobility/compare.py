"""Comparing disks with their replicas by hashes: initial replication, resync, reprotect, restart.

What comes out is a map of what the *target* holds; the tracker then finds what differs from it. Ranges of 16 MiB are
compared first, granules only where a range differs, so a 2 TiB disk that is equal costs 2 MiB of answers. A granule
the target did not vouch for stays stale and is sent. Questions run ahead of the answers by PIPELINE.

The disk is read only where its replica holds something: against zeros there is nothing to save, and the tracker reads
and hashes that part anyway. So an initial replication reads its disk once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

import structlog
from pyroaring import BitMap

from backhaul.disks.contract import Disk
from backhaul.disks.hashing import refresh
from backhaul.mobility.errors import TrackerStopped
from backhaul.mobility.stream import Stream
from backhaul.replication.maps import DIGEST_BYTES, GranuleMap
from backhaul.replication.records import MapAsk, MapLevel, MapPart
from backhaul.replication.units import GRANULE, MAX_MAP_HASHES, RANGE, RANGE_GRANULES

PIPELINE: Final = 4
"""Questions under way at once: hides the way's latency, bounds what waits at the target."""

ASK_RANGES: Final = 256
"""Ranges per question: 4 GiB of disk, so that a target that has to read it back answers in seconds."""

assert ASK_RANGES <= MAX_MAP_HASHES

_log = structlog.get_logger(__name__)


class Comparison:
    """Finds out what the target holds of one disk."""

    def __init__(
        self, stream: Stream, index: int, disk: Disk, key: bytes, progress: Callable[[int, int], None]
    ) -> None:
        """`progress` is told (bytes compared, bytes found to differ) as they rise; where the replica is zeros, all that
        the disk may hold there counts as differing.
        """
        self._stream, self._index, self._disk, self._key = stream, index, disk, key
        self._progress = progress
        self._compared = self._differing = 0
        self._zeros = GranuleMap.all_zero(disk.size, key)
        self._stop = threading.Event()

    async def run(self) -> GranuleMap:
        """The target's map, stale where it differs in a way that is not known. Raises what ends the stream, or
        DiskReadFailed. Cancelled, it ends when nothing reads the disk any more: whoever cancels may close it.
        """
        own = GranuleMap.unknown(self._disk.size, self._key)
        theirs = GranuleMap.unknown(self._disk.size, self._key)
        differing: list[int] = []
        async for part in self._ask_all(MapLevel.RANGE, _runs(own.range_count, ASK_RANGES)):
            differing += await self._in_thread(own, theirs, part)
        questions = ((index * RANGE_GRANULES, _granules(own, index)) for index in differing)
        async for part in self._ask_all(MapLevel.GRANULE, questions):
            self._take_granules(own, theirs, part)
        return theirs

    async def _in_thread(self, own: GranuleMap, theirs: GranuleMap, part: MapPart) -> list[int]:
        reading = asyncio.create_task(asyncio.to_thread(self._take_ranges, own, theirs, part))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            self._stop.set()
            await asyncio.wait({reading})
            if (error := reading.exception()) is not None:  # it has no other reader any more
                _log.debug("compare.ended", disk=self._index, reason=str(error))
            raise

    def _read(self, count: int) -> None:
        """Called between two pieces that are read. Raises TrackerStopped."""
        if self._stop.is_set():
            raise TrackerStopped(bytes_read=self._compared)
        self._compared += count
        self._progress(self._compared, self._differing)

    def _take_ranges(self, own: GranuleMap, theirs: GranuleMap, part: MapPart) -> list[int]:
        """Ranges whose granules must be asked for. Reads the disk; one thread at a time."""
        differing = []
        for position, digest in enumerate(_digests(part.hashes)):
            index = part.first + position
            first, count = index * RANGE_GRANULES, _granules(own, index)
            if digest == self._zeros.range_digest(index):
                theirs.put_zeros(first, count, theirs.generation())
                self._against_zeros(index)
                continue
            refresh(self._disk, own, range(first, first + count), progress=self._read)
            if own.range_digest(index) == digest:
                _copy(own, theirs, first, count)
            else:
                differing.append(index)
        return differing

    def _against_zeros(self, index: int) -> None:
        """Count a range without reading it."""
        start = index * RANGE
        length = min(RANGE, self._disk.size - start)
        held = BitMap()
        for offset, size in self._disk.data_ranges(start, length):
            held.add_range(offset // GRANULE, -(-(offset + size) // GRANULE))
        self._differing += len(held) * GRANULE
        self._read(length)

    def _take_granules(self, own: GranuleMap, theirs: GranuleMap, part: MapPart) -> None:
        for position, digest in enumerate(_digests(part.hashes)):
            index = part.first + position
            theirs.put(index, digest, theirs.generation())
            if own.get(index) != digest:
                self._differing += GRANULE
        self._progress(self._compared, self._differing)

    async def _ask_all(self, level: MapLevel, questions: Iterable[tuple[int, int]]) -> AsyncIterator[MapPart]:
        waiting: list[asyncio.Task[MapPart]] = []
        try:
            for first, count in questions:
                question = MapAsk(self._index, level, first, count)
                waiting.append(asyncio.create_task(self._stream.ask(question)))
                if len(waiting) >= PIPELINE:
                    yield await waiting.pop(0)
            while waiting:
                yield await waiting.pop(0)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


def _digests(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + DIGEST_BYTES] for at in range(0, len(hashes), DIGEST_BYTES)]


def _granules(granules: GranuleMap, range_index: int) -> int:
    return min(RANGE_GRANULES, granules.count - range_index * RANGE_GRANULES)


def _runs(total: int, most: int) -> Iterable[tuple[int, int]]:
    return ((first, min(most, total - first)) for first in range(0, total, most))


def _copy(own: GranuleMap, theirs: GranuleMap, first: int, count: int) -> None:
    seen = theirs.generation()
    for position, digest in enumerate(own.hashes(first, count)):
        if digest is not None:
            theirs.put(first + position, digest, seen)
