"""The other end, as far as a replica sees it: an item, and the begins, extents and ends of its epochs."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backhaul.master_target.replica import Replica
from backhaul.replication.units import BLOCK
from backhaul.replication.values import (
    NO_LINEAGE,
    Consistency,
    DiskIdentity,
    EpochBegin,
    EpochEnd,
    EpochReason,
    Extent,
    ExtentKind,
    Hash,
    ItemDescriptor,
    ItemId,
    ItemPolicy,
    StillKind,
)

from .worlds import MemoryDisk, MemoryFiles, SteppingClock, World

KEY = bytes(range(32))
FOLDER = Path("/replica")
SIZES = (24 * BLOCK, 9 * BLOCK + 3 * 512)
Image = tuple[bytes, ...]


def descriptor(sizes: Sequence[int] = SIZES, journal_bytes: int = 0) -> ItemDescriptor:
    """An item with disks of these sizes."""
    disks = tuple(DiskIdentity(n, f"d{n}", size) for n, size in enumerate(sizes))
    policy = ItemPolicy(journal_bytes=journal_bytes)
    return ItemDescriptor(ItemId("ab" * 16), 1, Hash(bytes(32)), 1, "t", "a", "m", disks, policy)


@dataclass
class Setup:
    """A replica in a world, with what its points must hold."""

    world: World = field(default_factory=World)
    sizes: Sequence[int] = SIZES
    stream: int = 1
    frame: int = 0
    images: dict[int, Image] = field(default_factory=dict)
    journal_bytes: int = 0

    def __post_init__(self) -> None:
        for size in self.sizes:
            MemoryDisk(self.world, size)
        self.clock = SteppingClock()
        self.images[0] = self.image()

    @property
    def files(self) -> MemoryFiles:
        return MemoryFiles(self.world)

    def create(self, *, fresh: bool = True) -> Replica:
        wanted = descriptor(self.sizes, self.journal_bytes)
        self.replica = Replica.create(FOLDER, wanted, self.world.disks, KEY, self.files, self.clock, fresh=fresh)
        return self.replica

    def open(self) -> Replica:
        self.replica = Replica.open(FOLDER, self.world.disks, self.files, self.clock)
        return self.replica

    def crash(self, seed: int = 0, keep: float = 0.0) -> Replica:
        """Lose the power and open again."""
        self.world.restart(random.Random(seed), keep)
        return self.open()

    def image(self) -> Image:
        return tuple(disk.image() for disk in self.world.disks)

    def begin(self, *, stream: int | None = None) -> EpochBegin:
        """The begin that is due."""
        self.stream = stream or self.stream
        complete, tries = self.replica.newest_complete, self.replica.tries
        must = self.replica.must_compare
        return EpochBegin(
            complete.number + 1 if complete else 1,
            complete.lineage if complete else NO_LINEAGE,
            tuple(begin.digest() for begin in tries[-1:]),
            self.stream,
            self.clock.wall_ns(),
            EpochReason.COMPARE if must else EpochReason.DELTA,
            "scan",
            tuple(range(len(self.sizes))) if must else (),
        )

    def end(self, label: str = "") -> EpochEnd:
        """The end that is due."""
        begin = self.replica.tries[-1]
        return EpochEnd(
            begin.number,
            begin.digest(),
            self.clock.wall_ns(),
            StillKind.FROZEN,
            Consistency.FILE_SYSTEM,
            label=label,
            compared=begin.compares,
        )

    def write(self, disk: int, block: int, fill: int, count: int = 1) -> None:
        """Stage blocks full of `fill` (0: as zeros) in a frame of their own."""
        self.frame += 1
        offset = block * BLOCK
        length = min(count * BLOCK, self.sizes[disk] - offset)
        if fill:
            self.replica.stage(Extent(disk, offset, length), bytes([fill]) * length, self.frame)
        else:
            self.replica.stage(Extent(disk, offset, length, ExtentKind.ZERO), None, self.frame)

    def epoch(self, *writes: tuple[int, ...]) -> int:
        """A whole epoch of writes; its number."""
        self.replica.begin(self.begin())
        for write in writes:
            self.write(*write)
        self.frame += 1
        self.replica.complete(self.end(), self.frame)
        newest = self.replica.newest_complete
        assert newest is not None
        self.images[newest.number] = self.image()
        return newest.number

    def numbers(self) -> list[int]:
        return [point.number for point in self.replica.points()]

    def read(self, point: int) -> Image:
        """All disks at a point, through the view's read."""
        parts = []
        for number, size in enumerate(self.sizes):
            buffer = bytearray(size)
            self.replica.read_at_point(point, number, 0, buffer)
            parts.append(bytes(buffer))
        return tuple(parts)

    def copy(self) -> Setup:
        """A world of its own that continues from what is durable here, opened."""
        self.world.crash_at = self.world.fail_at = 0
        replica, self.replica = self.replica, None  # type: ignore[assignment]
        other = copy.deepcopy(self)
        self.replica = replica
        other.open()
        other.replica._journal.limit_bytes = 0  # room for going to each point
        return other

    def check_points(self) -> None:
        """Every point, by view and by going to it: byte for byte what it was."""
        for number in self.numbers():
            assert self.read(number) == self.images[number], f"view of point {number}"
        if self.numbers():
            other = self.copy()
            other.replica.undo_started()
            newest = self.numbers()[-1]
            assert other.image() == self.images[newest], "undo of the started epoch"
            for number in [*other.numbers(), *reversed(other.numbers())]:
                other.replica.go_to(number)
                assert other.image() == self.images[number], f"go to point {number}"
