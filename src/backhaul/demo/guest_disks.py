"""What lies on a guest's disks and where: its nameplate, content that never changes, what the writers overwrite.

    raw disk      | nameplate (disk 0 only) | overwritten blocks | content that stays |
    file system     /nameplate                /blocks              /content             /entries.sqlite (disk 0)

Both sides of a failover find the same layout by the same rules, from the disks alone. `install` is what the operator
of a real machine did years ago. Files are open to every user: home and cloud run their guests as different ones, and
the mount itself is closed to others. Blocking; called by the guest's main thread before its writers start.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from backhaul.demo.guest_machine import GuestDisk, GuestMachine
from backhaul.demo.nameplate import AREA_BYTES
from backhaul.demo.writers.spec import RegionSpec
from backhaul.replication.units import BLOCK, MiB

DATABASE: Final = "entries.sqlite"
BLOCKS: Final = "blocks"
CONTENT: Final = "content"

_OVERWRITTEN: Final = 4
_STAYS: Final = 4
"""Of each disk a quarter is overwritten and a quarter holds content that stays; the rest is free."""

_OPEN_TO_ALL: Final = 0o666
_SQLITE_PARTS: Final = ("", "-wal")


def block_paths(machine: GuestMachine) -> tuple[Path, ...]:
    """What the block writer opens: a file on each file system, or each raw disk."""
    if machine.is_mounted:
        return tuple(Path(disk.mount) / BLOCKS for disk in machine.disks)
    return tuple(Path(disk.path) for disk in machine.disks)


def block_regions(machine: GuestMachine) -> tuple[RegionSpec, ...]:
    """What the block writer overwrites; empty: its files whole."""
    if machine.is_mounted:
        return ()
    return raw_regions([disk.size for disk in machine.disks])


def raw_regions(sizes: list[int]) -> tuple[RegionSpec, ...]:
    """The overwritten blocks of raw disks of these sizes (bytes)."""
    return tuple(
        RegionSpec(index, _first_byte(index) // BLOCK, _written_bytes(size) // BLOCK)
        for index, size in enumerate(sizes)
    )


def database_path(machine: GuestMachine) -> Path | None:
    """Where SQLite's database lies; None on raw disks."""
    return Path(machine.disks[0].mount) / DATABASE if machine.is_mounted else None


def install(machine: GuestMachine) -> None:
    """Fill the disks with their first content, durably; the same bytes each time it is repeated."""
    for disk in machine.disks:
        if machine.is_mounted:
            _install_files(disk)
        else:
            _install_raw(disk)


def keep_what_is_found(machine: GuestMachine, folder: Path) -> None:
    """Copy the database as it lies on the disk, before anything writes to it: evidence for the oracle."""
    database = database_path(machine)
    if database is None or not database.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    for left in (partial, folder):
        shutil.rmtree(left, ignore_errors=True)  # of a boot that ended before it was noted
    partial.mkdir(mode=0o700, parents=True)
    for suffix in _SQLITE_PARTS:
        part = database.with_name(database.name + suffix)
        if part.exists():
            shutil.copyfile(part, partial / part.name)
    partial.rename(folder)


def _first_byte(index: int) -> int:
    return AREA_BYTES if index == 0 else 0


def _written_bytes(size: int) -> int:
    return size // _OVERWRITTEN // BLOCK * BLOCK


def _install_files(disk: GuestDisk) -> None:
    root = Path(disk.mount)
    _write(root / CONTENT, _content(disk, disk.size // _STAYS))
    if disk.index == 0:
        (root / DATABASE).touch(_OPEN_TO_ALL)
        (root / DATABASE).chmod(_OPEN_TO_ALL)
    partial = root / (BLOCKS + ".partial")
    _write(partial, _zeros(_written_bytes(disk.size)))  # written, not a hole: overwriting needs no allocation
    partial.rename(root / BLOCKS)
    _sync_folder(root)


def _install_raw(disk: GuestDisk) -> None:
    first = _first_byte(disk.index) + _written_bytes(disk.size)
    _write(Path(disk.path), _content(disk, disk.size // _STAYS), first)


def _write(path: Path, pieces: Iterator[bytes], offset: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _OPEN_TO_ALL)
    try:
        for piece in pieces:
            offset += os.pwrite(descriptor, piece, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _content(disk: GuestDisk, size: int) -> Iterator[bytes]:
    """Half of it compresses well and half does not, as on disks that are in use."""
    randomness = random.Random(f"{disk.index}/{disk.size}")
    for number in range(size // MiB):
        noise = randomness.randbytes(MiB // 2)
        yield noise + f"line {number} of what was installed here years ago\n".encode().ljust(64) * (MiB // 2 // 64)


def _zeros(size: int) -> Iterator[bytes]:
    for start in range(0, size, MiB):
        yield bytes(min(MiB, size - start))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
