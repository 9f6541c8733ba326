"""What every disk checks before it touches anything; raises errors of `errors`."""

from __future__ import annotations

from backhaul.disks.contract import Disk
from backhaul.disks.errors import DiskReadOnly, DiskShrinkRefused, DiskSizeInvalid, Misaligned, OutOfBounds
from backhaul.replication.units import MAX_DISK_BYTES, SECTOR


def check_range(disk: Disk, offset: int, length: int) -> None:
    """`length` bytes at `offset` lie on the disk and are aligned, or end where it ends.

    Raises OutOfBounds, Misaligned.
    """
    if offset < 0 or length < 0 or offset + length > disk.size:
        raise OutOfBounds(disk=disk.name, offset=offset, length=length, size=disk.size)
    if offset % disk.alignment or (length % disk.alignment and offset + length != disk.size):
        raise Misaligned(disk=disk.name, offset=offset, length=length, size=disk.size, alignment=disk.alignment)


def check_writable(disk: Disk) -> None:
    """The disk was opened for writing. Raises DiskReadOnly."""
    if not disk.writable:
        raise DiskReadOnly(disk=disk.name)


def check_size(name: str, size: int) -> None:
    """`size` bytes are a disk: whole sectors, at least one, at most 32 TiB. Raises DiskSizeInvalid."""
    if size % SECTOR or not SECTOR <= size <= MAX_DISK_BYTES:
        raise DiskSizeInvalid(disk=name, size=size)


def check_growth(disk: Disk, wanted: int) -> None:
    """The disk may become `wanted` bytes. Raises DiskReadOnly, DiskSizeInvalid, DiskShrinkRefused."""
    check_writable(disk)
    check_size(disk.name, wanted)
    if wanted < disk.size:
        raise DiskShrinkRefused(disk=disk.name, size=disk.size, wanted=wanted)
