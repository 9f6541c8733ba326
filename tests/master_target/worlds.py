"""A world that loses power: files and disks in memory that know what was synced and what was not.

Every call that writes or syncs is counted. At the n-th one the world crashes (the call did not happen) or the call
fails. After a crash each write that was not synced is kept, dropped or torn (sector by sector), independently, as a
seeded generator decides. Single-threaded.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from backhaul.disks.contract import Buffer
from backhaul.disks.errors import DiskReadFailed, DiskSyncFailed, OutOfBounds, write_failed
from backhaul.replication.units import BLOCK, SECTOR


class PowerLoss(BaseException):
    """The machine is gone; nothing may catch it."""


class World:
    """Counts calls, and holds what is durable."""

    def __init__(self) -> None:
        self.calls = 0
        self.crash_at = 0
        self.fail_at = 0
        self.fail_errno = errno.EIO
        self.fail_only = ""
        self.failed: list[str] = []
        self.log: list[str] = []
        self.contents: dict[Path, Content] = {}
        self.entries: dict[Path, Content] = {}
        self.disks: list[MemoryDisk] = []
        self.free = 1 << 40
        self.dead = False

    def call(self, what: str) -> None:
        """One more call; it crashes or fails when its turn has come."""
        if self.dead:
            raise PowerLoss(what)
        self.calls += 1
        self.log.append(what)
        if self.calls == self.crash_at:
            self.dead = True
            raise PowerLoss(what)
        if self.calls == self.fail_at and what.startswith(self.fail_only):
            self.failed.append(what)
            raise OSError(self.fail_errno, what)

    def restart(self, chance: random.Random, keep: float) -> None:
        """After the crash: what was not synced is kept with probability `keep`, else torn or dropped."""
        self.dead = False
        self.crash_at = self.fail_at = 0
        for path in [path for path in self.contents if path not in self.entries]:
            if chance.random() < keep:
                self.entries[path] = self.contents[path]  # the new name reached the disk by itself
        self.contents = dict(self.entries)
        for content in [*self.contents.values(), *(disk.content for disk in self.disks)]:
            content.crash(chance, keep)


class Content:
    """Bytes of a file or disk: what is durable, and the writes since."""

    def __init__(self) -> None:
        self.durable: dict[int, bytes] = {}
        self.durable_size = 0
        self.now: dict[int, bytes] = {}
        self.size = 0
        self.pending: list[tuple[int, bytes | None]] = []

    def write(self, offset: int, data: bytes) -> None:
        self.pending.append((offset, data))
        _put(self.now, offset, data)
        self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        self.pending.append((size, None))
        _cut(self.now, size)
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        return _get(self.now, offset, max(min(size, self.size - offset), 0))

    def sync(self) -> None:
        self.durable, self.durable_size, self.pending = dict(self.now), self.size, []

    def crash(self, chance: random.Random, keep: float) -> None:
        """Become what a power loss leaves."""
        state, size = dict(self.durable), self.durable_size
        for offset, data in self.pending:
            if data is None:
                if chance.random() < keep:
                    _cut(state, offset)
                    size = offset
                continue
            fate = chance.random()
            for at in range(0, len(data), SECTOR):
                if fate < keep or (fate < keep + (1 - keep) / 2 and chance.random() < 0.5):
                    _put(state, offset + at, data[at : at + SECTOR])
                    size = max(size, offset + min(at + SECTOR, len(data)))
        self.now, self.size = state, size
        self.sync()


def _get(blocks: dict[int, bytes], offset: int, size: int) -> bytes:
    parts = []
    while size:
        number, skip = divmod(offset, BLOCK)
        step = min(BLOCK - skip, size)
        parts.append(blocks.get(number, bytes(BLOCK))[skip : skip + step])
        offset, size = offset + step, size - step
    return b"".join(parts)


def _put(blocks: dict[int, bytes], offset: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        number, skip = divmod(offset + done, BLOCK)
        part = data[done : done + BLOCK - skip]
        old = blocks.get(number, bytes(BLOCK))
        blocks[number] = old[:skip] + part + old[skip + len(part) :]
        done += len(part)


def _cut(blocks: dict[int, bytes], size: int) -> None:
    for number in [number for number in blocks if number * BLOCK >= size]:
        del blocks[number]
    if size % BLOCK and size // BLOCK in blocks:
        kept = blocks[size // BLOCK][: size % BLOCK]
        blocks[size // BLOCK] = kept + bytes(BLOCK - len(kept))


class MemoryFile:
    """An `OpenFile` of the world."""

    def __init__(self, world: World, path: Path, content: Content) -> None:
        self._world, self._path, self._content = world, path, content
        self.closed = False

    def read_at(self, offset: int, size: int) -> bytes:
        assert not self.closed, f"{self._path.name} is read after it was closed"
        return self._content.read(offset, size)

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(bytes(buffer) for buffer in buffers)
        try:
            self._world.call(f"write {self._path.name}")
            if len(data) > self._world.free:
                raise OSError(errno.ENOSPC, "full")
        except (OSError, PowerLoss):
            self._content.write(offset, data[: len(data) // 2])  # half of it was on its way
            raise
        self._content.write(offset, data)

    def sync(self) -> None:
        self._world.call(f"sync {self._path.name}")
        self._content.sync()

    def truncate(self, size: int) -> None:
        self._world.call(f"truncate {self._path.name}")
        self._content.truncate(size)

    def size(self) -> int:
        return self._content.size

    def close(self) -> None:
        self.closed = True


class MemoryFiles:
    """The `Files` port. `replace` and `remove` are durable, as the port promises."""

    def __init__(self, world: World) -> None:
        self.world = world

    def open(self, path: Path, *, create: bool = False, writable: bool = True) -> MemoryFile:
        world = self.world
        if path not in world.contents:
            if not create:
                raise FileNotFoundError(errno.ENOENT, str(path))
            world.call(f"create {path.name}")
            world.contents[path] = Content()
        return MemoryFile(world, path, world.contents[path])

    def read(self, path: Path) -> bytes:
        if path not in self.world.contents:
            raise FileNotFoundError(errno.ENOENT, str(path))
        content = self.world.contents[path]
        return content.read(0, content.size)

    def replace(self, path: Path, content: bytes) -> None:
        self.world.call(f"replace {path.name}")
        new = Content()
        new.write(0, content)
        new.sync()
        self.world.contents[path] = self.world.entries[path] = new
        self.world.call(f"replaced {path.name}")

    def remove(self, path: Path) -> None:
        self.world.call(f"remove {path.name}")
        self.world.contents.pop(path, None)
        self.world.entries.pop(path, None)

    def sync_folder(self, path: Path) -> None:
        self.world.call(f"sync-folder {path.name}")
        for name, content in self.world.contents.items():
            if name.parent == path:
                self.world.entries[name] = content

    def names(self, folder: Path) -> list[str]:
        return sorted(path.name for path in self.world.contents if path.parent == folder)

    def make_folder(self, path: Path) -> None:
        self.world.call(f"make-folder {path.name}")

    def free_bytes(self, path: Path) -> tuple[int, int]:
        return self.world.free, 1 << 40


class MemoryDisk:
    """A sparse disk of the world."""

    alignment = SECTOR
    writable = True

    def __init__(self, world: World, size: int, name: str = "") -> None:
        self._world = world
        self.name = name or f"disk{len(world.disks)}"
        self.size = size
        self.content = Content()
        self.content.size = self.content.durable_size = size
        self.reads = 0
        self.broken_blocks: set[int] = set()
        world.disks.append(self)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise OutOfBounds(disk=self.name, offset=offset, length=len(buffer), size=self.size)
        if any(number in self.broken_blocks for number in range(offset // BLOCK, -(-(offset + len(buffer)) // BLOCK))):
            raise DiskReadFailed(disk=self.name, offset=offset, reason="broken")
        self.reads += len(buffer)
        memoryview(buffer)[:] = _get(self.content.now, offset, len(buffer))

    def write(self, offset: int, data: Buffer) -> None:
        if offset + len(data) > self.size:
            raise OutOfBounds(disk=self.name, offset=offset, length=len(data), size=self.size)
        try:
            self._world.call(f"write {self.name}")
        except OSError as error:
            self.content.write(offset, bytes(data)[: len(data) // 2])
            raise write_failed(self.name, offset, error.errno or 0) from error
        self.content.write(offset, bytes(data))

    def zero(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise OutOfBounds(disk=self.name, offset=offset, length=length, size=self.size)
        try:
            self._world.call(f"zero {self.name}")
        except OSError as error:
            raise write_failed(self.name, offset, error.errno or 0) from error
        for first, size in list(self.data_ranges(offset, length)):
            self.content.write(first, bytes(size))

    def data_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        end = self.size if length is None else offset + length
        for number in sorted(self.content.now):
            low, high = max(number * BLOCK, offset), min(number * BLOCK + BLOCK, end)
            if low < high:
                yield low, high - low

    def sync(self) -> None:
        try:
            self._world.call(f"sync {self.name}")
        except OSError as error:
            raise DiskSyncFailed(disk=self.name, reason=str(error)) from error
        self.content.sync()

    def grow(self, size: int) -> None:
        self.size = self.content.size = self.content.durable_size = size

    def close(self) -> None:
        pass

    def image(self) -> bytes:
        """All its bytes."""
        return _get(self.content.now, 0, self.size)


class SteppingClock:
    """A second per look."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000_000

    def wall_ns(self) -> int:
        self.now += 1_000_000_000
        return self.now

    def monotonic_ns(self) -> int:
        return self.wall_ns()
