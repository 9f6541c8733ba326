"""The one contract of a replica: what a master target's session needs of whatever holds an item's blocks.

Implemented by `Replica` (journalled, over raw files and block devices) and by the snapshotted kind (page blobs).
All calls block and come from the item's one worker thread, except reads of a view.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from backhaul.disks.contract import Buffer
from backhaul.replication.values import (
    CompletePoint,
    Consistency,
    EpochBegin,
    EpochEnd,
    Extent,
    Hash,
    StillKind,
)


@dataclass(frozen=True, slots=True)
class RecoveryPoint:
    """A state that can be failed over to. `bytes` is what the journal holds for its epoch."""

    number: int
    barrier_ns: int
    kind: StillKind
    consistency: Consistency
    lineage: Hash
    label: str
    frozen_us: int
    final: bool
    completed_ns: int
    bytes: int


@dataclass(frozen=True, slots=True)
class JournalRoom:
    """Room of the undo journal in bytes: held now, its bound (0: its volume), and what may still be appended."""

    used: int
    limit: int
    free: int


class View(Protocol):
    """One point, readable from any thread while replication goes on; it holds a leased pin until closed."""

    point: int

    def read_into(self, disk: int, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` with what the disk held at the point."""
        ...

    def close(self) -> None:
        """Give the lease back; calling it twice is no error."""
        ...


class ReplicaContract(Protocol):
    """Apply, complete, points, pin, go to, view."""

    @property
    def applied_frame(self) -> int:
        """Newest frame of stream `applied_stream` that is durable with all before it."""
        ...

    @property
    def applied_stream(self) -> int:
        """Stream that `applied_frame` counts; 0 before the first."""
        ...

    @property
    def newest_complete(self) -> CompletePoint | None:
        """What a stream may go on from; None when everything must be compared."""
        ...

    @property
    def tries(self) -> tuple[EpochBegin, ...]:
        """Begins of the epoch that has started and not ended, oldest first."""
        ...

    def begin(self, epoch: EpochBegin) -> None:
        """Begin, or continue, an epoch; durable on return. Raises EpochViolation."""
        ...

    def stage(self, extent: Extent, data: Buffer | None, frame: int) -> None:
        """Take an extent of `frame`; `data` must not change until the next `flush` returned."""
        ...

    def drop_staged(self) -> None:
        """Forget what was staged and not applied."""
        ...

    def flush(self) -> int:
        """Apply what was staged, durably; the newest frame applied."""
        ...

    def complete(self, end: EpochEnd, frame: int) -> None:
        """Flush, and make the state a recovery point."""
        ...

    def points(self) -> list[RecoveryPoint]:
        """Recovery points that can be reached, oldest first."""
        ...

    def undo_started(self) -> None:
        """Return to the state before the started epoch; nothing if none has started."""
        ...

    def go_to(self, point: int) -> None:
        """Make the disks what they were at `point`, as an epoch of its own."""
        ...

    def pin(self, name: str, point: int | None = None) -> int:
        """Keep a state against thinning, durably; None: the newest. Returns the state's number."""
        ...

    def release(self, name: str) -> None:
        """End a pin; one that is not there is no error."""
        ...

    def pins(self) -> dict[str, int]:
        """States that are pinned, by name."""
        ...

    def thin(self, keep: Collection[int]) -> int:
        """Keep these points (and pins, views, the newest) and drop the others; bytes freed."""
        ...

    def view(self, point: int) -> View:
        """Open a point for reading."""
        ...

    def doubt(self) -> None:
        """Maps are stale, durably, as somebody may have written the disks; points and pins stay."""
        ...

    def hand_out(self) -> None:
        """Before a disk is handed out for writing: points and pins end, maps are stale, durably."""
        ...

    def close(self) -> None:
        """Let go of files and disks; what was staged and not flushed is forgotten."""
        ...
