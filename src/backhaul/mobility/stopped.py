"""Still because nobody has the disks open for writing, proved for as long as it lasts.

    file          a read lease: the kernel refuses it while anybody has the file open for writing, and breaks it when
                  somebody wants to; where leases are refused: a look at every process, and the file's times
    block device  opened exclusively (no mount, no device mapper); nobody else has it, its partitions, or the file
                  behind a loop device open for writing; and the kernel's count of written sectors stays as it was

Who has a device open is found by a look at every process, which an agent without privileges may not take. Where the
machine's own site powered it off and read that back, its word stands for that look: the machine writes no more, the
exclusive open keeps mounts away, and a write of anybody else would be counted.

Called from worker threads. Everything is looked at on entering and again on `confirm`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from backhaul.mobility.errors import ImageNotStill, NotStopped, StopUnproven
from backhaul.mobility.mounts import (
    device_number,
    devices_of,
    loop_backing,
    loops_of,
    node_of,
    sectors_written,
    writes_in_flight,
)
from backhaul.mobility.writers import device_writers, file_writers
from backhaul.replication.ports import Clock
from backhaul.replication.values import Consistency, StillKind

F_SETSIG: Final = 10
"""fcntl.h of Linux; Python names it from 3.13 on."""

_NO_LEASE: Final = {errno.EACCES, errno.EINVAL, errno.ENOLCK, errno.EPERM, errno.EOPNOTSUPP}
"""Not the file's owner; a file system that has no leases."""


class _Proof(Protocol):
    """That one disk has no writer; `lost` says what broke it since it was made, "" for nothing."""

    def lost(self) -> str: ...
    def close(self) -> None: ...


class StoppedImage:
    """Disks without a writer; see `still.StillImage`. May be confirmed more than once: nothing ends by it."""

    kind = StillKind.STOPPED
    consistency = Consistency.CRASH
    limit_s: float | None = None
    frozen_us = 0

    def __init__(self, proofs: Sequence[_Proof], barrier_ns: int) -> None:
        self._proofs = proofs
        self.barrier_ns = barrier_ns

    def confirm(self) -> None:
        """Raises ImageNotStill when somebody opened a disk for writing since, even if nothing was written yet."""
        for proof in self._proofs:
            if why := proof.lost():
                raise ImageNotStill(reason=why)


class StoppedDisks:
    """Disks of a machine that is stopped; a `still.StillSource`."""

    def __init__(self, disks: Sequence[Path], clock: Clock, machine_off: bool = False) -> None:
        """`machine_off`: the site that powers the machine says so."""
        self._disks = list(disks)
        self._clock = clock
        self._machine_off = machine_off

    @contextlib.contextmanager
    def hold(self) -> Iterator[StoppedImage]:
        """Raises NotStopped, which names who writes, or StopUnproven. Keeps nobody from writing: see `confirm`."""
        with contextlib.ExitStack() as proofs:
            made = []
            for disk in self._disks:
                made.append(_prove(disk, self._machine_off))
                proofs.callback(made[-1].close)
            yield StoppedImage(made, self._clock.wall_ns())


def stopped(
    disks: Sequence[Path], clock: Clock, machine_off: bool = False
) -> contextlib.AbstractContextManager[StoppedImage]:
    """`StoppedDisks(...).hold()`: `with stopped(disks, clock) as still: ...; still.confirm()`."""
    return StoppedDisks(disks, clock, machine_off).hold()


def _prove(disk: Path, machine_off: bool) -> _Proof:
    if stat.S_ISBLK(disk.stat().st_mode):
        return DeviceProof(disk, machine_off)
    try:
        return LeaseProof(disk)
    except StopUnproven:
        return ScanProof(disk)


class LeaseProof:
    """A file under a read lease of this process."""

    def __init__(self, file: Path) -> None:
        """Raises NotStopped, or StopUnproven where the kernel grants no lease."""
        self._file = file
        self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # A broken lease sends a signal; SIGIO would end the agent, SIGURG is ignored by default.
            fcntl.fcntl(self._descriptor, F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno == errno.EAGAIN:
                raise NotStopped(disk=file, writers=_who(file)) from error
            if error.errno in _NO_LEASE:
                raise StopUnproven(disk=file, reason=f"no lease: {error.strerror}") from error
            raise

    def lost(self) -> str:
        if fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
            return ""
        return f"{self._file} was opened for writing"

    def close(self) -> None:
        os.close(self._descriptor)  # gives back the lease: who waits to write goes on


class ScanProof:
    """A file that no process has open for writing, and whose times and size stay as they are."""

    def __init__(self, file: Path) -> None:
        """Raises NotStopped or StopUnproven."""
        self._file = file
        self._before = _times(file)
        _refuse_file_writers(file)

    def lost(self) -> str:
        try:
            _refuse_file_writers(self._file)
        except NotStopped as error:
            return error.message
        return "" if _times(self._file) == self._before else f"{self._file} was written"

    def close(self) -> None:
        """Nothing is held."""


class DeviceProof:
    """A block device, with its partitions and, for a loop device, the file behind it."""

    def __init__(self, node: Path, machine_off: bool = False) -> None:
        """Raises NotStopped or StopUnproven."""
        self._node = node
        self._machine_off = machine_off
        self._device = device_number(node)
        try:
            self._descriptor = os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise NotStopped(disk=node, writers="the kernel (mounted, or part of another device)") from error
            raise StopUnproven(disk=node, reason=error.strerror) from error
        try:
            self._written = sectors_written(self._device)
            self._refuse_writers()
        except BaseException:
            os.close(self._descriptor)
            raise

    def lost(self) -> str:
        try:
            self._refuse_writers()
        except NotStopped as error:
            return error.message
        if writes_in_flight(self._device):  # looked at first: one that ends meanwhile is counted
            return f"{self._node} is being written"
        return "" if sectors_written(self._device) == self._written else f"{self._node} was written"

    def close(self) -> None:
        os.close(self._descriptor)

    def _refuse_writers(self) -> None:
        devices = devices_of(self._node)
        for other in devices:
            if other != self._device and _claimed_apart(other):
                raise NotStopped(disk=self._node, writers=f"{node_of(other)}, which lies upon it")
        try:
            writers = device_writers(devices)
            if writers:
                raise NotStopped(disk=self._node, writers=", ".join(map(str, writers)))
            backing = loop_backing(self._device)
            if backing is not None:
                self._refuse_backing_writers(backing)
        except StopUnproven:
            if not self._machine_off:
                raise

    def _refuse_backing_writers(self, backing: Path) -> None:
        if not backing.exists():
            raise StopUnproven(disk=self._node, reason=f"the file behind it, {backing}, cannot be seen from here")
        others = [device for device in loops_of(backing) if device != self._device]
        if others:
            raise NotStopped(disk=self._node, writers=f"{node_of(others[0])}, a loop device of the same {backing}")
        _refuse_file_writers(backing)


def _claimed_apart(device: str) -> bool:
    """A loop device over the disk claims nothing of it, so the exclusive open does not notice it."""
    return loop_backing(device) is not None


def _refuse_file_writers(file: Path) -> None:
    writers = [str(writer) for writer in file_writers(file)]
    if writers:
        raise NotStopped(disk=file, writers=", ".join(writers))


def _times(file: Path) -> tuple[int, int, int]:
    now = file.stat()
    return now.st_mtime_ns, now.st_ctime_ns, now.st_size


def _who(file: Path) -> str:
    """For the message only: the lease has proved that there is somebody."""
    loops = [str(node_of(device)) for device in loops_of(file)]
    try:
        return ", ".join(loops + [str(writer) for writer in file_writers(file)]) or "somebody"
    except StopUnproven:
        return ", ".join(loops) or "somebody"
