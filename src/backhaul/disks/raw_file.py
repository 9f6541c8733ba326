"""A raw image: a sparse file whose bytes are the disk's.

O_DIRECT with an alignment of 4 KiB where the file system can and the size is a multiple of it, else buffered with
an alignment of one sector. Called from worker threads, as every disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from backhaul.disks.bounds import check_growth, check_range, check_size
from backhaul.disks.descriptor import DescriptorDisk, open_descriptor, set_direct
from backhaul.disks.errors import DiskExists, DiskGrowFailed, open_failed, read_failed
from backhaul.disks.zeroing import punch_hole
from backhaul.replication.units import BLOCK, SECTOR


class RawFile(DescriptorDisk):
    """A raw image opened as a disk."""

    def __init__(self, path: Path, *, writable: bool, direct: bool = True) -> None:
        """Raises DiskMissing, DiskOpenFailed, DiskSizeInvalid. `direct`: whether O_DIRECT is wanted where possible."""
        descriptor = open_descriptor(path, writable=writable)
        try:
            size = os.fstat(descriptor).st_size
            check_size(str(path), size)
            direct_now = set_direct(descriptor, direct and size % BLOCK == 0, BLOCK)
        except BaseException:
            os.close(descriptor)
            raise
        self._direct_wanted = direct
        alignment = BLOCK if direct_now else SECTOR
        super().__init__(
            descriptor, name=str(path), size=size, alignment=alignment, writable=writable, direct=direct_now
        )

    def data_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        """What the file system has allocated and written (SEEK_DATA), widened to the alignment.

        Raises OutOfBounds at the call; DiskReadFailed while iterating.
        """
        length = self._size - offset if length is None else length
        check_range(self, offset, length)
        return self._walk(offset, offset + length)

    def grow(self, size: int) -> None:
        """Enlarge the file by a hole. Raises DiskShrinkRefused, DiskReadOnly, DiskSizeInvalid, DiskGrowFailed.

        No other call may run meanwhile: a size that is no multiple of 4 KiB ends O_DIRECT.
        """
        check_growth(self, size)
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise DiskGrowFailed(disk=self._name, wanted=size, reason=os.strerror(error.errno or 0)) from error
        self._direct = set_direct(self._descriptor, self._direct_wanted and size % BLOCK == 0, BLOCK)
        self._alignment = BLOCK if self._direct else SECTOR
        self._size = size

    def _free(self, offset: int, length: int) -> bool:
        return punch_hole(self._descriptor, offset, length)

    def _walk(self, position: int, end: int) -> Iterator[tuple[int, int]]:
        while position < end:
            start = self._seek(position, os.SEEK_DATA, end)
            if start >= end:
                return
            start = max(position, start - start % self._alignment)
            stop = self._seek(start, os.SEEK_HOLE, end)
            # The file may change between the two calls; whatever has become of it, the walk goes forward.
            stop = min(end, max(stop + -stop % self._alignment, start + self._alignment))
            yield start, stop - start
            position = stop

    def _seek(self, position: int, whence: int, end: int) -> int:
        """Where the next data or hole begins, at most `end`."""
        try:
            return min(end, os.lseek(self._descriptor, position, whence))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # the file system cannot tell: all is data
                return position if whence == os.SEEK_DATA else end
            raise read_failed(self._name, position, error.errno or 0) from error


def create_raw_file(path: Path, size: int) -> None:
    """Make a raw image of `size` bytes that reads as zeros and takes no space; durable, mode 0600.

    Raises DiskSizeInvalid, DiskExists, DiskMissing (no such folder), DiskOpenFailed.
    """
    check_size(str(path), size)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise DiskExists(disk=str(path)) from error
    except OSError as error:
        raise open_failed(str(path), error) from error
