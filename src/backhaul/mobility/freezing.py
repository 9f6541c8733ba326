"""What the freezer, the guard and their client share: the calls to the kernel, the links, the file of state.

Invariant: nothing here writes to a file system that could be frozen, logs, or imports more than the interpreter has
at hand, since the freezer and the guard run it while file systems are frozen. Single-threaded in those processes.

The links are socket pairs of whole messages (SOCK_SEQPACKET), ASCII words with spaces between:

    agent to freezer   freeze LIMIT_MS + descriptors | thaw | hold | status
    freezer to agent   ready FREEZER_PID GUARD_PID PLACES... | refused WHY | frozen BARRIER_NS | failed INDEX ERRNO
                       thawed FROZEN_US | held FROZEN_US | lost WHY FROZEN_US | status PHASE LEFT_MS
    freezer to guard   arm NUMBER DEADLINE_NS + descriptors | hold NUMBER | idle NUMBER
    guard to freezer   ready PID PLACES... | armed NUMBER | held NUMBER | expired NUMBER
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import time
from array import array
from collections.abc import Sequence
from typing import Final

FIFREEZE: Final = 0xC0045877
FITHAW: Final = 0xC0045878
"""linux/fs.h, _IOWR('X', 119 and 120, int), as on x86 and Arm."""

_MCL_CURRENT_AND_FUTURE: Final = 3

MAX_FILE_SYSTEMS: Final = 64
"""File systems of one freeze: as many as a machine has disks; the kernel hands over 253 descriptors at once."""

MAX_MESSAGE_BYTES: Final = 4096
"""The longest message is `ready` with the paths of a few control groups."""

MAX_LIMIT_MS: Final = 60_000
"""Limit of the final delta (design section 8); every other freeze is far below."""

RETRY_MS: Final = 50
"""How often a thaw that the kernel refused, or that may have come too early, is tried again; never given up."""

PHASE_FREEZING: Final = "freezing"
PHASE_HELD: Final = "held"


class System:
    """Every call of the freezer and the guard to the operating system, so that tests can count and kill at each."""

    def freeze(self, descriptor: int) -> None:
        """Freeze the file system of an open mount point. Raises OSError (EBUSY: frozen already)."""
        fcntl.ioctl(descriptor, FIFREEZE, 0)

    def thaw(self, descriptor: int) -> bool:
        """Thaw; False when it was not frozen (any more). Raises OSError when the kernel failed to thaw."""
        try:
            fcntl.ioctl(descriptor, FITHAW, 0)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def still_frozen(self, descriptor: int) -> bool:
        """Whether it is frozen now. The only way to ask is to freeze again: a thawed one is thawed again here."""
        try:
            self.freeze(descriptor)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            raise
        self.thaw(descriptor)
        return False

    def owner(self, descriptor: int) -> int:
        """Whose node the device is that the file system of an open mount point lies on. Raises OSError."""
        number = os.fstat(descriptor).st_dev
        with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/uevent", encoding="ascii") as lines:
            names = [line[8:].rstrip("\n") for line in lines if line.startswith("DEVNAME=")]
        found = os.stat(f"/dev/{names[0]}")  # noqa: PTH116 -- as above
        if found.st_rdev != number:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return found.st_uid

    def lock_memory(self) -> None:
        """No page of this process is ever swapped out to, or written back for, a frozen disk. Raises OSError."""
        library = ctypes.CDLL(None, use_errno=True)
        if library.mlockall(_MCL_CURRENT_AND_FUTURE) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def monotonic_ns(self) -> int:
        """The clock of limits: one for all processes of the machine."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """The clock of barriers."""
        return time.time_ns()

    def wait(self, links: Sequence[socket.socket], timeout_ms: int | None) -> list[socket.socket]:
        """The links that have a message, or whose other end is closed."""
        poll = select.poll()
        for link in links:
            poll.register(link, select.POLLIN)
        events = {descriptor for descriptor, _ in poll.poll(timeout_ms)}
        return [link for link in links if link.fileno() in events]

    def send(self, link: socket.socket, message: str, descriptors: Sequence[int] = ()) -> bool:
        """Send without ever waiting; False when the other end is closed, or stopped with its link full."""
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            link.sendmsg([message.encode("ascii")], rights, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.EAGAIN, errno.ENOTCONN):
                return False
            raise
        return True

    def receive(self, link: socket.socket) -> tuple[list[str], list[int]]:
        """The next message's words and descriptors; no words when the other end is closed."""
        try:
            message, descriptors, _, _ = socket.recv_fds(link, MAX_MESSAGE_BYTES, MAX_FILE_SYSTEMS)
        except OSError as error:
            if error.errno in (errno.ECONNRESET, errno.ENOTCONN):
                return [], []
            raise
        return message.decode("ascii").split(), list(descriptors)


def milliseconds_until(deadline_ns: int, now_ns: int) -> int:
    """For `wait`: rounded up, so that the deadline has passed when it returns; never negative."""
    return max(0, -((now_ns - deadline_ns) // 1_000_000))


class StateFile:
    """A file in tmpfs that says what is frozen, for an agent that starts after all three processes were killed.

    Its content: the phase, then the mount points, each ended by a NUL byte. Gone when nothing is frozen.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, phase: str, descriptors: Sequence[int]) -> None:
        """Say `phase` of the file systems whose mount points are open as `descriptors`. Raises OSError."""
        links = [f"/proc/self/fd/{descriptor}" for descriptor in descriptors]
        mounts = [os.readlink(link) for link in links]  # noqa: PTH115 -- pathlib costs more than all other imports
        content = b"".join(os.fsencode(word) + b"\0" for word in [phase, *mounts])
        beside = self.path + ".new"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
        os.rename(beside, self.path)  # noqa: PTH104 -- as above

    def remove(self) -> None:
        """Nothing is frozen."""
        try:
            os.unlink(self.path)  # noqa: PTH108 -- as above
        except FileNotFoundError:
            return

    def read(self) -> tuple[str, list[str]]:
        """The phase ("" for nothing frozen) and the mount points."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return "", []
        try:
            content = os.read(descriptor, MAX_FILE_SYSTEMS * 4096 + 64)  # PATH_MAX each
        finally:
            os.close(descriptor)
        phase, *mounts = [os.fsdecode(word) for word in content.split(b"\0")[:-1]]
        return phase, mounts
