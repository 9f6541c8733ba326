"""Opening a disk by what its path is. Called by agent and master target, from worker threads."""

from __future__ import annotations

import stat
from pathlib import Path

from backhaul.disks.block_device import BlockDevice
from backhaul.disks.contract import Disk
from backhaul.disks.errors import DiskUnsupported, open_failed
from backhaul.disks.raw_file import RawFile


def open_disk(path: Path | str, *, writable: bool, direct: bool = True) -> Disk:
    """The disk at `path`: a raw image for a regular file, a block device for a block node; links are followed.

    `direct`: O_DIRECT where it is possible. Raises DiskMissing, DiskBusy, DiskUnsupported, DiskOpenFailed,
    DiskSizeInvalid.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise open_failed(str(path), error) from error
    if stat.S_ISREG(mode):
        return RawFile(path, writable=writable, direct=direct)
    if stat.S_ISBLK(mode):
        return BlockDevice(path, writable=writable, direct=direct)
    raise DiskUnsupported(disk=str(path))
