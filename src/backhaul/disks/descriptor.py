"""What a raw file and a block device have in common: positioned reads and writes on one descriptor.

Invariant: either the whole disk is O_DIRECT or all of it is buffered; the two never meet on one descriptor.
Memory that O_DIRECT refuses goes through the thread's bounce buffer. Nothing uses the descriptor's file position,
so worker threads may share a disk. All calls release the interpreter while the kernel works.
"""

from __future__ import annotations

import errno
import fcntl
import os
from abc import abstractmethod
from pathlib import Path

from backhaul.disks.aligned import BOUNCE_BYTES, ZEROS, bounce_buffer
from backhaul.disks.bounds import check_range, check_writable
from backhaul.disks.contract import Buffer, Disk
from backhaul.disks.errors import DiskReadFailed, open_failed, read_failed, sync_failed, write_failed


def open_descriptor(path: Path, *, writable: bool, flags: int = 0) -> int:
    """Open without O_DIRECT, which `set_direct` turns on. Raises DiskMissing, DiskBusy, DiskOpenFailed."""
    try:
        return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | flags)
    except OSError as error:
        raise open_failed(str(path), error) from error


def set_direct(descriptor: int, direct: bool, unit: int) -> bool:
    """Turn O_DIRECT on or off; whether it is on now. A first read of `unit` bytes proves that it works.

    Buffered disks are told not to read ahead: what follows a sequential read in 4 KiB writes is then as fast as
    it should be (large folios otherwise make each of them ten times as dear).
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if direct:
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            os.preadv(descriptor, [bounce_buffer()[:unit]], 0)
            return True
        except OSError as error:
            # Any other error of the first read is the disk's, not the mode's, and belongs to whoever reads there.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                return True
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return False


class DescriptorDisk(Disk):
    """Base of the disks that the kernel offers as one descriptor; owns it."""

    def __init__(self, descriptor: int, *, name: str, size: int, alignment: int, writable: bool, direct: bool) -> None:
        self._descriptor = descriptor
        self._name = name
        self._size = size
        self._alignment = alignment
        self._writable = writable
        self._direct = direct
        self._sync_error = 0

    @property
    def name(self) -> str:
        """The path it was opened by."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def alignment(self) -> int:
        """Bytes; see the contract."""
        return self._alignment

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writable

    @property
    def direct(self) -> bool:
        """Whether reads and writes pass by the page cache (O_DIRECT)."""
        return self._direct

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` from `offset`. Raises OutOfBounds; DiskReadFailed with the byte that could not be read: what
        the buffer holds from there on means nothing.
        """
        view = memoryview(buffer).cast("B")
        check_range(self, offset, len(view))
        bounced = False
        while view:
            try:
                got = self._read_bounced(offset, view) if bounced else os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                if error.errno == errno.EINVAL and not bounced:
                    bounced = True  # O_DIRECT refused the memory's alignment
                    continue
                raise read_failed(self._name, offset, error.errno or 0) from error
            if got == 0:
                raise DiskReadFailed(disk=self._name, offset=offset, reason=f"it ends there, not at {self._size}")
            offset += got
            view = view[got:]

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`. Raises DiskWriteFailed at the byte that failed, DiskFull, DiskReadOnly, OutOfBounds."""
        view = memoryview(data).cast("B")
        self._check_write(offset, len(view))
        bounced = False
        while view:
            try:
                done = self._write_bounced(offset, view) if bounced else os.pwritev(self._descriptor, [view], offset)
            except OSError as error:
                if error.errno == errno.EINVAL and not bounced:
                    bounced = True
                    continue
                raise write_failed(self._name, offset, error.errno or 0) from error
            offset += done
            view = view[done:]

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, its space freed where that is possible. Raises as `write` does."""
        self._check_write(offset, length)
        if not length:
            return
        try:
            freed = self._free(offset, length)
        except OSError as error:
            raise write_failed(self._name, offset, error.errno or 0) from error
        if not freed:
            self._write_zeros(offset, length)

    def sync(self) -> None:
        """fdatasync. Raises DiskSyncFailed, and from then on at every write and sync: the kernel says it only once."""
        check_writable(self)
        self._check_poison()
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._sync_error = error.errno or errno.EIO
            raise sync_failed(self._name, self._sync_error) from error

    def close(self) -> None:
        """Close the descriptor; again is no error."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @abstractmethod
    def _free(self, offset: int, length: int) -> bool:
        """Zero the range without writing it; False where the disk cannot. Raises OSError."""

    def _write_zeros(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            piece = min(BOUNCE_BYTES, end - offset)
            self.write(offset, ZEROS[:piece])
            offset += piece

    def _read_bounced(self, offset: int, view: memoryview) -> int:
        buffer = bounce_buffer()[: len(view)]
        got = os.preadv(self._descriptor, [buffer], offset)
        view[:got] = buffer[:got]
        return got

    def _write_bounced(self, offset: int, view: memoryview) -> int:
        buffer = bounce_buffer()[: len(view)]
        buffer[:] = view[: len(buffer)]
        return os.pwritev(self._descriptor, [buffer], offset)

    def _check_write(self, offset: int, length: int) -> None:
        check_writable(self)
        check_range(self, offset, length)
        self._check_poison()

    def _check_poison(self) -> None:
        if self._sync_error:
            raise sync_failed(self._name, self._sync_error)
