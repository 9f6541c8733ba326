"""Reads disks and hashes their granules in worker threads; finds what differs from granule maps.

Invariant: the bytes of a piece are the bytes that were hashed. Holes are not read. Memory is bounded: a buffer of
CHUNK for each thread, and at most AHEAD chunks that were read and not yet taken. The generators belong to one thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from backhaul.disks import aligned_buffer
from backhaul.disks.contract import Disk
from backhaul.mobility.trackers.contract import Piece
from backhaul.replication.maps import GranuleMap
from backhaul.replication.units import CHUNK, GRANULE, MAX_MAP_HASHES
from backhaul.replication.values import Extent, ExtentKind

THREADS: Final = 2
"""One reads while the other hashes; both calls release the interpreter. More compete with the machine's own work."""

AHEAD: Final = 4
"""Chunks read before they are taken: keeps the threads busy while a piece is sealed or staged."""


@dataclass(frozen=True)
class Span:
    """A run of whole granules (the disk's end excepted) that holds data, or is a hole."""

    offset: int
    length: int
    hole: bool


@dataclass(frozen=True)
class Chunk:
    """What came of one span of at most CHUNK: how much was read, and what of it changed."""

    bytes_read: int
    pieces: list[Piece]


class _Buffers(threading.local):
    """One aligned buffer for each worker thread; goes with the thread."""

    def __init__(self) -> None:
        self.view = aligned_buffer(CHUNK)


def spans(disk: Disk) -> Iterator[Span]:
    """The whole disk: its data in spans of at most CHUNK, rounded to granules, and the holes between as they come."""
    position = 0
    for offset, length in disk.data_ranges():
        start = max(position, offset - offset % GRANULE)
        end = min(disk.size, -(-(offset + length) // GRANULE) * GRANULE)
        if start >= end:
            continue
        if start > position:
            yield Span(position, start - position, hole=True)
        for begin in range(start, end, CHUNK):
            yield Span(begin, min(CHUNK, end - begin), hole=False)
        position = end
    if position < disk.size:
        yield Span(position, disk.size - position, hole=True)


class Hasher:
    """Compares spans of one disk with its map; the jobs that run in worker threads."""

    def __init__(self, index: int, disk: Disk, granules: GranuleMap, buffers: _Buffers) -> None:
        self._index = index
        self._disk = disk
        self._map = granules
        self._buffers = buffers

    def jobs(self) -> Iterator[Callable[[], Chunk]]:
        """A job for each span; the caller asks for the next one when it has room for it."""
        for span in spans(self._disk):
            yield self.hole_job(span) if span.hole else self.data_job(span)

    def data_job(self, span: Span) -> Callable[[], Chunk]:
        """Reads and hashes one span of data."""
        return lambda: self._compare_data(span.offset, span.length)

    def hole_job(self, span: Span) -> Callable[[], Chunk]:
        """Looks whether the map knows that a hole is zeros."""
        return lambda: Chunk(0, self._compare_hole(span.offset, span.length))

    def _compare_data(self, offset: int, length: int) -> Chunk:
        seen = self._map.generation()
        view = self._buffers.view[:length]
        self._disk.read_into(offset, view)
        first = offset // GRANULE
        known = self._map.hashes(first, -(-length // GRANULE))
        runs: list[_Run] = []
        for number, before in enumerate(known):
            digest = self._map.hash_granule(view[number * GRANULE : (number + 1) * GRANULE])
            if digest != before:
                _append(runs, number, digest, zero=digest == self._map.zero_hash(first + number))
        return Chunk(length, [self._piece(run, offset, view, seen) for run in runs])

    def _piece(self, run: _Run, offset: int, view: memoryview, seen: int) -> Piece:
        start, end = run.first * GRANULE, min(len(view), (run.first + len(run.hashes)) * GRANULE)
        if run.zero:
            extent = Extent(self._index, offset + start, end - start, ExtentKind.ZERO)
            return Piece(extent, b"", (), self._map, seen)
        extent = Extent(self._index, offset + start, end - start)
        return Piece(extent, bytes(view[start:end]), tuple(run.hashes), self._map, seen)

    def _compare_hole(self, offset: int, length: int) -> list[Piece]:
        """The granules of a hole that are not known to be zeros."""
        seen = self._map.generation()
        pieces: list[Piece] = []
        last = -(-(offset + length) // GRANULE)
        for first in range(offset // GRANULE, last, MAX_MAP_HASHES):
            known = self._map.hashes(first, min(MAX_MAP_HASHES, last - first))
            zero, last_zero = self._map.zero_hash(first), self._map.zero_hash(first + len(known) - 1)
            runs: list[_Run] = []
            for number, before in enumerate(known):
                if before != (last_zero if number == len(known) - 1 else zero):
                    _append(runs, number, b"", zero=True)
            for run in runs:
                start = (first + run.first) * GRANULE
                end = min(self._disk.size, start + len(run.hashes) * GRANULE)
                pieces.append(Piece(Extent(self._index, start, end - start, ExtentKind.ZERO), b"", (), self._map, seen))
        return pieces


@dataclass
class _Run:
    """Neighbouring changed granules of one kind, by their number within the span."""

    first: int
    hashes: list[bytes]
    zero: bool


def _append(runs: list[_Run], number: int, digest: bytes, *, zero: bool) -> None:
    if runs and runs[-1].zero == zero and runs[-1].first + len(runs[-1].hashes) == number:
        runs[-1].hashes.append(digest)
    else:
        runs.append(_Run(number, [digest], zero))


def run_ahead(jobs: Iterator[Callable[[], Chunk]], pool: ThreadPoolExecutor) -> Iterator[Chunk]:
    """The jobs' results in their order, at most AHEAD of them in the works; the first failure is raised at its turn."""
    pending: deque[Future[Chunk]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) >= AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def new_buffers() -> _Buffers:
    """For the hashers of one pool of threads."""
    return _Buffers()
