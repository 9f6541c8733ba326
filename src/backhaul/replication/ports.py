"""What the pure packages need of the world: files, clocks, randomness.

The real world is `RealFiles`, `RealClock`, `RealRandomness`; a faulty one (tests) implements the same protocols
and fails the n-th call. Services are given the ports by the composition root; nothing below calls `time.time`,
`os.urandom` or `open` for durable state by itself. Thread-safe: implementations hold no state but descriptors.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Time. `wall_ns` may step; `monotonic_ns` never goes back."""

    def wall_ns(self) -> int: ...
    def monotonic_ns(self) -> int: ...


class Randomness(Protocol):
    """Unpredictable bytes, fit for keys."""

    def token(self, size: int) -> bytes: ...


class OpenFile(Protocol):
    """A file opened through a `Files` port. All calls may raise `OSError`.

    A failed `sync` poisons: what was written since the last good sync is unknown, so the caller must end its
    process and recover; it must never try the sync again (fsync reports an error once).
    """

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes; fewer only at the end of the file."""
        ...

    def write_at(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """All of the buffers, one after the other; a short write is continued or raises."""
        ...

    def sync(self) -> None:
        """Everything written so far is durable when this returns (fdatasync)."""
        ...

    def truncate(self, size: int) -> None: ...
    def size(self) -> int: ...
    def close(self) -> None: ...


class Files(Protocol):
    """Durable files of a service: journal segments, spool segments, state."""

    def open(self, path: Path, *, create: bool = False, writable: bool = True) -> OpenFile: ...

    def read(self, path: Path) -> bytes: ...

    def replace(self, path: Path, content: bytes) -> None:
        """Write `content` beside `path`, sync it, rename it over `path`, sync the folder: all or nothing."""
        ...

    def remove(self, path: Path) -> None:
        """Remove the file durably; one that is not there is no error."""
        ...

    def sync_folder(self, path: Path) -> None: ...
    def names(self, folder: Path) -> list[str]: ...
    def make_folder(self, path: Path) -> None: ...

    def free_bytes(self, path: Path) -> tuple[int, int]:
        """Free and total bytes of the file system that holds `path`."""
        ...


class RealClock:
    """The machine's clocks."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class RealRandomness:
    """The kernel's randomness."""

    def token(self, size: int) -> bytes:
        return secrets.token_bytes(size)


_IOV_MAX = 1024  # Linux' limit of buffers in one writev


class RealFile:
    """A file of the machine's file system."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_at(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = os.pread(self._descriptor, size, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_at(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while pending:
            written = os.pwritev(self._descriptor, pending[:_IOV_MAX], offset)
            offset += written
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if written:
                pending[0] = pending[0][written:]

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RealFiles:
    """The machine's file system. New files are readable by their owner only (0600), folders 0700."""

    def open(self, path: Path, *, create: bool = False, writable: bool = True) -> OpenFile:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return RealFile(os.open(path, flags, 0o600))

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def replace(self, path: Path, content: bytes) -> None:
        beside = path.with_name(path.name + ".new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        file = RealFile(descriptor)
        try:
            file.write_at(0, [content])
            os.fsync(descriptor)
        finally:
            file.close()
        beside.rename(path)
        self.sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.sync_folder(path.parent)

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def names(self, folder: Path) -> list[str]:
        return sorted(os.listdir(folder))

    def make_folder(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def free_bytes(self, path: Path) -> tuple[int, int]:
        figures = os.statvfs(path)
        return figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize
