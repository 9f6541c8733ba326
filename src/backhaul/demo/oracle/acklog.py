"""Writing the acknowledgement log: one file per incarnation of a writer, in a folder per machine.

The folder lies outside the machine's disks, or it would be lost and failed over with them. Invariant: a record is
in the kernel's hands (O_APPEND) when the call returns, so that it outlives a SIGKILL of the writer; callers hold
the writer's lock, which makes the order of the records the order of the events. An incarnation is one life of a
writer: it begins with the whole state it found, so a log needs no earlier one to be checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from backhaul.demo.oracle.errors import LogUnusable, LogWriteFailed
from backhaul.demo.oracle.records import RecordKind, encode
from backhaul.demo.oracle.stamps import Content, ContentKind, disk_and_block
from backhaul.replication.ports import Clock

SUFFIX: Final = ".acks"
_TRIES: Final = 1000  # writers that start in one folder at the same moment: far more than there ever are


class Region(NamedTuple):
    """Blocks of a disk that a writer overwrites: `first` and `blocks` in blocks of 4 KiB."""

    disk: int
    first: int
    blocks: int


def merged(regions: Iterable[Region]) -> list[Region]:
    """The same blocks, each in one region only, in the order of the disks."""
    done: list[Region] = []
    for region in sorted(regions):
        if done and done[-1].disk == region.disk and region.first <= done[-1].first + done[-1].blocks:
            last = done.pop()
            region = Region(last.disk, last.first, max(last.blocks, region.first + region.blocks - last.first))
        done.append(region)
    return done


class Origin(NamedTuple):
    """From which state an incarnation starts. `contents` has every block of the regions that is not zeros."""

    machine: bytes
    regions: Sequence[Region]
    contents: Mapping[int, Content]

    @property
    def newest(self) -> tuple[int, int]:
        """Incarnation and sequence of the newest write found, (0, 0) if none."""
        stamps = (found for found in self.contents.values() if found.kind is ContentKind.STAMP)
        return max(((found.incarnation, found.sequence) for found in stamps), default=(0, 0))


class AckLog:
    """The log of one incarnation, open for appending. Not thread-safe: the writer's lock orders the calls."""

    def __init__(self, path: Path, descriptor: int, incarnation: int, first_sequence: int, clock: Clock) -> None:
        self.path = path
        self.incarnation = incarnation
        self.first_sequence = first_sequence
        self._descriptor = descriptor
        self._clock = clock

    @classmethod
    def begin(cls, folder: Path, origin: Origin, clock: Clock, parent: tuple[int, int] | None = None) -> AckLog:
        """A new incarnation, higher than every one in `folder` or on the disks, with `origin` written down.

        `parent` (incarnation, newest sequence) overrides what the stamps in `origin` say. Raises LogWriteFailed,
        LogUnusable.
        """
        came_from, newest = origin.newest if parent is None else parent
        path, descriptor, incarnation = _claim(folder, came_from)
        log = cls(path, descriptor, incarnation, newest + 1, clock)
        halves = (int.from_bytes(origin.machine[:8], "big"), int.from_bytes(origin.machine[8:], "big"))
        records = [
            encode(RecordKind.START, 0, incarnation, newest + 1, clock.wall_ns()),
            encode(RecordKind.MACHINE, 0, *halves, came_from),
        ]
        records += [encode(RecordKind.REGION, region.disk, region.first, region.blocks, 0) for region in origin.regions]
        records += [_base(where, content) for where, content in origin.contents.items()]
        records.append(encode(RecordKind.READY, 0, len(origin.contents), 0, clock.wall_ns()))
        log._append(b"".join(records))
        return log

    def issued(self, sequence: int, disk: int, block: int) -> int:
        """Write down that a write is about to be issued; returns the wall clock (ns) it was given."""
        now = self._clock.wall_ns()
        self._append(encode(RecordKind.ISSUE, disk, sequence, block, now))
        return now

    def acknowledged(self, sequence: int, disk: int, block: int) -> None:
        """Write down that a write was acknowledged; must return before the writer acts on it."""
        self._append(encode(RecordKind.ACK, disk, sequence, block, self._clock.wall_ns()))

    def stopped(self, newest: int) -> None:
        """Write down that the writer ended in order."""
        self._append(encode(RecordKind.STOP, 0, newest, 0, self._clock.wall_ns()))

    def close(self) -> None:
        """Let go of the file; calling it twice is no error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as failure:
            raise LogWriteFailed(path=self.path, reason=failure.strerror) from failure


def log_files(folder: Path) -> list[Path]:
    """The logs in a folder, oldest incarnation first."""
    return sorted(folder.glob(f"incarnation-*{SUFFIX}"))


def _claim(folder: Path, above: int) -> tuple[Path, int, int]:
    """Create the next incarnation's file; O_EXCL decides between writers that start at once."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_TRIES):
            taken = [int(path.stem.partition("-")[2]) for path in log_files(folder)]
            incarnation = 1 + max([above, *taken])
            path = folder / f"incarnation-{incarnation:08d}{SUFFIX}"
            try:
                return path, os.open(path, flags, 0o600), incarnation
            except FileExistsError:
                continue
    except OSError as failure:
        raise LogWriteFailed(path=folder, reason=failure.strerror) from failure
    except ValueError as failure:
        raise LogUnusable(path=folder, reason=f"a file in it has no incarnation number: {failure}") from failure
    raise LogUnusable(path=folder, reason=f"no incarnation could be claimed in {_TRIES} tries")


def _base(where: int, content: Content) -> bytes:
    disk, block = disk_and_block(where)
    if content.kind is ContentKind.STAMP:
        return encode(RecordKind.BASE_STAMP, disk, content.sequence, block, content.incarnation)
    return encode(RecordKind.BASE_OTHER, disk, content.digest, block, 0)
