"""A disk that fails on purpose: for tests of everything that reads or writes disks.

`FaultyDisk` passes every call on to another disk, counts it, and at the n-th call of a kind does what its plan says.
Nothing in a running service makes one. Thread-safe; a fault fires once, and `fired` proves that it did.
"""

from __future__ import annotations

import enum
import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from backhaul.disks.bounds import check_growth, check_range, check_writable
from backhaul.disks.contract import Buffer, Disk
from backhaul.disks.errors import DiskGrowFailed, read_failed, sync_failed, write_failed


class Operation(enum.StrEnum):
    """What is counted and can be made to fail; each kind has a count of its own."""

    READ = "read"
    WRITE = "write"
    ZERO = "zero"
    SYNC = "sync"
    GROW = "grow"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at the `number`-th call (from 1) of `operation`.

    errno   what the call fails with; None: it does not fail (for `before` alone)
    kept    bytes that the failing call moves first, a multiple of the disk's alignment: a torn write or zeroing,
            a short read; 0 for none
    before  called first, in the caller's thread: where a test slips in a write of its own or ends a process
    """

    operation: Operation
    number: int
    errno: int | None = errno.EIO
    kept: int = 0
    before: Callable[[], None] | None = None


class FaultyDisk(Disk):
    """`inner` with the faults of `plan`.

    counts  calls so far by operation, the failed ones included; calls refused by the contract do not count
    fired   faults that have happened, in order
    A failed sync poisons it as it does a real disk: each later write and sync fails too. The inner disk has then
    not been synced.
    """

    def __init__(self, inner: Disk, plan: Iterable[Fault] = ()) -> None:
        self._inner = inner
        self._plan = {(fault.operation, fault.number): fault for fault in plan}
        self._lock = threading.Lock()
        self._sync_error = 0
        self.counts: dict[Operation, int] = dict.fromkeys(Operation, 0)
        self.fired: list[Fault] = []

    @property
    def name(self) -> str:
        """The inner disk's."""
        return self._inner.name

    @property
    def size(self) -> int:
        """The inner disk's, bytes."""
        return self._inner.size

    @property
    def alignment(self) -> int:
        """The inner disk's, bytes."""
        return self._inner.alignment

    @property
    def writable(self) -> bool:
        """The inner disk's."""
        return self._inner.writable

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """As the contract; a fault fills the first `kept` bytes and raises DiskReadFailed at the byte behind them."""
        view = memoryview(buffer).cast("B")
        check_range(self, offset, len(view))
        fault = self._next(Operation.READ)
        if fault is None or fault.errno is None:
            return self._inner.read_into(offset, view)
        if fault.kept:
            self._inner.read_into(offset, view[: fault.kept])
        raise read_failed(self.name, offset + fault.kept, fault.errno)

    def write(self, offset: int, data: Buffer) -> None:
        """As the contract; a fault writes the first `kept` bytes and raises DiskWriteFailed (or DiskFull)."""
        view = memoryview(data).cast("B")
        self._check_write(offset, len(view))
        fault = self._next(Operation.WRITE)
        if fault is None or fault.errno is None:
            return self._inner.write(offset, view)
        if fault.kept:
            self._inner.write(offset, view[: fault.kept])
        raise write_failed(self.name, offset + fault.kept, fault.errno)

    def zero(self, offset: int, length: int) -> None:
        """As the contract; a fault zeroes the first `kept` bytes and raises DiskWriteFailed (or DiskFull)."""
        self._check_write(offset, length)
        fault = self._next(Operation.ZERO)
        if fault is None or fault.errno is None:
            return self._inner.zero(offset, length)
        if fault.kept:
            self._inner.zero(offset, min(fault.kept, length))
        raise write_failed(self.name, offset + fault.kept, fault.errno)

    def data_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        """The inner disk's; never fails on purpose."""
        return self._inner.data_ranges(offset, length)

    def sync(self) -> None:
        """As the contract; a fault raises DiskSyncFailed without syncing."""
        check_writable(self)
        self._check_poison()
        fault = self._next(Operation.SYNC)
        if fault is not None and fault.errno is not None:
            self._sync_error = fault.errno
            raise sync_failed(self.name, fault.errno)
        self._inner.sync()

    def grow(self, size: int) -> None:
        """As the contract; a fault raises DiskGrowFailed and changes nothing."""
        check_growth(self, size)
        fault = self._next(Operation.GROW)
        if fault is not None and fault.errno is not None:
            raise DiskGrowFailed(disk=self.name, wanted=size, reason=errno.errorcode[fault.errno])
        self._inner.grow(size)

    def close(self) -> None:
        """Close the inner disk."""
        self._inner.close()

    def _next(self, operation: Operation) -> Fault | None:
        """Count a call; its fault, if it has one."""
        with self._lock:
            self.counts[operation] += 1
            fault = self._plan.pop((operation, self.counts[operation]), None)
            if fault is not None:
                self.fired.append(fault)
        if fault is not None and fault.before is not None:
            fault.before()
        return fault

    def _check_write(self, offset: int, length: int) -> None:
        check_writable(self)
        check_range(self, offset, length)
        self._check_poison()

    def _check_poison(self) -> None:
        if self._sync_error:
            raise sync_failed(self.name, self._sync_error)
