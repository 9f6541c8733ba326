"""Which blocks of a machine's disks are to be sent: sets of 4 KiB blocks, as compressed bitmaps.

Invariant: a block that was added even in part is in the set, and one that was dropped only in part stays in it:
rounding never loses a mark. Memory: at most a bit per block, 32 MiB per TiB of disk, when the blocks are scattered
evenly; runs take a few bytes each. Not thread-safe: a set belongs to one thread or task at a time.

Serialised form, big-endian: `BHBS`, version (2), number of disks (2); per disk its number (4), the length of its
bitmap (8) and the bitmap in the portable Roaring format (64 bit); BLAKE3 (16) of all before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final

from blake3 import blake3
from pyroaring import BitMap64

from backhaul.replication.errors import BackhaulError
from backhaul.replication.units import BLOCK, CHUNK, MAX_DISK_BYTES, MAX_DISKS, GiB
from backhaul.replication.values import Extent

MAX_SERIALISED: Final = 1 * GiB
"""A bit per block of 32 TiB. A set that is larger costs more to keep than the disks cost to compare."""

_MAGIC: Final = b"BHBS"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("!4sHH")
_DISK: Final = struct.Struct("!IQ")
_CHECK_BYTES: Final = 16
_MAX_BLOCKS: Final = MAX_DISK_BYTES // BLOCK


class BlockRangeInvalid(BackhaulError):
    """{length} bytes at byte {offset} of disk {disk} are not a range of a machine's disk."""

    code = "BH-BLOCKS-RANGE"


class BlockSetUnusable(BackhaulError):
    """The set of changed blocks cannot be used: {reason}."""

    code = "BH-BLOCKS-UNUSABLE"
    fix = "Nothing is lost: the disks are compared by their hashes instead."


