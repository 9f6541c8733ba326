"""The granule maps of a replica, durable. Specification: docs/spec/journal.md.

Invariant: a granule is never taken for known after an opening unless no batch newer than what the stored map covers
wrote it. Records that say so may be dropped only after `save_marks`. Marks and saves are made by the item's worker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from blake3 import blake3
from pyroaring import BitMap

from backhaul.master_target.disk_blocks import block_count
from backhaul.master_target.errors import JournalWriteFailed
from backhaul.replication.maps import GranuleMap, MapUnusable
from backhaul.replication.ports import Files
from backhaul.replication.units import BLOCK, GRANULE
from backhaul.replication.values import ItemId

_MARKS: Final = struct.Struct("!4sHQ")
_CHECK: Final = 16


class MapStore:
    """One map per disk."""

    def __init__(self, files: Files, folder: Path, item: ItemId, key: bytes, sizes: Sequence[int]) -> None:
        self._files, self._folder, self._item, self._key = files, folder, item, key
        self.maps = [GranuleMap.unknown(size, key) for size in sizes]
        self._covered = [0] * len(sizes)
        self._written = [BitMap() for _ in sizes]

    def start(self, *, zeros: bool) -> None:
        """A new replica; `zeros`: its disks are known to read as zeros."""
        if zeros:
            self.maps = [GranuleMap.all_zero(known.size, self._key) for known in self.maps]
            self.save(0)

    def load(self) -> None:
        """Read what is stored; a map that is missing or cannot be used knows nothing. Raises OSError."""
        for disk, unknown in enumerate(self.maps):
            content = self._read(self._path(disk))
            try:
                if content is None:
                    continue
                stored = GranuleMap.decode(content, self._key)
            except MapUnusable:
                continue  # nothing is lost: all of it stays stale
            if stored.size > unknown.size:
                continue
            if stored.size < unknown.size:
                stored.grow(unknown.size)
            self.maps[disk] = stored
            self._covered[disk] = stored.covers
            self._load_marks(disk, stored)

    def _load_marks(self, disk: int, stored: GranuleMap) -> None:
        content = self._read(self._marks_path(disk))
        if content is None:
            return
        body, check = content[:-_CHECK], content[-_CHECK:]
        covered = -1
        if blake3(body).digest(length=_CHECK) == check and len(body) >= _MARKS.size:
            covered = _MARKS.unpack_from(body)[2]
        if covered < 0:
            stored.mark_all_stale()
        elif covered > stored.covers:
            for first, end in _runs(BitMap.deserialize(body[_MARKS.size :])):
                self._mark_bytes(disk, first * GRANULE, (end - first) * GRANULE)
            self._covered[disk] = covered

    def replay(self, disk: int, first: int, count: int, batch: int) -> None:
        """A record of `batch` says that the blocks were written."""
        if batch > self._covered[disk]:
            self.mark(disk, first, count)

    def mark(self, disk: int, first: int, count: int) -> None:
        """The blocks are being, or have been, written."""
        self._mark_bytes(disk, first * BLOCK, count * BLOCK)

    def _mark_bytes(self, disk: int, offset: int, length: int) -> None:
        known = self.maps[disk]
        end = min(offset + length, known.size)
        if offset < end:
            known.mark_stale(offset, end - offset)
            self._written[disk].add_range(offset // GRANULE, -(-end // GRANULE))

    def save(self, batch: int) -> None:
        """Store the maps, as covering all up to `batch`. Raises JournalWriteFailed."""
        for disk, known in enumerate(self.maps):
            known.covers = batch
            # Marks that another thread's reader clears meanwhile were cleared rightly: only this thread writes.
            self._replace(self._path(disk), known.encode())
            self._remove(self._marks_path(disk))
            self._written[disk] = BitMap()
            self._covered[disk] = batch

    def save_marks(self, batch: int) -> None:
        """Store which granules were written since the maps were stored, before records up to `batch` are dropped.

        Raises JournalWriteFailed.
        """
        for disk, written in enumerate(self._written):
            if written:
                written.run_optimize()
                body = _MARKS.pack(b"BHMS", 1, batch) + written.serialize()
                self._replace(self._marks_path(disk), body + blake3(body).digest(length=_CHECK))

    def void(self) -> None:
        """Nothing is known of the disks any more, durably. Raises JournalWriteFailed."""
        for disk, known in enumerate(self.maps):
            self._remove(self._path(disk))
            self._remove(self._marks_path(disk))
            known.mark_all_stale()
            self._written[disk] = BitMap()

    def grow(self, disk: int, size: int) -> None:
        """The disk has `size` bytes now; the new part is stale."""
        if size > self.maps[disk].size:
            first = block_count(self.maps[disk].size) - 1
            self.maps[disk].grow(size)
            self.mark(disk, first, block_count(size) - first)

    def _path(self, disk: int) -> Path:
        return self._folder / str(disk)

    def _marks_path(self, disk: int) -> Path:
        return self._folder / f"{disk}.stale"

    def _read(self, path: Path) -> bytes | None:
        try:
            return self._files.read(path)
        except FileNotFoundError:
            return None

    def _replace(self, path: Path, content: bytes) -> None:
        try:
            self._files.replace(path, content)
        except OSError as error:
            raise JournalWriteFailed(item=self._item, cause=error) from error

    def _remove(self, path: Path) -> None:
        try:
            self._files.remove(path)
        except OSError as error:
            raise JournalWriteFailed(item=self._item, cause=error) from error


def _runs(granules: BitMap) -> Iterator[tuple[int, int]]:
    """The set as ranges (first, behind the last); one by one, the 33 million granules of 2 TiB would take a minute."""
    last, end = 0, granules.max() + 1 if granules else 0
    others = granules.flip(0, end + 1)
    while last < end:
        first = granules.next_set_bit(last)
        last = others.next_set_bit(first)
        yield first, last
