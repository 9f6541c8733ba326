"""Recovery points of a journal: listing them, pinning them, and what differs from them.

Invariant: a point that is listed or pinned can be reached byte for byte. Used by the item's worker only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from backhaul.disks.contract import Buffer
from backhaul.master_target.contract import RecoveryPoint
from backhaul.master_target.errors import PinRefused, PointUnknown
from backhaul.master_target.index import ZEROS
from backhaul.master_target.journal import Epoch, Journal
from backhaul.master_target.manifest import MAX_PINS
from backhaul.master_target.records import HASH
from backhaul.replication.blocks import BlockSet
from backhaul.replication.units import BLOCK
from backhaul.replication.values import (
    Consistency,
    EpochBegin,
    EpochEnd,
    EpochReason,
    Extent,
    ExtentKind,
    StillKind,
)


def recovery_points(journal: Journal) -> list[RecoveryPoint]:
    """Points that can be reached, oldest first."""
    floor = journal.manifest.floor
    return [_point(e, e.end) for e in journal.epochs if e.end is not None and e.number >= floor]


def _point(epoch: Epoch, end: EpochEnd) -> RecoveryPoint:
    return RecoveryPoint(
        number=epoch.number,
        barrier_ns=end.barrier_ns,
        kind=end.kind,
        consistency=end.consistency,
        lineage=end.lineage(),
        label=end.label,
        frozen_us=end.frozen_us,
        final=end.final,
        completed_ns=epoch.completed_ns,
        bytes=sum(segment.end for segment in epoch.segments),
    )


def check_state(journal: Journal, state: int) -> None:
    """Raises PointUnknown unless the state can be reached."""
    if not journal.reachable(state):
        raise PointUnknown(item=journal.item, point=state)


def pin(journal: Journal, name: str, point: int | None) -> int:
    """Keep a state, durably; None: the newest. Raises PointUnknown, PinRefused, and as `Journal.swap`."""
    newest = journal.complete
    state = point if point is not None else newest.number if newest else 0
    check_state(journal, state)
    pins = journal.manifest.pins
    if pins.get(name, state) != state:
        raise PinRefused(item=journal.item, name=name, reason=f"it holds point {pins[name]}")
    if name not in pins and len(pins) >= MAX_PINS:
        raise PinRefused(item=journal.item, name=name, reason=f"there are {MAX_PINS} already")
    journal.swap(msgspec.structs.replace(journal.manifest, pins={**pins, name: state}))
    return state


def release(journal: Journal, name: str) -> None:
    """End a pin, durably. Raises as `Journal.swap`."""
    pins = {other: state for other, state in journal.manifest.pins.items() if other != name}
    journal.swap(msgspec.structs.replace(journal.manifest, pins=pins))


def needed_bytes(journal: Journal, point: int) -> int:
    """Bytes that the journal needs, at most, to go to `point`. Raises PointUnknown."""
    check_state(journal, point)
    blocks = sum(epoch.index.blocks() for epoch in journal.epochs if epoch.number > point)
    return blocks * (BLOCK + 2 * HASH + 16) + 4 * BLOCK


def changed_since(journal: Journal, point: int) -> BlockSet:
    """Blocks that were written since `point`."""
    changed = BlockSet()
    for epoch in journal.epochs:
        if epoch.number > point:
            for disk in epoch.index.disks():
                for first, end in epoch.index.runs(disk):
                    changed.add_range(disk, first * BLOCK, (end - first) * BLOCK)
    return changed


def contents_at(
    journal: Journal, point: int, extent: Extent, sizes: Sequence[int]
) -> Iterator[tuple[Extent, Buffer | None]]:
    """What the blocks of `extent` were at `point`, where they were changed since. Raises as `before_image`."""
    first = extent.offset // BLOCK
    end = first - (-extent.length // BLOCK)
    with journal.lookup(point, extent.disk, first, end) as pieces:
        for piece in pieces:
            offset = piece.first * BLOCK
            length = min(piece.count * BLOCK, sizes[extent.disk] - offset)
            if piece.segment == ZEROS:
                yield Extent(extent.disk, offset, length, ExtentKind.ZERO), None
            else:
                data = journal.before_image(piece, extent.disk, point)
                yield Extent(extent.disk, offset, length), memoryview(data)[:length]


def undo_begin(complete: Epoch, end: EpochEnd, now_ns: int, point: int) -> EpochBegin:
    """The begin of an epoch that goes to another point."""
    return EpochBegin(complete.number + 1, end.lineage(), (), 0, now_ns, EpochReason.UNDO, str(point))


def undo_end(journal: Journal, begin: EpochBegin, point: int) -> EpochEnd:
    """Its end: the disks are what they were at `point`, so it is as consistent as that was."""
    target = next((epoch.end for epoch in journal.epochs if epoch.number == point), None)
    if target is None:  # the disks before the first epoch: nobody wrote them
        return EpochEnd(begin.number, begin.digest(), begin.begun_ns, StillKind.STOPPED, Consistency.CRASH)
    return EpochEnd(
        begin.number, begin.digest(), target.barrier_ns, target.kind, target.consistency, label=target.label
    )