class BlockSet:
    """Blocks of 4 KiB of all disks of a machine; offsets and lengths are bytes."""

    def __init__(self) -> None:
        self._disks: dict[int, BitMap64] = {}

    def add_range(self, disk: int, offset: int, length: int) -> None:
        """Add every block that the range touches. Raises BlockRangeInvalid."""
        _check(disk, offset, length)
        if length:
            self._of(disk).add_range(offset // BLOCK, -(-(offset + length) // BLOCK))

    def discard_range(self, disk: int, offset: int, length: int, *, size: int | None = None) -> None:
        """Drop every block that lies wholly in the range; one that is only touched stays.

        `size`, bytes of the disk: needed to drop a last block that the disk fills only in part.
        Raises BlockRangeInvalid.
        """
        _check(disk, offset, length)
        end = offset + length
        last = -(-end // BLOCK) if size is not None and end >= size else end // BLOCK
        first = -(-offset // BLOCK)
        blocks = self._disks.get(disk)
        if blocks is not None and first < last:
            blocks.remove_range(first, last)
            if not blocks:
                del self._disks[disk]

    def update(self, other: BlockSet) -> None:
        """Add all blocks of `other`."""
        for disk, blocks in other._disks.items():
            self._of(disk).update(blocks)

    def difference_update(self, other: BlockSet) -> None:
        """Drop all blocks of `other`."""
        for disk in self._disks.keys() & other._disks.keys():
            self._disks[disk] -= other._disks[disk]
            if not self._disks[disk]:
                del self._disks[disk]

    def contains(self, disk: int, offset: int, length: int = 1) -> bool:
        """Whether every block that the range touches is in the set. Raises BlockRangeInvalid."""
        _check(disk, offset, length)
        blocks = self._disks.get(disk)
        if not length:
            return True
        return blocks is not None and blocks.contains_range(offset // BLOCK, -(-(offset + length) // BLOCK))

    def cardinality(self, disk: int | None = None) -> int:
        """Bytes of the blocks in the set, of one disk or of all."""
        if disk is not None:
            return len(self._disks.get(disk, ())) * BLOCK
        return sum(len(blocks) for blocks in self._disks.values()) * BLOCK

    def disks(self) -> list[int]:
        """Disks that have a block in the set, ascending."""
        return sorted(self._disks)

    def extents(self, *, max_length: int = CHUNK, sizes: Mapping[int, int] | None = None) -> Iterator[Extent]:
        """The set as extents, ascending by disk and offset, each as long as it can be up to `max_length` bytes.

        `sizes`, bytes of each disk: an extent ends where its disk does, and what lies behind is left out.
        `max_length` is a multiple of 4 KiB, else BlockRangeInvalid. The set may change meanwhile: what is added
        or dropped behind the newest extent is seen, what lies before it is not.
        """
        if max_length < BLOCK or max_length % BLOCK:
            raise BlockRangeInvalid(disk="any", offset=0, length=max_length)
        return self._walk(max_length // BLOCK, sizes)

    def _walk(self, most: int, sizes: Mapping[int, int] | None) -> Iterator[Extent]:
        for disk in self.disks():
            end = MAX_DISK_BYTES if sizes is None or disk not in sizes else sizes[disk]
            block = 0
            while (run := _next_run(self._disks.get(disk), block, most)) is not None:
                first, count = run
                if first * BLOCK >= end:
                    break
                yield Extent(disk, first * BLOCK, min(count * BLOCK, end - first * BLOCK))
                block = first + count

    def copy(self) -> BlockSet:
        """A set of its own with the same blocks."""
        result = BlockSet()
        result._disks = {disk: blocks.copy() for disk, blocks in self._disks.items()}
        return result

    def clear(self) -> None:
        """Drop all blocks."""
        self._disks.clear()

    def __bool__(self) -> bool:
        return bool(self._disks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockSet) and self._disks == other._disks

    def __repr__(self) -> str:
        return f"BlockSet({self.cardinality()} bytes on {len(self._disks)} disks)"

    def serialise(self) -> bytes:
        """The form above. Raises BlockSetUnusable when it would be over MAX_SERIALISED."""
        parts = [_HEAD.pack(_MAGIC, _VERSION, len(self._disks))]
        for disk, blocks in sorted(self._disks.items()):
            blocks.run_optimize()
            bitmap = blocks.serialize()
            parts += [_DISK.pack(disk, len(bitmap)), bitmap]
        body = b"".join(parts)
        if len(body) + _CHECK_BYTES > MAX_SERIALISED:
            raise BlockSetUnusable(reason=f"it takes {len(body)} bytes, over the bound of {MAX_SERIALISED}")
        return body + blake3(body).digest(length=_CHECK_BYTES)

    @staticmethod
    def deserialise(data: bytes) -> BlockSet:
        """The set that `serialise` wrote. Raises BlockSetUnusable; never takes more memory than `data` calls for."""
        if not _HEAD.size + _CHECK_BYTES <= len(data) <= MAX_SERIALISED:
            raise BlockSetUnusable(reason=f"{len(data)} bytes are out of bounds")
        magic, version, count = _HEAD.unpack_from(data)
        if magic != _MAGIC or version != _VERSION:
            raise BlockSetUnusable(reason=f"it begins with {magic!r} version {version}, not {_MAGIC!r} {_VERSION}")
        body = memoryview(data)[:-_CHECK_BYTES]
        if blake3(body).digest(length=_CHECK_BYTES) != data[-_CHECK_BYTES:]:
            raise BlockSetUnusable(reason="its checksum is wrong, it is torn or damaged")
        if count > MAX_DISKS:
            raise BlockSetUnusable(reason=f"{count} disks are over the bound of {MAX_DISKS}")
        result = BlockSet()
        rest = body[_HEAD.size :]
        for _ in range(count):
            disk, blocks, rest = _read_disk(rest)
            if disk in result._disks:
                raise BlockSetUnusable(reason=f"disk {disk} comes twice")
            result._disks[disk] = blocks
        if rest:
            raise BlockSetUnusable(reason=f"{len(rest)} bytes are left over")
        return result

    def _of(self, disk: int) -> BitMap64:
        return self._disks.setdefault(disk, BitMap64())


def _check(disk: int, offset: int, length: int) -> None:
    if not 0 <= disk < MAX_DISKS or offset < 0 or length < 0 or offset + length > MAX_DISK_BYTES:
        raise BlockRangeInvalid(disk=disk, offset=offset, length=length)


def _next_run(blocks: BitMap64 | None, block: int, most: int) -> tuple[int, int] | None:
    """First run at or behind `block`: its first block and its length, at most `most`; None behind the last.

    The end is found by doubling and halving steps, so that neither a lone block nor a full disk costs more than a
    few look-ups.
    """
    try:
        first = blocks.next_set_bit(block) if blocks else None
    except ValueError:  # how the library says that there is none
        return None
    if blocks is None or first is None:
        return None
    length = step = 1
    while length < most and blocks.contains_range(first + length, first + min(length + step, most)):
        length = min(length + step, most)
        step *= 2
    while step > 1 and length < most:
        step //= 2
        if length + step <= most and blocks.contains_range(first + length, first + length + step):
            length += step
    return first, length


def _read_disk(rest: memoryview) -> tuple[int, BitMap64, memoryview]:
    """One disk's number and blocks, and what follows them."""
    if len(rest) < _DISK.size:
        raise BlockSetUnusable(reason="it ends inside a disk's head")
    disk, length = _DISK.unpack_from(rest)
    bitmap, rest = rest[_DISK.size : _DISK.size + length], rest[_DISK.size + length :]
    try:
        blocks = BitMap64.deserialize(bytes(bitmap))
    except ValueError as error:
        raise BlockSetUnusable(reason=f"the bitmap of disk {disk}: {error}") from error
    if disk >= MAX_DISKS or len(bitmap) != length or not blocks or blocks.max() >= _MAX_BLOCKS:
        raise BlockSetUnusable(reason=f"the bitmap of disk {disk} is out of bounds")
    return disk, blocks, rest
