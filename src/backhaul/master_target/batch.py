"""What was staged, and the batch made of it: what to write to the journal, and what to the disks.

Invariant: within a batch no block occurs twice, so its records' order does not matter; nothing staged is forgotten
before its batch is in the journal. Used by the item's worker only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pyroaring import BitMap64

from backhaul.disks.contract import Buffer, Disk
from backhaul.master_target.crew import Crew
from backhaul.master_target.disk_blocks import CHUNK_BLOCKS, block_count, data_blocks, read_blocks
from backhaul.master_target.index import EpochIndex
from backhaul.master_target.records import HASH, MAX_RUN_BLOCKS, Before, New, Run, block_hashes, slice_run
from backhaul.replication.units import BATCH_BYTES, BLOCK

MAX_BATCH_RUNS: Final = 32_768
"""Twice the 4 KiB blocks of a full batch: bounds a batch of zeros, which has no bytes."""


@dataclass(slots=True)
class Staged:
    """An extent to be applied; `data` None for zeros. `first` and `end` are the blocks that it touches."""

    disk: int
    offset: int
    length: int
    data: Buffer | None
    frame: int

    @property
    def first(self) -> int:
        """First block touched."""
        return self.offset // BLOCK

    @property
    def end(self) -> int:
        """First block behind."""
        return block_count(self.offset + self.length)


class Stage:
    """Extents in the order they came. Bounded by whoever stages: `bytes` is what the data takes."""

    def __init__(self) -> None:
        self.extents: deque[Staged] = deque()
        self.bytes = 0

    def add(self, staged: Staged) -> None:
        """Take an extent."""
        self.extents.append(staged)
        self.bytes += len(staged.data) if staged.data is not None else 0

    def clear(self) -> None:
        """Forget all."""
        self.extents.clear()
        self.bytes = 0

    def advance(self, taken: int, rest: Staged | None) -> None:
        """Forget the first `taken` extents, and put the part of the last that was not taken in front again."""
        for _ in range(taken):
            gone = self.extents.popleft()
            self.bytes -= len(gone.data) if gone.data is not None else 0
        if rest is not None:
            self.extents.appendleft(rest)


@dataclass(slots=True)
class Write:
    """Blocks to be written to a disk; `data` None for zeros."""

    disk: int
    first: int
    count: int
    data: Buffer | None


@dataclass(slots=True)
class Batch:
    """A batch in hand. `taken` and `rest` say what of the stage it is; `applied` the newest frame whole with it."""

    runs: list[Run] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    taken: int = 0
    rest: Staged | None = None
    first_frame: int = 0
    applied: int = 0

    @property
    def journal_bytes(self) -> int:
        """At most what its records take."""
        each = sum(16 + len(run.hashes) + len(run.before_hashes) + run.stored_bytes for run in self.runs)
        return each + 2 * BLOCK + each // BLOCK


class Planner:
    """Makes a batch of what is staged, reading what will be overwritten."""

    def __init__(
        self, disks: Sequence[Disk], sizes: Sequence[int], key: bytes, index: EpochIndex, crew: Crew, *, undoable: bool
    ) -> None:
        """`index`: before-images the epoch has; `undoable`: whether it needs any; `crew` reads them."""
        self._disks, self._sizes, self._key, self._index, self._crew = disks, sizes, key, index, crew
        self._undoable = undoable
        self._unread: list[Run] = []
        self._batch = Batch()
        self._bytes = 0
        self._touched: dict[int, BitMap64] = {}

    def plan(self, stage: Stage, *, whole: bool, applied: int) -> Batch:
        """The next batch; the stage is not changed. `whole`: the last frame is staged in full.

        Raises DiskReadFailed.
        """
        batch = self._batch
        batch.first_frame = stage.extents[0].frame
        for staged in stage.extents:
            if self._overlaps(staged) or self._full():
                break
            batch.taken += 1
            if staged.data is None:
                batch.rest = self._take_zeros(staged)
                if batch.rest is not None:
                    break
            else:
                self._take_data(staged, staged.data)
        self._crew.each(self._read_before, self._unread)
        last = stage.extents[batch.taken - 1].frame
        following = batch.rest or (stage.extents[batch.taken] if batch.taken < len(stage.extents) else None)
        is_whole = following.frame != last if following else whole
        batch.applied = max(applied, last if is_whole else last - 1)
        return batch

    def _full(self) -> bool:
        return self._bytes >= BATCH_BYTES or len(self._batch.runs) >= MAX_BATCH_RUNS

    def _overlaps(self, staged: Staged) -> bool:
        touched = self._touched.setdefault(staged.disk, BitMap64())
        return bool(touched and touched.range_cardinality(staged.first, staged.end))

    def _touch(self, disk: int, first: int, end: int) -> None:
        self._touched[disk].add_range(first, end)

    def _take_data(self, staged: Staged, data: Buffer) -> None:
        disk, first, end = staged.disk, staged.first, staged.end
        data = self._in_blocks(staged, data)
        self._touch(disk, first, end)
        hashes = block_hashes(self._key, data)
        for run in self._runs(disk, first, end, New.DATA):
            at = (run.first - first) * HASH
            run.hashes = hashes[at : at + run.count * HASH]
            self._add(run)
        self._batch.writes.append(Write(disk, first, end - first, data))
        self._bytes += len(data)

    def _in_blocks(self, staged: Staged, data: Buffer) -> Buffer:
        """The data in whole blocks: what it does not cover of its first and last block is read from the disk."""
        head = staged.offset % BLOCK
        tail = (staged.end * BLOCK - staged.offset - staged.length) % BLOCK
        if not head and not tail:
            return data
        blocks = bytearray((staged.end - staged.first) * BLOCK)
        disk = self._disks[staged.disk]
        if head:
            blocks[:BLOCK] = read_blocks(disk, staged.first, 1)
        if tail and staged.offset + staged.length < self._sizes[staged.disk]:
            blocks[-BLOCK:] = read_blocks(disk, staged.end - 1, 1)
        blocks[head : head + staged.length] = data
        return blocks

    def _take_zeros(self, staged: Staged) -> Staged | None:
        """What is left of the extent when the batch is full; zeros have whole blocks (`split_zeros`)."""
        done = staged.first
        for run in self._runs(staged.disk, staged.first, staged.end, New.ZERO):
            self._add(run)
            done = run.first + run.count
            self._bytes += run.stored_bytes
            if self._full():
                break
        self._touch(staged.disk, staged.first, done)
        self._batch.writes.append(Write(staged.disk, staged.first, done - staged.first, None))
        if done >= staged.end:
            return None
        end = staged.offset + staged.length
        return Staged(staged.disk, done * BLOCK, end - done * BLOCK, None, staged.frame)

    def _add(self, run: Run) -> None:
        self._batch.runs.append(run)

    def _runs(self, disk: int, first: int, end: int, new: New) -> Iterator[Run]:
        """Runs over the range in order, each with its before-image; hashes of new data are not set yet."""
        limit = MAX_RUN_BLOCKS if new is New.DATA else 1 << 31  # a run's count has 32 bits
        for run in self._before(disk, first, end, new):
            if run.before is Before.STORED:
                yield run
                continue
            for at in range(run.first, run.first + run.count, limit):
                yield slice_run(run, at, min(limit, run.first + run.count - at))

    def _before(self, disk: int, first: int, end: int, new: New) -> Iterator[Run]:
        if not self._undoable:
            yield Run(disk, first, end - first, new, Before.NONE)
            return
        for low, high in self._index.missing(disk, first, end):
            if first < low:
                yield Run(disk, first, low - first, new, Before.NONE)
            yield from self._images(disk, low, high, new)
            first = high
        if first < end:
            yield Run(disk, first, end - first, new, Before.NONE)

    def _images(self, disk: int, first: int, end: int, new: New) -> Iterator[Run]:
        for low, high in data_blocks(self._disks[disk], first, end):
            if first < low:
                yield Run(disk, first, low - first, new, Before.ZERO)
            for at in range(low, high, CHUNK_BLOCKS):
                run = Run(disk, at, min(CHUNK_BLOCKS, high - at), new, Before.STORED)
                self._unread.append(run)
                yield run
            first = high
        if first < end:
            yield Run(disk, first, end - first, new, Before.ZERO)

    def _read_before(self, run: Run) -> None:
        data = read_blocks(self._disks[run.disk], run.first, run.count)
        if data == bytes(len(data)):
            run.before = Before.ZERO
        else:
            run.before_hashes, run.stored = block_hashes(self._key, data), [data]


def split_zeros(staged: Staged, size: int) -> Iterator[Staged]:
    """An extent of zeros as whole blocks, and its ends that are not whole as data. `size` of the disk in bytes."""
    start, end = staged.offset, staged.offset + staged.length
    low = min(-(-start // BLOCK) * BLOCK, end)
    high = end if end >= size else max(end // BLOCK * BLOCK, low)
    for at, stop in ((start, low), (high, end)):
        if at < stop:
            yield Staged(staged.disk, at, stop - at, bytes(stop - at), staged.frame)
    if low < high:
        yield Staged(staged.disk, low, high - low, None, staged.frame)
