"""Epochs that were sent and are not known to be COMPLETE, with the blocks of each.

Invariant: every block sent since the newest epoch known to be COMPLETE is in one of the sets, so a new stream can go
on from any COMPLETE epoch that is remembered here by marking the later sets as unknown to the target. Block sets are
kept until their epoch is COMPLETE. Used by one replicator, from the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from backhaul.replication.blocks import BlockSet
from backhaul.replication.maps import GranuleMap
from backhaul.replication.source import Opened
from backhaul.replication.values import NO_LINEAGE, CompletePoint, EpochBegin, EpochEnd, EpochReason, Extent, Hash


@dataclass
class _Epoch:
    """`point` is what it will be when it is COMPLETE; None while it runs."""

    sent: BlockSet = field(default_factory=BlockSet)
    point: CompletePoint | None = None
    barrier_ns: int = 0


class Unconfirmed:
    """See the module. The last of the epochs is the running one."""

    def __init__(self) -> None:
        self._epochs: deque[_Epoch] = deque([_Epoch()])
        self._base: CompletePoint | None = None
        self._comparable = False
        self._key = b""
        self._begun: set[Hash] = set()
        self.newest_barrier_ns = 0
        self.newest_epoch = 0

    def compared(self, opened: Opened) -> None:
        """All disks were compared in this stream: what was sent before it says nothing any more."""
        self._base, self._key = opened.complete, opened.granule_key
        self._comparable = True
        self._epochs = deque([_Epoch()])

    def forget(self) -> None:
        """Everything is being compared: until `compared` nothing may be gone on from, whatever becomes of it."""
        self._comparable = False

    def go_on_from(self, opened: Opened, maps: Mapping[int, GranuleMap]) -> bool:
        """Prepare `maps` for going on from the target's newest COMPLETE epoch; False: everything must be compared."""
        if not self._comparable or opened.granule_key != self._key:
            return False
        if opened.complete is None or not set(opened.interrupted) <= self._begun:
            return False  # nothing to reach back to; or somebody else has written to the started epoch
        if opened.complete != self._base:
            if not any(epoch.point == opened.complete for epoch in self._epochs):
                return False
            self.completed(opened.complete)
        for epoch in self._epochs:
            for extent in epoch.sent.extents(sizes={index: known.size for index, known in maps.items()}):
                maps[extent.disk].mark_stale(extent.offset, extent.length)
        self._epochs = deque([_Epoch()])
        return True

    def begin(
        self, opened: Opened, *, begun_ns: int, reason: EpochReason, tracker: str, compares: tuple[int, ...]
    ) -> EpochBegin:
        """Begin of the next epoch: after the newest that was ended here, or the next try of an interrupted one."""
        ended = [epoch.point for epoch in self._epochs if epoch.point is not None]
        before = ended[-1] if ended else self._base
        begin = EpochBegin(
            number=before.number + 1 if before else 1,
            previous=before.lineage if before else NO_LINEAGE,
            interrupted=opened.interrupted if before == opened.complete else (),
            stream=opened.fence.stream,
            begun_ns=begun_ns,
            reason=reason,
            tracker=tracker,
            compares=compares,
        )
        self._begun.add(begin.digest())
        return begin

    def sending(self, extents: Sequence[Extent]) -> None:
        """These blocks are about to be sent in the running epoch."""
        sent = self._epochs[-1].sent
        for extent in extents:
            sent.add_range(extent.disk, extent.offset, extent.length)

    def ended(self, end: EpochEnd) -> None:
        """The end of the running epoch was sent."""
        running = self._epochs[-1]
        running.point, running.barrier_ns = CompletePoint(end.number, end.lineage()), end.barrier_ns
        self._epochs.append(_Epoch())

    def completed(self, point: CompletePoint) -> None:
        """The target has `point`: its block set and all before are let go. Unknown points change nothing."""
        if not any(epoch.point == point for epoch in self._epochs):
            return
        while True:
            epoch = self._epochs.popleft()
            if epoch.point == point:
                break
        self._base = point
        self.newest_barrier_ns, self.newest_epoch = epoch.barrier_ns, point.number
