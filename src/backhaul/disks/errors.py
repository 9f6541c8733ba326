"""What can go wrong with a disk; each error names the disk and, where there is one, the offset in bytes.

DiskError
├── DiskMissing          ├── DiskOpenFailed        ├── DiskExists
├── DiskSizeInvalid      │   ├── DiskBusy          ├── DiskReadOnly
├── DiskReadFailed       │   └── DiskUnsupported   ├── DiskSyncFailed
├── DiskWriteFailed      ├── OutOfBounds           ├── DiskShrinkRefused
│   └── DiskFull         │   └── Misaligned        └── DiskGrowFailed
"""

from __future__ import annotations

import errno
import os

from backhaul.replication.errors import BackhaulError


class DiskError(BackhaulError):
    """Disk {disk} failed: {reason}."""

    code = "BH-DISK"
    fix = "See the kernel's log of the machine that holds the disk."


class DiskMissing(DiskError):
    """Disk {disk} does not exist."""

    code = "BH-DISK-MISSING"
    fix = "Attach the disk, or correct its path; nothing was read or written."


class DiskOpenFailed(DiskError):
    """Disk {disk} cannot be opened: {reason}."""

    code = "BH-DISK-OPEN"
    fix = "Check the owner and mode of the disk and who the service runs as."


class DiskBusy(DiskOpenFailed):
    """Disk {disk} is mounted or claimed by somebody else, so it is not opened for writing."""

    code = "BH-DISK-BUSY"
    fix = "Unmount it, or stop what holds it (`lsblk`, `fuser`); writing beside a mounted file system destroys it."


class DiskUnsupported(DiskOpenFailed):
    """Disk {disk} is neither a regular file nor a block device."""

    code = "BH-DISK-KIND"
    fix = "Give the path of a raw image or of a block device."


class DiskExists(DiskError):
    """Disk {disk} exists already and is not made anew."""

    code = "BH-DISK-EXISTS"
    fix = "Choose another path, or remove the old file if nothing needs it."


class DiskSizeInvalid(DiskError):
    """Disk {disk} has {size} bytes; a disk has a multiple of 512, at least one sector and at most 32 TiB."""

    code = "BH-DISK-SIZE"
    fix = "Convert the image to raw format (`qemu-img convert -O raw`) or correct its size."


class DiskReadFailed(DiskError):
    """Disk {disk} could not be read at byte {offset}: {reason}."""

    code = "BH-DISK-READ"
    fix = "See the kernel's log. Nothing was put in place of the data; the point that needed it was not made."


class DiskWriteFailed(DiskError):
    """Disk {disk} could not be written at byte {offset}: {reason}."""

    code = "BH-DISK-WRITE"
    fix = "See the kernel's log. What was not acknowledged is sent again after a restart of the service."


class DiskFull(DiskWriteFailed):
    """Disk {disk} could not be written at byte {offset}: the volume below it is full ({reason})."""

    code = "BH-DISK-FULL"
    fix = "Make room on the volume or enlarge it; replication goes on by itself and loses nothing."


class DiskReadOnly(DiskError):
    """Disk {disk} was opened for reading only."""

    code = "BH-DISK-READ-ONLY"
    fix = BackhaulError.fix


class DiskSyncFailed(DiskError):
    """Disk {disk} could not make its writes durable: {reason}. What was written since the last sync is unknown."""

    code = "BH-DISK-SYNC"
    fix = "The service ends and recovers from its journal when it starts again. Check the disk and the kernel's log."


class OutOfBounds(DiskError):
    """{length} bytes at byte {offset} do not lie on disk {disk}, which has {size} bytes."""

    code = "BH-DISK-BOUNDS"
    fix = BackhaulError.fix


class Misaligned(OutOfBounds):
    """{length} bytes at byte {offset} of disk {disk} are not aligned to {alignment} bytes."""

    code = "BH-DISK-ALIGNMENT"


class DiskShrinkRefused(DiskError):
    """Disk {disk} has {size} bytes and is not shrunk to {wanted}."""

    code = "BH-DISK-SHRINK"
    fix = "A protected disk must not become smaller: enlarge the source again, or protect it anew."


class DiskGrowFailed(DiskError):
    """Disk {disk} could not be enlarged to {wanted} bytes: {reason}."""

    code = "BH-DISK-GROW"
    fix = "Enlarge the volume below the disk first; replication goes on by itself."


def open_failed(disk: str, error: OSError) -> DiskError:
    """The error of a disk that did not open."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM):
        return DiskMissing(disk=disk)
    if error.errno == errno.EBUSY:
        return DiskBusy(disk=disk)
    return DiskOpenFailed(disk=disk, reason=os.strerror(error.errno or 0))


def read_failed(disk: str, offset: int, number: int) -> DiskReadFailed:
    """The error of a read that failed with errno `number` at byte `offset`."""
    return DiskReadFailed(disk=disk, offset=offset, reason=os.strerror(number))


def write_failed(disk: str, offset: int, number: int) -> DiskWriteFailed:
    """The error of a write that failed with errno `number` at byte `offset`: DiskFull where space or quota ended."""
    kind = DiskFull if number in (errno.ENOSPC, errno.EDQUOT) else DiskWriteFailed
    return kind(disk=disk, offset=offset, reason=os.strerror(number))


def sync_failed(disk: str, number: int) -> DiskSyncFailed:
    """The error of a sync that failed with errno `number`."""
    return DiskSyncFailed(disk=disk, reason=os.strerror(number))
