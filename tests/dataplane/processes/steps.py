"""Counted steps: every call of a service's files and disks, where a test kills the process or lets the call fail.

    steps.at("journal.sync", 17, die)          # just before the 17th sync of a journal file
    steps.fail("disk.write", errno.ENOSPC)     # every one, until `mend`
    steps.fired                                # proves that it happened

A step is `area.call`. The area of a file is the folder `journal`, `maps`, `spool` or `disks` that it lies in, else its
own name (`fence`, `item`, `manifest`); that of a disk is `disk`. Thread-safe. Armed in a process by its environment:
`BACKHAUL_KILL_AT=journal.sync:17`, `BACKHAUL_FAIL_AT=journal.sync:17:EIO`.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backhaul.disks.contract import Buffer, Disk
from backhaul.disks.errors import read_failed, sync_failed, write_failed
from backhaul.replication.ports import Files, OpenFile, RealFiles

KILL_AT: Final = "BACKHAUL_KILL_AT"
FAIL_AT: Final = "BACKHAUL_FAIL_AT"
_AREAS: Final = ("journal", "maps", "spool", "disks")


@dataclass(frozen=True)
class Failing:
    """Calls that fail: with `errno`, and only those that touch a byte of `first` to `end` of a disk."""

    errno: int
    first: int = 0
    end: int = 1 << 62


class Steps:
    """See the module. `log` counts all steps, `fired` lists what was done on purpose."""

    def __init__(self) -> None:
        self.log: Counter[str] = Counter()
        self.fired: list[str] = []
        self._at: dict[tuple[str, int], Callable[[], None]] = {}
        self._failing: dict[str, Failing] = {}
        self._lock = threading.Lock()

    def at(self, step: str, number: int, act: Callable[[], None]) -> None:
        """Call `act` just before the `number`-th such step, counted from now; it may raise OSError."""
        self._at[step, self.log[step] + number] = act

    def fail(self, step: str, code: int, first: int = 0, end: int = 1 << 62) -> None:
        """Let the step fail until `mend`."""
        self._failing[step] = Failing(code, first, end)

    def mend(self) -> None:
        """Nothing fails any more."""
        self._failing.clear()

    def take(self, step: str, offset: int = 0, length: int = 1) -> None:
        """Count a step. Raises OSError when it is to fail."""
        with self._lock:
            self.log[step] += 1
            act = self._at.pop((step, self.log[step]), None)
            failing = self._failing.get(step)
            fails = failing is not None and offset < failing.end and offset + length > failing.first
            if act is not None or fails:
                self.fired.append(step)
        if act is not None:
            act()
        if fails and failing is not None:
            raise OSError(failing.errno, os.strerror(failing.errno))


def from_environment() -> Steps:
    """Steps as the environment arms them."""
    steps = Steps()
    for one in filter(None, os.environ.get(KILL_AT, "").split(",")):
        step, number = one.split(":")
        steps.at(step, int(number), die)
    for one in filter(None, os.environ.get(FAIL_AT, "").split(",")):
        step, number, name = one.split(":")
        steps.at(step, int(number), _raising(getattr(errno, name)))
    return steps


def die() -> None:
    """The process is gone at this very call."""
    os.kill(os.getpid(), signal.SIGKILL)


def _raising(code: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(code, os.strerror(code))

    return act


def area(path: Path) -> str:
    """What the steps of a file are called by."""
    return next((part for part in path.parts if part in _AREAS), path.name)


class SteppedFiles:
    """A `Files` whose calls are steps."""

    def __init__(self, steps: Steps, inner: Files | None = None) -> None:
        self._steps = steps
        self._inner = inner or RealFiles()

    def open(self, path: Path, *, create: bool = False, writable: bool = True) -> OpenFile:
        self._steps.take(f"{area(path)}.open")
        return _SteppedFile(self._steps, area(path), self._inner.open(path, create=create, writable=writable))

    def read(self, path: Path) -> bytes:
        self._steps.take(f"{area(path)}.read")
        return self._inner.read(path)

    def replace(self, path: Path, content: bytes) -> None:
        self._steps.take(f"{area(path)}.replace")
        self._inner.replace(path, content)

    def remove(self, path: Path) -> None:
        self._steps.take(f"{area(path)}.remove")
        self._inner.remove(path)

    def sync_folder(self, path: Path) -> None:
        self._steps.take(f"{area(path)}.sync_folder")
        self._inner.sync_folder(path)

    def names(self, folder: Path) -> list[str]:
        return self._inner.names(folder)

    def make_folder(self, path: Path) -> None:
        self._steps.take(f"{area(path)}.make_folder")
        self._inner.make_folder(path)

    def free_bytes(self, path: Path) -> tuple[int, int]:
        return self._inner.free_bytes(path)


class _SteppedFile:
    """A file of SteppedFiles."""

    def __init__(self, steps: Steps, name: str, inner: OpenFile) -> None:
        self._steps, self._name, self._inner = steps, name, inner

    def read_at(self, offset: int, size: int) -> bytes:
        self._steps.take(f"{self._name}.read")
        return self._inner.read_at(offset, size)

    def write_at(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        try:
            self._steps.take(f"{self._name}.write")
        except OSError:
            whole = b"".join(buffers)
            self._inner.write_at(offset, [whole[: len(whole) // 2]])  # a write that fails has often written something
            raise
        self._inner.write_at(offset, buffers)

    def sync(self) -> None:
        self._steps.take(f"{self._name}.sync")
        self._inner.sync()

    def truncate(self, size: int) -> None:
        self._steps.take(f"{self._name}.truncate")
        self._inner.truncate(size)

    def size(self) -> int:
        return self._inner.size()

    def close(self) -> None:
        self._inner.close()


class SteppedDisk(Disk):
    """A disk whose calls are steps; failing, it raises what a real one would."""

    def __init__(self, steps: Steps, inner: Disk) -> None:
        self._steps, self._inner = steps, inner

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def size(self) -> int:
        return self._inner.size

    @property
    def alignment(self) -> int:
        return self._inner.alignment

    @property
    def writable(self) -> bool:
        return self._inner.writable

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        try:
            self._steps.take("disk.read", offset, len(buffer))
        except OSError as error:
            raise read_failed(self.name, offset, error.errno or 0) from error
        self._inner.read_into(offset, buffer)

    def write(self, offset: int, data: Buffer) -> None:
        try:
            self._steps.take("disk.write", offset, len(data))
        except OSError as error:
            raise write_failed(self.name, offset, error.errno or 0) from error
        self._inner.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        try:
            self._steps.take("disk.zero", offset, length)
        except OSError as error:
            raise write_failed(self.name, offset, error.errno or 0) from error
        self._inner.zero(offset, length)

    def data_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        return self._inner.data_ranges(offset, length)

    def sync(self) -> None:
        try:
            self._steps.take("disk.sync")
        except OSError as error:
            raise sync_failed(self.name, error.errno or 0) from error
        self._inner.sync()

    def grow(self, size: int) -> None:
        self._inner.grow(size)

    def close(self) -> None:
        self._inner.close()
