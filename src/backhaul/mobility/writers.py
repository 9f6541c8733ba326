"""Who has a file or a device open for writing, by the kernel's list of every process's descriptors and mappings.

Invariant: an answer of "nobody" is a proof only where every process could be looked at; where one could not, or this
process sees only a part of the machine's processes, `StopUnproven` is raised. Called from worker threads; takes
milliseconds per hundred processes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backhaul.mobility.errors import StopUnproven

PROC = Path("/proc")

_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of linux/proc_ns.h; inside another namespace the machine's other processes are not listed."""


@dataclass(frozen=True)
class Writer:
    """A process that can write."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def file_writers(file: Path, proc: Path = PROC) -> list[Writer]:
    """Who has the regular file open for writing, or mapped so. Raises StopUnproven."""
    wanted = file.stat()
    return _writers(file, lambda s: (s.st_dev, s.st_ino) == (wanted.st_dev, wanted.st_ino), proc)


def device_writers(devices: Sequence[str], proc: Path = PROC) -> list[Writer]:
    """Who has one of the block devices (MAJOR:MINOR) open for writing, by whatever node. Raises StopUnproven."""
    numbers = {os.makedev(*map(int, device.split(":"))) for device in devices}
    return _writers(devices, lambda s: stat.S_ISBLK(s.st_mode) and s.st_rdev in numbers, proc)


def _writers(what: object, is_it: Callable[[os.stat_result], bool], proc: Path) -> list[Writer]:
    if proc == PROC and str(Path("/proc/self/ns/pid").readlink()) != _INITIAL_PID_NAMESPACE:
        raise StopUnproven(disk=what, reason="the agent runs in a process namespace of its own and sees few processes")
    found = []
    for folder in _processes(proc):
        try:
            if _writes(folder, is_it):
                found.append(Writer(int(folder.name), (folder / "comm").read_text("utf-8", "replace").strip()))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile, and its descriptors with it
        except PermissionError as error:
            raise StopUnproven(disk=what, reason=f"process {folder.name} cannot be looked at") from error
    return found


def _processes(proc: Path) -> list[Path]:
    return [folder for folder in proc.iterdir() if folder.name.isdigit()]


def _writes(folder: Path, is_it: Callable[[os.stat_result], bool]) -> bool:
    return _has_descriptor(folder, is_it) or _has_mapping(folder, is_it)


def _has_descriptor(folder: Path, is_it: Callable[[os.stat_result], bool]) -> bool:
    for entry in (folder / "fd").iterdir():
        try:
            if is_it(entry.stat()) and _opened_for_writing(folder / "fdinfo" / entry.name):
                return True
        except FileNotFoundError:
            continue  # closed meanwhile
    return False


def _opened_for_writing(fdinfo: Path) -> bool:
    for line in fdinfo.read_text("ascii").splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _has_mapping(folder: Path, is_it: Callable[[os.stat_result], bool]) -> bool:
    """A shared writable mapping outlives the descriptor it was made with."""
    for line in (folder / "maps").read_text("utf-8", "surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if fields[1][1] != "w" or fields[1][3] != "s" or len(fields) < 6 or not fields[5].startswith("/"):
            continue
        try:
            if is_it((folder / "map_files" / fields[0]).stat()):
                return True
        except FileNotFoundError:
            continue  # unmapped meanwhile
    return False
