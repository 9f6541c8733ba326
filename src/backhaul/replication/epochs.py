"""The order of epochs at a target: which record may follow which.

Invariant: the chain of COMPLETE epochs has no hole and no branch, an interrupted epoch is continued under the same
number and names its earlier tries, and no end is accepted before every compare of its try has ended. Pure; used by
the target's session on what the agent sends and by the agent to make the next begin.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backhaul.replication.errors import EpochViolation
from backhaul.replication.records import Frame
from backhaul.replication.values import (
    NO_LINEAGE,
    CompletePoint,
    EpochBegin,
    EpochEnd,
    Hash,
    ItemDescriptor,
)


@dataclass
class EpochOrder:
    """Where an item stands.

    complete   newest COMPLETE epoch, None when there is none
    tries      begins of the epoch that has started and not ended, oldest first
    running    whether the newest try belongs to the open stream (a new stream must begin again)
    """

    complete: CompletePoint | None = None
    tries: list[EpochBegin] = field(default_factory=list)
    running: bool = False

    @property
    def interrupted(self) -> tuple[Hash, ...]:
        """What the next begin must name: the newest try, which names the one before it."""
        return tuple(begin.digest() for begin in self.tries[-1:])

    @property
    def next_number(self) -> int:
        """Number of the epoch that is running or comes next."""
        return self.complete.number + 1 if self.complete else 1

    @property
    def next_previous(self) -> Hash:
        """Lineage that the running or next epoch must name."""
        return self.complete.lineage if self.complete else NO_LINEAGE

    def check(self, descriptor: ItemDescriptor, frame: Frame, stream: int) -> None:
        """Take the frame's records in their order. Raises EpochViolation; the order is unchanged then."""
        begin, tries, running = frame.begin, self.tries, self.running
        if begin is not None and not self._is_running(begin):
            self._check_begin(descriptor, begin, stream)
            tries, running = [*tries, begin], True
        if (frame.extents or frame.end) and not running:
            raise self._violation(descriptor, "data or an end", "no epoch has begun in this stream")
        self._check_extents(descriptor, frame)
        if frame.ask is not None and frame.ask.disk >= len(descriptor.disks):
            raise self._violation(descriptor, f"a question about disk {frame.ask.disk}", "there is no such disk")
        complete = self.complete
        if frame.end is not None:
            self._check_end(descriptor, frame.end, tries[-1])
            complete = CompletePoint(frame.end.number, frame.end.lineage())
            tries, running = [], False
        self.complete, self.tries, self.running = complete, tries, running

    def reopened(self) -> None:
        """A new stream was opened: what had begun is interrupted."""
        self.running = False

    def _is_running(self, begin: EpochBegin) -> bool:
        """Whether this very begin was taken before: a target that was killed while it applied a frame has the begin in
        its journal and not yet what came with it, and gets the same frame again.
        """
        return self.running and begin == self.tries[-1]

    def _check_begin(self, descriptor: ItemDescriptor, begin: EpochBegin, stream: int) -> None:
        if self.running:
            raise self._violation(descriptor, f"begin of epoch {begin.number}", "an epoch is running")
        expected = (self.next_number, self.next_previous, self.interrupted, stream)
        if (begin.number, begin.previous, begin.interrupted, begin.stream) != expected:
            raise self._violation(descriptor, f"begin of epoch {begin.number}", f"epoch {expected[0]} is due")
        if any(disk >= len(descriptor.disks) for disk in begin.compares):
            raise self._violation(descriptor, f"begin of epoch {begin.number}", "it compares a disk the item lacks")

    def _check_extents(self, descriptor: ItemDescriptor, frame: Frame) -> None:
        for extent in frame.extents:
            if extent.disk >= len(descriptor.disks) or extent.end > descriptor.disks[extent.disk].size:
                where = f"{extent.length} bytes at {extent.offset} of disk {extent.disk}"
                raise self._violation(descriptor, where, "the item has no such place")

    def _check_end(self, descriptor: ItemDescriptor, end: EpochEnd, begin: EpochBegin) -> None:
        if end.number != begin.number or end.begin != begin.digest():
            raise self._violation(descriptor, f"end of epoch {end.number}", f"epoch {begin.number} is running")
        if sorted(end.compared) != sorted(begin.compares):
            raise self._violation(descriptor, f"end of epoch {end.number}", "not every compare has ended")

    @staticmethod
    def _violation(descriptor: ItemDescriptor, what: str, reason: str) -> EpochViolation:
        return EpochViolation(item=descriptor.item, what=what, reason=reason)
