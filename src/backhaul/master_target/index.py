"""Where the before-images of an epoch lie.

Invariant: within one epoch a block occurs at most once (its first change wins). Runs are kept in sorted arrays of
36 bytes a run, in levels that are merged as they grow, so that adding costs little and looking up a few bisections.
Not locked: `Journal` guards it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from backhaul.master_target.records import HASH, HEAD, Before, Record, unpack_runs
from backhaul.replication.units import BLOCK

ZEROS: Final = 0
"""Segment number that stands for *the before-image is zero*."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive blocks whose before-images lie together (`segment` ZEROS: they are zero).

    at      offset of the first before-image in its segment
    hash_at offset of its hash there
    """

    first: int
    count: int
    segment: int
    at: int = 0
    hash_at: int = 0

    @property
    def end(self) -> int:
        """First block behind the piece."""
        return self.first + self.count

    def part(self, first: int, end: int) -> Piece:
        """The piece cut to [first, end)."""
        low, high = max(first, self.first), min(end, self.end)
        skip = low - self.first
        if self.segment == ZEROS:
            return Piece(low, high - low, ZEROS)
        return Piece(low, high - low, self.segment, self.at + skip * BLOCK, self.hash_at + skip * HASH)


class _Level:
    """Sorted disjoint runs."""

    __slots__ = ("at", "count", "first", "hash_at", "segment")

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.first, self.count = array("Q"), array("Q")
        self.segment, self.at, self.hash_at = array("I"), array("Q"), array("Q")
        for piece in pieces:
            if (
                piece.segment == ZEROS
                and self.first
                and self.segment[-1] == ZEROS
                and self.first[-1] + self.count[-1] == piece.first
            ):
                self.count[-1] += piece.count
                continue
            self.first.append(piece.first)
            self.count.append(piece.count)
            self.segment.append(piece.segment)
            self.at.append(piece.at)
            self.hash_at.append(piece.hash_at)

    def __len__(self) -> int:
        return len(self.first)

    def piece(self, n: int) -> Piece:
        return Piece(self.first[n], self.count[n], self.segment[n], self.at[n], self.hash_at[n])

    def find(self, first: int, end: int) -> Iterator[Piece]:
        n = max(bisect_right(self.first, first) - 1, 0)
        while n < len(self.first) and self.first[n] < end:
            if self.first[n] + self.count[n] > first:
                yield self.piece(n).part(first, end)
            n += 1


class EpochIndex:
    """Before-images of one epoch, over all disks."""

    def __init__(self) -> None:
        self._levels: dict[int, list[_Level]] = {}

    def add(self, disk: int, pieces: list[Piece]) -> None:
        """Add pieces of blocks that the epoch does not have yet."""
        if not pieces:
            return
        levels = [*self._levels.get(disk, []), _Level(sorted(pieces, key=_first))]
        while len(levels) > 1 and len(levels[-2]) <= 2 * len(levels[-1]):
            newer, older = levels.pop(), levels.pop()
            both = [level.piece(n) for level in (older, newer) for n in range(len(level))]
            levels.append(_Level(sorted(both, key=_first)))
        self._levels[disk] = levels

    def find(self, disk: int, first: int, end: int) -> list[Piece]:
        """Pieces within blocks [first, end), ascending."""
        levels = self._levels.get(disk, ())
        found = [piece for level in levels for piece in level.find(first, end)]
        return sorted(found, key=_first) if len(levels) > 1 else found

    def missing(self, disk: int, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Ranges (first, end) within [first, end) of which the epoch has no before-image."""
        for piece in self.find(disk, first, end):
            if piece.first > first:
                yield first, piece.first
            first = piece.end
        if first < end:
            yield first, end

    def runs(self, disk: int) -> Iterator[tuple[int, int]]:
        """All ranges (first, end) that have a before-image; not in order."""
        for level in self._levels.get(disk, ()):
            for n in range(len(level)):
                yield level.first[n], level.first[n] + level.count[n]

    def disks(self) -> list[int]:
        """Disks that have any."""
        return sorted(self._levels)

    def blocks(self) -> int:
        """How many blocks have a before-image."""
        return sum(sum(level.count) for levels in self._levels.values() for level in levels)


def _first(piece: Piece) -> int:
    return piece.first


def resolve(indexes: Iterable[EpochIndex], disk: int, first: int, end: int) -> list[Piece]:
    """Before-images of [first, end) from epochs in ascending order: the first that has a block wins."""
    found: list[Piece] = []
    open_ranges = [(first, end)]
    for index in indexes:
        still: list[tuple[int, int]] = []
        for low, high in open_ranges:
            found += index.find(disk, low, high)
            still += index.missing(disk, low, high)
        open_ranges = still
        if not open_ranges:
            break
    return sorted(found, key=_first)


def pieces_of(record: Record, segment: int) -> dict[int, list[Piece]]:
    """The before-images that a placed CHANGES record brings, by disk."""
    found: dict[int, list[Piece]] = {}
    for run, payload_at, hash_at in unpack_runs(record.meta):
        if run.before is Before.ZERO:
            found.setdefault(run.disk, []).append(Piece(run.first, run.count, ZEROS))
        elif run.before is Before.STORED:
            at, check = record.payload_at + payload_at, record.offset + HEAD + hash_at
            found.setdefault(run.disk, []).append(Piece(run.first, run.count, segment, at, check))
    return found
