"""A disk in blocks of 4 KiB, as the journal sees it.

Invariant: the last block is padded with zeros, so a disk that grows keeps its blocks' contents and hashes. Called
from the item's worker, `read_blocks` also from views.
"""

from __future__ import annotations

from collections.abc import Iterator

from backhaul.disks.contract import Buffer, Disk
from backhaul.disks.errors import DiskReadOnly
from backhaul.replication.units import BLOCK, CHUNK

CHUNK_BLOCKS = CHUNK // BLOCK


def block_count(size: int) -> int:
    """Blocks of a disk of `size` bytes."""
    return -(-size // BLOCK)


def read_blocks(disk: Disk, first: int, count: int) -> bytearray:
    """Contents of the blocks. Raises DiskReadFailed."""
    buffer = bytearray(count * BLOCK)
    offset = first * BLOCK
    length = min(len(buffer), disk.size - offset)
    if length > 0:
        disk.read_into(offset, memoryview(buffer)[:length])
    return buffer


def write_blocks(disk: Disk, first: int, data: Buffer) -> None:
    """Write whole blocks; padding behind the disk's end is left out. Raises DiskWriteFailed."""
    offset = first * BLOCK
    room = disk.size - offset
    disk.write(offset, data if len(data) <= room else memoryview(data)[:room])


def zero_blocks(disk: Disk, first: int, count: int) -> None:
    """Make the blocks read as zeros. Raises DiskWriteFailed."""
    offset = first * BLOCK
    disk.zero(offset, min(count * BLOCK, disk.size - offset))


def data_blocks(disk: Disk, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Block ranges (first, end) within [first, end) that may hold other than zeros. Raises DiskReadFailed."""
    offset = first * BLOCK
    length = min(end * BLOCK, disk.size) - offset
    if length <= 0:
        return
    done = first
    for at, size in disk.data_ranges(offset, length):
        low, high = max(at // BLOCK, done), min(block_count(at + size), end)
        if low < high:
            yield low, high
            done = high


class CutDisk:
    """The first `size` bytes of a larger disk, for reading only: what of a replica belongs to the item."""

    def __init__(self, disk: Disk, size: int) -> None:
        self._disk = disk
        self.size = size
        self.name = disk.name
        self.alignment = disk.alignment
        self.writable = False

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """As the contract says; the last piece may end where the item's disk does."""
        whole = -(-len(buffer) // self.alignment) * self.alignment
        whole = min(whole, self._disk.size - offset)
        if whole == len(buffer):
            self._disk.read_into(offset, buffer)
            return
        larger = bytearray(whole)
        self._disk.read_into(offset, larger)
        memoryview(buffer)[:] = memoryview(larger)[: len(buffer)]

    def data_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        """As the contract says."""
        end = self.size if length is None else offset + length
        whole = min(-(-(end - offset) // self.alignment) * self.alignment, self._disk.size - offset)
        for at, size in self._disk.data_ranges(offset, whole):
            if at < end:
                yield at, min(size, end - at)

    def write(self, offset: int, data: Buffer) -> None:
        """Raises DiskReadOnly: the applier writes the whole disk."""
        raise DiskReadOnly(disk=self.name)

    def zero(self, offset: int, length: int) -> None:
        """Raises DiskReadOnly: the applier writes the whole disk."""
        raise DiskReadOnly(disk=self.name)

    def sync(self) -> None:
        """Nothing was written."""

    def grow(self, size: int) -> None:
        """Raises DiskReadOnly: the applier writes the whole disk."""
        raise DiskReadOnly(disk=self.name)

    def close(self) -> None:
        """Let go of the whole disk."""
        self._disk.close()
