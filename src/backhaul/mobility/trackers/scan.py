"""The tracker that needs nothing: reads and hashes all disks and compares with the maps of what was sent last.

Invariant: what it yields is what it hashed; a disk that cannot be read is an error, never zeros; a disk that changes
its size or is replaced while it is scanned is an error, whatever was yielded before. It vouches for nothing between
two scans, and need not. Called from worker threads; two more read and hash while a scan runs.

On a live disk the pieces are fuzzy (pre-copy). Within a still image they make a point, if hashing all disks fits the
image's limit: `measure` and `check_fits` say so before, `ScanTracker.last` afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from backhaul.disks.contract import Disk
from backhaul.disks.errors import DiskReadFailed
from backhaul.mobility.errors import DiskChangedSize, DiskReplaced, FreezeTooLong, TooMuchToStage, TrackerStopped
from backhaul.mobility.trackers.contract import BOOT_ID, DiskTruth, Piece, TrackedDisk, Truth, node_at, size_at
from backhaul.mobility.trackers.hashing import THREADS, Chunk, Hasher, new_buffers, run_ahead, spans
from backhaul.replication.maps import KEY_BYTES, GranuleMap
from backhaul.replication.ports import Clock, Randomness
from backhaul.replication.units import CHUNK, MiB
from backhaul.replication.values import DiskIdentity

KIND: Final = "scan"

SAMPLE_BYTES: Final = 64 * MiB
"""Read by `measure`, spread over the disks: some tenths of a second on a slow disk, enough to even out its cache."""

MARGIN: Final = 1.5
"""A still image needs this much more time than the hashing alone: staging, freezing, thawing, a busier moment."""


@dataclass(frozen=True)
class ScanFigures:
    """How much a scan of all disks reads, and how long that takes (measured, or predicted from a sample)."""

    bytes_to_read: int
    bytes_per_s: float

    @property
    def seconds(self) -> float:
        """Duration of a scan; what a freeze that encloses it takes at least."""
        return self.bytes_to_read / self.bytes_per_s


class ScanTracker:
    """See `contract.Tracker`."""

    def __init__(self, clock: Clock, randomness: Randomness) -> None:
        self._clock = clock
        self._randomness = randomness
        self._disks: list[TrackedDisk] = []
        self._truth: Truth | None = None
        self.last: ScanFigures | None = None

    @property
    def kind(self) -> str:
        """The name shown."""
        return KIND

    @property
    def truth(self) -> Truth | None:
        """Of the present attach; None before the first."""
        return self._truth

    def attach(self, disks: Sequence[TrackedDisk]) -> Truth:
        """Scan these disks from now on. Raises DiskChangedSize if one has not the size that its identity says."""
        for disk in disks:
            _check_size(disk.identity, size_at(disk.path))
        self._disks = list(disks)
        self._truth = Truth(
            tracker=KIND,
            boot_id=BOOT_ID.read_text("ascii").strip(),
            attach_id=self._randomness.token(16).hex(),
            disks=tuple(DiskTruth(disk.identity, node_at(disk.path)) for disk in disks),
        )
        return self._truth

    def collect(
        self, maps: Mapping[int, GranuleMap], *, stop: threading.Event, stage_bytes: int | None = None
    ) -> Iterator[Piece]:
        """See the contract. `last` tells afterwards how quick it was, the taker's own work included."""
        began_ns = self._clock.monotonic_ns()
        bytes_read = staged = 0
        for chunk in self._chunks(maps):
            if stop.is_set():
                raise TrackerStopped(bytes_read=bytes_read)
            bytes_read += chunk.bytes_read
            for piece in chunk.pieces:
                staged += len(piece.data)
                if stage_bytes is not None and staged > stage_bytes:
                    raise TooMuchToStage(bound=stage_bytes)
                yield piece
        self.last = ScanFigures(bytes_read, _rate(bytes_read, self._clock.monotonic_ns() - began_ns))

    def _chunks(self, maps: Mapping[int, GranuleMap]) -> Iterator[Chunk]:
        assert self._truth is not None, "attach comes first"
        buffers = new_buffers()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="scan") as pool:
            for disk, truth in zip(self._disks, self._truth.disks, strict=True):
                hasher = Hasher(disk.identity.index, disk.disk, maps[disk.identity.index], buffers)
                try:
                    yield from run_ahead(hasher.jobs(), pool)
                except DiskReadFailed:
                    _check_same(disk, truth)  # reading behind the end of a disk that shrank fails like a bad sector
                    raise
                _check_same(disk, truth)


def measure(disks: Sequence[Disk], clock: Clock, *, sample_bytes: int = SAMPLE_BYTES) -> ScanFigures:
    """What scanning `disks` will take, from reading and hashing evenly spread chunks. Raises DiskReadFailed."""
    buffers = new_buffers()
    jobs: list[Callable[[], Chunk]] = []
    total = 0
    plan = [(disk, [span for span in spans(disk) if not span.hole]) for disk in disks]
    every = max(1, sum(len(data) for _, data in plan) * CHUNK // sample_bytes)
    for index, (disk, data) in enumerate(plan):
        total += sum(span.length for span in data)
        hasher = Hasher(index, disk, GranuleMap.unknown(disk.size, bytes(KEY_BYTES)), buffers)
        jobs += [hasher.data_job(span) for span in data[::every]]
    began_ns = clock.monotonic_ns()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="measure") as pool:
        bytes_read = sum(chunk.bytes_read for chunk in run_ahead(iter(jobs), pool))
    return ScanFigures(total, _rate(bytes_read, clock.monotonic_ns() - began_ns))


def check_fits(figures: ScanFigures, limit_s: float) -> None:
    """Raises FreezeTooLong when a scan of all disks, with its margin, does not fit a freeze of `limit_s`."""
    if figures.seconds * MARGIN > limit_s:
        rate_mb_s = round(figures.bytes_per_s / 1e6)
        raise FreezeTooLong(seconds=round(figures.seconds, 1), rate_mb_s=rate_mb_s, limit_s=limit_s)


def _rate(bytes_read: int, elapsed_ns: int) -> float:
    return max(1, bytes_read) * 1e9 / max(1, elapsed_ns)


def _check_same(disk: TrackedDisk, truth: DiskTruth) -> None:
    if node_at(disk.path) != truth.node:
        raise DiskReplaced(disk=disk.identity.name, before=truth.node, now=node_at(disk.path))
    _check_size(disk.identity, size_at(disk.path))


def _check_size(identity: DiskIdentity, now: int) -> None:
    if now != identity.size:
        raise DiskChangedSize(disk=identity.name, before=identity.size, now=now)
