"""The one contract of trackers.

Invariant: what a tracker cannot vouch for is compared by hashes, never assumed unchanged; what it yields is what it
read, once. Its state lies in memory: after a reboot, a restart of the agent or another attach the truth differs, and
what was collected under the old one proves nothing. Calls block and are made from worker threads, one at a time.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from backhaul.disks.contract import Disk
from backhaul.replication.maps import GranuleMap
from backhaul.replication.units import GRANULE
from backhaul.replication.values import DiskIdentity, Extent, ExtentKind

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class DiskTruth(msgspec.Struct, frozen=True):
    """A disk as it was when it was attached. `node`: what the kernel calls the device or file behind the path."""

    identity: DiskIdentity
    node: str


class Truth(msgspec.Struct, frozen=True):
    """Under which circumstances a tracker's marks hold; any difference voids them.

    boot_id    of the kernel, new at each boot
    attach_id  32 hexadecimal digits, random, new at each attach
    """

    tracker: str
    boot_id: str
    attach_id: str
    disks: tuple[DiskTruth, ...]


@dataclass(frozen=True)
class TrackedDisk:
    """A disk of the machine, opened for reading; `path` is where its size and identity are looked up again."""

    identity: DiskIdentity
    path: Path
    disk: Disk


@dataclass(frozen=True)
class Piece:
    """Granules that changed, with the bytes that were read and hashed; none for ZERO.

    The map learns of them only by `captured`, so that what was read in vain is found again.
    """

    extent: Extent
    data: bytes
    hashes: tuple[bytes, ...] = field(repr=False)
    granules: GranuleMap = field(repr=False)
    seen: int

    def captured(self) -> None:
        """The piece is on its way: the map holds its hashes from now on, except where it was marked since the read."""
        first = self.extent.offset // GRANULE
        if self.extent.kind is ExtentKind.ZERO:
            self.granules.put_zeros(first, -(-self.extent.length // GRANULE), self.seen)
            return
        for index, digest in enumerate(self.hashes, first):
            self.granules.put(index, digest, self.seen)


class Tracker(Protocol):
    """A way to know which blocks changed."""

    @property
    def kind(self) -> str:
        """`scan`, `ebpf`, `qemu`: the name shown, and in the epochs' headers."""
        ...

    @property
    def truth(self) -> Truth | None:
        """Of the present attach; None before the first."""
        ...

    def attach(self, disks: Sequence[TrackedDisk]) -> Truth:
        """Begin to track these disks, and no others; a new truth. Raises DiskChangedSize if one is not as it says."""
        ...

    def collect(
        self, maps: Mapping[int, GranuleMap], *, stop: threading.Event, stage_bytes: int | None = None
    ) -> Iterator[Piece]:
        """What differs from `maps` (by disk index), read now, ascending.

        `stage_bytes`: bound of the data that is yielded, for who keeps it in memory while the image is still.
        Raises DiskReadFailed, DiskChangedSize, DiskReplaced, TooMuchToStage, TrackerStopped.
        """
        ...


def node_at(path: Path) -> str:
    """What lies behind `path` now: changes when another disk takes its place. Raises OSError."""
    now = path.stat()
    if stat.S_ISBLK(now.st_mode):
        return f"device {os.major(now.st_rdev)}:{os.minor(now.st_rdev)}"
    return f"file {os.major(now.st_dev)}:{os.minor(now.st_dev)} {now.st_ino}"


def size_at(path: Path) -> int:
    """Bytes of the file or device at `path` now. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
