"""Disk images as the oracle reads them: files, block devices, views, or bytes in memory.

Reading never writes. Files and devices are read with O_DIRECT where that works, since buffered reads of a device
can be older than what was written through another node of it. Blocking; call from a worker thread.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from backhaul.demo.oracle.errors import ImageUnreadable
from backhaul.replication.units import CHUNK


@runtime_checkable
class ReadAt(Protocol):
    """Anything with `read_at`, as an `OpenFile` has: fewer bytes than asked for only at the end."""

    def read_at(self, offset: int, size: int) -> bytes: ...


@runtime_checkable
class SizedReader(Protocol):
    """The reading half of `backhaul.disks.contract.Disk`: a disk or a view of a recovery point."""

    @property
    def size(self) -> int: ...

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None: ...


Image = ReadAt | SizedReader | Path | bytes

_ALIGNMENT: Final = 4096


class FileImage:
    """A file or block device, read with O_DIRECT where its file system allows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._buffer = mmap.mmap(-1, CHUNK)
        try:
            self._direct = True
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            self._direct = False
            self._descriptor = self._open_buffered()

    def _open_buffered(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as failure:
            self._buffer.close()
            raise ImageUnreadable(name=self._path, offset=0, reason=failure.strerror) from failure

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` (up to CHUNK) bytes; `offset` is a multiple of 4 KiB. Raises ImageUnreadable."""
        assert offset % _ALIGNMENT == 0
        assert size <= CHUNK
        try:
            return self._read_direct(offset, size) if self._direct else self._read_buffered(offset, size)
        except OSError as failure:
            raise ImageUnreadable(name=self._path, offset=offset, reason=failure.strerror) from failure

    def _read_direct(self, offset: int, size: int) -> bytes:
        done = 0
        with memoryview(self._buffer) as whole:
            while done < size:
                with whole[done:] as rest:
                    got = os.preadv(self._descriptor, [rest], offset + done)
                done += got
                if got == 0 or done % _ALIGNMENT:  # the end of a file that is no multiple of a block
                    break
            return bytes(whole[: min(done, size)])

    def _read_buffered(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size and (part := os.pread(self._descriptor, size, offset)):
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
        self._buffer.close()


class _Bytes:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read_at(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


class _Sized:
    def __init__(self, disk: SizedReader) -> None:
        self._disk = disk

    def read_at(self, offset: int, size: int) -> bytes:
        buffer = bytearray(max(0, min(size, self._disk.size - offset)))
        if buffer:
            self._disk.read_into(offset, buffer)
        return bytes(buffer)


@contextmanager
def reading(image: Image) -> Iterator[ReadAt]:
    """The image, opened if it is a path (and closed again). Raises ImageUnreadable."""
    if isinstance(image, Path):
        file = FileImage(image)
        try:
            yield file
        finally:
            file.close()
    elif isinstance(image, bytes):
        yield _Bytes(image)
    elif isinstance(image, ReadAt):
        yield image
    else:
        yield _Sized(image)
