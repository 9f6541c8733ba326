"""A `Files` in memory whose n-th call fails, and which can crash: what was not synced is then lost or torn.

A crash keeps of each file what was synced, and of the writes since then a prefix or single ones, as the seed says:
disks do not keep the order of what was not synced.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


class Crash(BaseException):
    """The machine lost power at this call. Not an Exception: nothing may handle it."""


@dataclass
class _Content:
    durable: bytearray = field(default_factory=bytearray)
    now: bytearray = field(default_factory=bytearray)
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    named: bool = False


class FaultyFiles:
    """`fail_at`: the n-th call (from 1) raises OSError(`error`), or Crash when `crash` is set."""

    def __init__(self, *, error: int = errno.EIO, total: int = 1 << 40) -> None:
        self.contents: dict[Path, _Content] = {}
        self.error = error
        self.calls: list[str] = []
        self.fail_at = 0
        self.fail_from = 0
        self.fail_kinds: frozenset[str] = frozenset()
        self.crash = False
        self.failed: list[str] = []
        self.free = total
        self.total = total

    def call(self, kind: str) -> None:
        """Count one call; fail if it is its turn."""
        self.calls.append(kind)
        due = len(self.calls) == self.fail_at or (self.fail_from and len(self.calls) >= self.fail_from)
        if due or kind in self.fail_kinds:
            self.failed.append(kind)
            if self.crash:
                raise Crash(kind)
            raise OSError(self.error, errno.errorcode[self.error])

    def power_loss(self, seed: int) -> None:
        """Forget what was not synced; some of it may have reached the disk, in any order, or torn."""
        chance = random.Random(seed)
        for path, content in list(self.contents.items()):
            if not content.named and chance.random() < 0.5:
                del self.contents[path]
                continue
            kept = bytearray(content.durable)
            for offset, data in content.writes:
                length = chance.choice([0, len(data), chance.randrange(len(data) + 1)])
                start = chance.choice([0, min(4096, length)])
                if length:
                    kept.extend(bytes(max(0, offset + length - len(kept))))
                    kept[offset + start : offset + length] = data[start:length]
            self.contents[path] = _Content(bytearray(kept), bytearray(kept), [], True)
        self.fail_at = self.fail_from = 0
        self.fail_kinds = frozenset()
        self.crash = False

    # The port

    def open(self, path: Path, *, create: bool = False, writable: bool = True) -> FaultyFile:
        self.call("open")
        if path not in self.contents:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            self.contents[path] = _Content()
        return FaultyFile(self, self.contents[path])

    def read(self, path: Path) -> bytes:
        self.call("read")
        return bytes(self.contents[path].now)

    def replace(self, path: Path, content: bytes) -> None:
        self.call("replace")
        self.contents[path] = _Content(bytearray(content), bytearray(content), [], True)

    def remove(self, path: Path) -> None:
        self.call("remove")
        self.contents.pop(path, None)

    def sync_folder(self, path: Path) -> None:
        self.call("sync_folder")
        for name, content in self.contents.items():
            if name.parent == path:
                content.named = True

    def names(self, folder: Path) -> list[str]:
        self.call("names")
        return sorted(path.name for path in self.contents if path.parent == folder)

    def make_folder(self, path: Path) -> None:
        self.call("make_folder")

    def free_bytes(self, path: Path) -> tuple[int, int]:
        self.call("free_bytes")
        return self.free, self.total


class FaultyFile:
    """A file of `FaultyFiles`."""

    def __init__(self, files: FaultyFiles, content: _Content) -> None:
        self._files = files
        self._content = content

    def read_at(self, offset: int, size: int) -> bytes:
        self._files.call("read_at")
        return bytes(self._content.now[offset : offset + size])

    def write_at(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        data = b"".join(buffers)
        try:
            self._files.call("write_at")
        except OSError:
            self._put(offset, data[: len(data) // 2])  # a write that fails has often written something
            raise
        except Crash:
            self._put(offset, data)
            raise
        self._put(offset, data)

    def _put(self, offset: int, data: bytes) -> None:
        now = self._content.now
        now.extend(bytes(max(0, offset + len(data) - len(now))))
        now[offset : offset + len(data)] = data
        self._content.writes.append((offset, data))

    def sync(self) -> None:
        self._files.call("sync")
        self._content.durable = bytearray(self._content.now)
        self._content.writes.clear()

    def truncate(self, size: int) -> None:
        self._files.call("truncate")
        del self._content.now[size:]
        self._content.durable = bytearray(self._content.now)
        self._content.writes.clear()

    def size(self) -> int:
        self._files.call("size")
        return len(self._content.now)

    def close(self) -> None:
        self._files.call("close")
