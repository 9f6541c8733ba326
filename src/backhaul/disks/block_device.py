"""A block device: a physical disk, a partition, a logical volume, a loop device.

O_DIRECT, so that what is read is what the device holds (design section 4), with the alignment of its logical
sector, of which its size is always a multiple. Opened for writing it is claimed (O_EXCL): a device that is mounted
or claimed otherwise is refused. Called from worker threads, as every disk.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from backhaul.disks.bounds import check_growth, check_range, check_size
from backhaul.disks.descriptor import DescriptorDisk, open_descriptor, set_direct
from backhaul.disks.errors import DiskGrowFailed, DiskUnsupported, read_failed
from backhaul.disks.zeroing import punch_hole, zero_out
from backhaul.replication.units import SECTOR

_BLKGETSIZE64: Final = 0x80081272  # linux/fs.h: _IOR(0x12, 114, size_t), 64-bit machines
_BLKSSZGET: Final = 0x1268  # linux/fs.h: _IO(0x12, 104)


class BlockDevice(DescriptorDisk):
    """A block device opened as a disk."""

    def __init__(self, path: Path, *, writable: bool, direct: bool = True) -> None:
        """Raises DiskMissing, DiskBusy, DiskUnsupported, DiskOpenFailed, DiskSizeInvalid."""
        descriptor = open_descriptor(path, writable=writable, flags=os.O_EXCL if writable else 0)
        try:
            if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
                raise DiskUnsupported(disk=str(path))
            size = _size_of(descriptor, str(path))
            check_size(str(path), size)
            alignment = max(SECTOR, _ioctl_int(descriptor, _BLKSSZGET, "=i", str(path)))
            direct_now = set_direct(descriptor, direct, alignment)
        except BaseException:
            os.close(descriptor)
            raise
        super().__init__(
            descriptor, name=str(path), size=size, alignment=alignment, writable=writable, direct=direct_now
        )

    def data_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        """The whole range: a device does not tell what it holds. Raises OutOfBounds at the call."""
        length = self._size - offset if length is None else length
        check_range(self, offset, length)
        return iter([(offset, length)] if length else [])

    def grow(self, size: int) -> None:
        """Take over what the device has grown by, zeroed, up to `size` bytes; the device itself is its owner's to grow.

        Raises DiskShrinkRefused, DiskReadOnly, DiskSizeInvalid, DiskWriteFailed; DiskGrowFailed when it is smaller.
        """
        check_growth(self, size)
        available = _size_of(self._descriptor, self._name)
        if available < size:
            raise DiskGrowFailed(disk=self._name, wanted=size, reason=f"the device has {available} bytes")
        before, self._size = self._size, size
        try:
            self.zero(before, size - before)
        except BaseException:
            self._size = before
            raise

    def _free(self, offset: int, length: int) -> bool:
        return punch_hole(self._descriptor, offset, length) or zero_out(self._descriptor, offset, length)


def _size_of(descriptor: int, name: str) -> int:
    return _ioctl_int(descriptor, _BLKGETSIZE64, "=Q", name)


def _ioctl_int(descriptor: int, request: int, layout: str, name: str) -> int:
    try:
        answer = fcntl.ioctl(descriptor, request, bytes(struct.calcsize(layout)))
    except OSError as error:
        raise read_failed(name, 0, error.errno or 0) from error
    return int(struct.unpack(layout, answer)[0])
