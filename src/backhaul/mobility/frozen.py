"""Still by freezing: every file system on the disks is frozen while the rest of the changed blocks is read.

Invariant: a disk takes part only if what uses it is a file system that gets frozen: a device above it that something
else has claimed is refused (swap excepted, whose content means nothing after a boot). Whether anybody wrote past the
file systems while they were frozen is told by the kernel's count of written sectors. Called from worker threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from backhaul.mobility.errors import ImageNotStill, NotFreezable
from backhaul.mobility.freezer_client import Freezer, Released
from backhaul.mobility.mounts import (
    Mount,
    device_number,
    devices_of,
    is_leaf,
    loops_of,
    mounts_on,
    node_of,
    sectors_written,
    source_device,
)
from backhaul.replication.values import Consistency, StillKind


class FrozenImage:
    """File systems that are frozen now; see `still.StillImage`."""

    kind = StillKind.FROZEN
    consistency = Consistency.FILE_SYSTEM

    def __init__(self, freezer: Freezer, barrier_ns: int, limit_s: float, disks: Sequence[Path]) -> None:
        self.barrier_ns = barrier_ns
        self.limit_s: float | None = limit_s
        self.frozen_us = 0
        self.ended = False
        self._freezer = freezer
        self._disks = disks
        self._written = _sectors_past_swap(disks)

    def confirm(self) -> None:
        """Thaw. Raises ImageNotStill if it had thawed before (limit over, freezer or guard killed), FreezerLost."""
        self._end(self._freezer.thaw)

    def check(self) -> None:
        """Raises ImageNotStill unless it is frozen still; ends nothing."""
        if self.ended or self._freezer.status().phase != "frozen" or _sectors_past_swap(self._disks) != self._written:
            raise ImageNotStill(reason="the file systems had thawed, or somebody wrote past them")

    def disarm(self) -> None:
        """Instead of `confirm`, for the final delta: stays frozen, whatever ends, until `Freezer.thaw`.

        Raises ImageNotStill (nothing is held then; what was read is no final point) and FreezerLost.
        """
        self._end(self._freezer.hold)
        self.limit_s = None

    def _end(self, release: Callable[[], Released]) -> None:
        if self.ended:
            raise ImageNotStill(reason="it was ended before")
        self.ended = True
        if _sectors_past_swap(self._disks) != self._written:
            self.frozen_us = self._freezer.thaw().frozen_us
            raise ImageNotStill(reason="somebody wrote to the disks past the frozen file systems, or they had thawed")
        released = release()
        self.frozen_us = released.frozen_us
        if released.lost:
            raise ImageNotStill(reason=f"the file systems had thawed: {released.lost}")


class FrozenDisks:
    """Freezes all file systems on some disks; a `still.StillSource`."""

    def __init__(self, freezer: Freezer, disks: Sequence[Path], limit_s: float = 2.0) -> None:
        """`disks`: device nodes, or image files whose loop devices are mounted. `limit_s`: as the policy says."""
        self._freezer = freezer
        self._disks = list(disks)
        self._limit_s = limit_s

    @contextlib.contextmanager
    def hold(self) -> Iterator[FrozenImage]:
        """Frozen from entering to `confirm`, `disarm` or leaving. Raises NotFreezable, and as `Freezer.freeze`."""
        points = [mount.point for mount in freezable_mounts(self._disks)]
        barrier_ns = self._freezer.freeze(points, self._limit_s)
        image: FrozenImage | None = None
        try:
            image = FrozenImage(self._freezer, barrier_ns, self._limit_s, self._disks)
            yield image
        finally:
            if image is None or not image.ended:
                self._freezer.thaw()


def freezable_mounts(disks: Sequence[Path]) -> list[Mount]:
    """The mounts whose freezing makes all `disks` still. Raises NotFreezable: which disk, and what prevents it."""
    found: dict[str, Mount] = {}
    for disk in disks:
        on_disk = mounts_on([disk])
        if not on_disk:
            raise NotFreezable(disk=disk, reason="no file system on it is mounted for writing")
        explained = {mount.device for mount in on_disk} | {source_device(mount) for mount in on_disk} | _swaps()
        devices = devices_of(disk)
        for device in devices:
            if device not in explained and is_leaf(device) and _is_claimed(node_of(device)):
                raise NotFreezable(disk=disk, reason=f"{node_of(device)} is used by something that cannot be frozen")
        found.update({mount.device: mount for mount in on_disk})
    return list(found.values())


def _sectors_past_swap(disks: Sequence[Path]) -> int:
    """Sectors written to the disks, those of swap left out."""
    swaps, total = _swaps(), 0
    for disk in disks:
        devices = devices_of(disk)
        roots = [device_number(disk)] if disk.is_block_device() else loops_of(disk)
        total += sum(map(sectors_written, roots)) - sum(sectors_written(each) for each in devices if each in swaps)
    return total


def _swaps() -> set[str]:
    lines = Path("/proc/swaps").read_text("utf-8", "surrogateescape").splitlines()[1:]
    nodes = [Path(line.split()[0]) for line in lines]
    return {f"{os.major(n)}:{os.minor(n)}" for n in (node.stat().st_rdev for node in nodes if node.is_block_device())}


def _is_claimed(node: Path) -> bool:
    """Whether the kernel lets nobody else have the device for itself: something uses it."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.ENXIO, errno.ENOMEDIUM)  # a loop device or drive without anything in it
    return False
