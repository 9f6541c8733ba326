"""Which file systems lie on which disks, as the kernel says it (mountinfo and sysfs).

Invariant: a disk's devices are the device itself, its partitions, and what is stacked upon them (device mapper, md,
loop devices backed by it), so that a mounted file system anywhere above a disk is found. Called by the freezer's
client and the proofs of stillness, from worker threads. Paths of the kernel are parameters for tests.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
SYS = Path("/sys")
TMPFS = frozenset({"tmpfs", "ramfs"})

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo. `device` is the file system's MAJOR:MINOR, one per file system, `source` what it lies on."""

    number: int
    device: str
    point: Path
    kind: str
    source: str
    writable: bool


def mounts(mountinfo: Path = MOUNTINFO) -> list[Mount]:
    """All mounts of this process's namespace."""
    found = []
    for line in os.fsdecode(mountinfo.read_bytes()).splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, source, super_options) = before.split(" "), after.split(" ", 2)
        point = Path(_plain(fields[4]))
        writable = "ro" not in super_options.split(",")  # of the file system: a read-only mount may have a sibling
        found.append(Mount(int(fields[0]), fields[2], point, kind, _plain(source), writable))
    return found


def _plain(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def mount_of(descriptor: int, mountinfo: Path = MOUNTINFO) -> Mount | None:
    """The mount that an open file or folder lies on; None if this namespace does not know it."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii").splitlines():
        if line.startswith("mnt_id:"):
            number = int(line.split()[1])
            return next((mount for mount in mounts(mountinfo) if mount.number == number), None)
    return None


def is_in_memory(folder: Path) -> bool:
    """Whether `folder` lies on tmpfs, where a frozen disk is never written."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mount = mount_of(descriptor)
    finally:
        os.close(descriptor)
    return mount is not None and mount.kind in TMPFS


def device_number(path: Path) -> str:
    """MAJOR:MINOR of a block device's node."""
    number = path.stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def loops_of(path: Path, sys: Path = SYS) -> list[str]:
    """MAJOR:MINOR of the loop devices whose backing is the file (or device) `path`."""
    wanted = path.stat()
    found = []
    for loop in sorted((sys / "block").glob("loop*")):
        backing = _backing_of(loop)
        if backing is None:
            continue
        try:
            candidate = backing.stat()
        except OSError:
            continue  # deleted, or of another namespace: it is not `path`, which was reached just now
        if (candidate.st_dev, candidate.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append((loop / "dev").read_text("ascii").strip())
    return found


def _backing_of(device: Path) -> Path | None:
    """What lies behind a loop device, given its folder in sysfs; None for one that has nothing in it, or not any more:
    others attach and detach theirs at any time.
    """
    try:
        name = os.fsdecode((device / "loop" / "backing_file").read_bytes())
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # it is not there, or was detached after it was opened
            raise
        return None
    name = name.rstrip("\n")
    return Path(name) if name else None


def loop_backing(device: str, sys: Path = SYS) -> Path | None:
    """The file behind a loop device; None for every other device."""
    return _backing_of(sys / "dev" / "block" / device)


def devices_of(disk: Path, sys: Path = SYS) -> list[str]:
    """MAJOR:MINOR of everything that a write to may change `disk`: itself, partitions, and what is stacked on them."""
    pending = [device_number(disk)] if stat.S_ISBLK(disk.stat().st_mode) else loops_of(disk, sys)
    found: list[str] = []
    while pending:
        device = pending.pop(0)
        if device not in found:
            found.append(device)
            pending += _above(device, sys)
    return found


def sectors_written(device: str, sys: Path = SYS) -> int:
    """Sectors that the kernel counts as written to or discarded from the device since it is there.

    Documentation/block/stat.rst, fields 7 and 14 (discards are counted since 4.18). A finished request is counted.
    """
    fields = (sys / "dev" / "block" / device / "stat").read_text("ascii").split()
    return int(fields[6]) + (int(fields[13]) if len(fields) > 13 else 0)


def writes_in_flight(device: str, sys: Path = SYS) -> int:
    """Write requests that the device has begun and not ended (Documentation/block/stat.rst, `inflight`)."""
    return int((sys / "dev" / "block" / device / "inflight").read_text("ascii").split()[1])


def node_of(device: str, sys: Path = SYS) -> Path:
    """The device node of MAJOR:MINOR, as the kernel names it."""
    for line in (sys / "dev" / "block" / device / "uevent").read_text("utf-8").splitlines():
        if line.startswith("DEVNAME="):
            return Path("/dev", line.removeprefix("DEVNAME="))
    return Path("/dev/block", device)


def is_leaf(device: str, sys: Path = SYS) -> bool:
    """Whether nothing known lies above the device, so that a file system or a program uses it directly."""
    return not _above(device, sys)


def _above(device: str, sys: Path) -> list[str]:
    folder = sys / "dev" / "block" / device
    above = [(part.parent / "dev").read_text("ascii").strip() for part in sorted(folder.glob("*/partition"))]
    above += [(holder / "dev").read_text("ascii").strip() for holder in sorted(folder.glob("holders/*"))]
    node = node_of(device, sys)
    return above + (loops_of(node, sys) if node.exists() else [])


def mounts_on(disks: Iterable[Path], sys: Path = SYS, mountinfo: Path = MOUNTINFO) -> list[Mount]:
    """One writable mount for each file system that lies on any of `disks`, in the order of mountinfo."""
    devices = {device for disk in disks for device in devices_of(disk, sys)}
    found: dict[str, Mount] = {}
    for mount in mounts(mountinfo):
        if mount.writable and (mount.device in devices or source_device(mount) in devices):
            found.setdefault(mount.device, mount)
    return list(found.values())


def source_device(mount: Mount) -> str:
    """MAJOR:MINOR of what the file system lies on, also where it has a number of its own (btrfs); "" for none."""
    source = Path(mount.source)
    if not source.is_absolute() or not source.is_block_device():
        return ""
    return device_number(source)
