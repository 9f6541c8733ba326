"""Trackers over a simulated machine: the right one, and three that are broken on purpose.

A write goes through five stages: issued by the writer, marked at submission, on the medium, marked at completion,
acknowledged. A seeded schedule interleaves the stages of all writes in flight with the steps of the replication
(barrier, read a block, test for a conflict), which is where trackers go wrong. The right tracker follows the cut of
reference/change-tracking.md; the oracle must never flag it, and must catch the others. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

from backhaul.demo.oracle.acklog import Region
from backhaul.demo.oracle.history import History, Incarnation
from backhaul.demo.oracle.stamps import Content, ContentKind, disk_and_block, machine_tag, place

_NS_PER_POSITION: Final = 1000
_LATE_STEPS: Final = 12  # how much happens between the barriers of two disks in the tracker that has one per disk
_PAUSE_STEPS: Final = 40  # at most between two points
_ROUNDS: Final = 8  # with conflicts, then no write is let in until a round has none


class CutTracker:
    """Right: marks at submission and completion, all disks exchanged in one step."""

    def __init__(self) -> None:
        self.submitted: set[int] = set()
        self.completed: set[int] = set()

    def submit(self, where: int) -> None:
        """A write is handed to the medium."""
        self.submitted.add(where)

    def complete(self, where: int) -> None:
        """The medium has it; its writer does not know yet."""
        self.completed.add(where)

    def conflicts(self, where: int) -> bool:
        """Whether a write of the block was submitted since the last exchange."""
        return where in self.submitted

    def exchange(self) -> Generator[None, None, set[int]]:
        """Begin new marks and answer the old ones. The barrier is behind the first yield; more take time."""
        yield
        marks = self.submitted | self.completed
        self.submitted, self.completed = set(), set()
        return marks


class SubmissionOnlyTracker(CutTracker):
    """Broken: a write that was submitted before the barrier and lands after its block was read is never sent."""

    def complete(self, where: int) -> None:
        """Not marked."""


class LosingTracker(CutTracker):
    """Broken: marks made between copying and clearing are lost."""

    def exchange(self) -> Generator[None, None, set[int]]:
        """Copy, let time pass, clear."""
        yield
        marks = self.submitted | self.completed
        yield
        self.submitted, self.completed = set(), set()
        return marks


class LateTracker(CutTracker):
    """Broken: each disk has a barrier of its own, the second one late."""

    def exchange(self) -> Generator[None, None, set[int]]:
        """Exchange disk 0, let time pass, exchange disk 1."""
        yield
        first = self._take(0)
        for _ in range(_LATE_STEPS):
            yield
        return first | self._take(1)

    def _take(self, disk: int) -> set[int]:
        marks = {where for where in self.submitted | self.completed if disk_and_block(where)[0] == disk}
        self.submitted -= marks
        self.completed -= marks
        return marks


@dataclass
class _Write:
    index: int
    where: int
    stage: int = 0


@dataclass
class SimulatedMachine:
    """Disks whose writes go through their stages one step at a time."""

    tracker: CutTracker
    randomness: random.Random
    disks: int
    blocks: int
    depth: int
    media: dict[int, Content] = field(default_factory=dict)
    flying: list[_Write] = field(default_factory=list)
    position: int = 0
    frozen: bool = False

    def __post_init__(self) -> None:
        regions = [Region(disk, 0, self.blocks) for disk in range(self.disks)]
        tag = machine_tag("simulated")
        self.incarnation = Incarnation(1, 1, 0, machine=tag, regions=regions, ready=True)

    def step(self) -> None:
        """One thing happens: a write begins, or one in flight reaches its next stage."""
        if not self.frozen and len(self.flying) < self.depth and self.randomness.random() < 0.4:
            self._issue()
        elif self.flying:
            self._advance(self.randomness.choice(self.flying))

    def _issue(self) -> None:
        where = place(self.randomness.randrange(self.disks), self.randomness.randrange(self.blocks))
        if any(write.where == where for write in self.flying):
            return
        log = self.incarnation
        self.flying.append(_Write(len(log.places), where))
        log.places.append(where)
        log.issued_at.append(self._tick())
        log.acked_at.append(-1)
        log.acked_ns.append(0)

    def _advance(self, write: _Write) -> None:
        write.stage += 1
        if write.stage == 1:
            self.tracker.submit(write.where)
        elif write.stage == 2:
            self.media[write.where] = Content(ContentKind.STAMP, 1, write.index + 1)
        elif write.stage == 3:
            self.tracker.complete(write.where)
        else:
            self.flying.remove(write)
            self.incarnation.acked_at[write.index] = position = self._tick()
            self.incarnation.acked_ns[write.index] = position * _NS_PER_POSITION

    def _tick(self) -> int:
        self.position += 1
        return self.position


@dataclass(frozen=True)
class SimulatedPoint:
    """A recovery point as the target has it: what the blocks hold, and the barrier it claims."""

    contents: dict[int, Content]
    barrier_ns: int


def simulate(tracker: CutTracker, seed: int, points: int = 6) -> tuple[History, list[SimulatedPoint]]:
    """Run a machine under load and replicate it until there are `points` points; the same for the same seed."""
    randomness = random.Random(seed)
    machine = SimulatedMachine(
        tracker, randomness, disks=2, blocks=randomness.choice([4, 24]), depth=randomness.randint(1, 6)
    )
    load = randomness.uniform(0.3, 0.9)
    made: list[SimulatedPoint] = []
    replication = _replicate(machine)
    while len(made) < points:
        if randomness.random() < load:
            machine.step()
        elif (point := next(replication)) is not None:
            made.append(point)
    history = History(machine.incarnation.machine, {1: machine.incarnation})
    return history, made


def _replicate(machine: SimulatedMachine) -> Generator[SimulatedPoint | None, None, None]:
    """The cut, for ever: a point each time a round had no conflict, None at each other step. Blocks staged in a round
    that failed stay as read: those that changed since are marked, and are read again in the next.
    """
    replica: dict[int, Content] = {}
    staged: dict[int, Content | None] = {}
    rounds = 0
    while True:
        machine.frozen = rounds >= _ROUNDS
        if machine.frozen and machine.flying:
            yield None
            continue
        exchanging = machine.tracker.exchange()
        next(exchanging)
        barrier_ns = (machine.position + 1) * _NS_PER_POSITION
        marks = yield from exchanging
        rounds += 1
        conflict = False
        for where in machine.randomness.sample(sorted(marks), len(marks)):
            staged[where] = machine.media.get(where)
            yield None
            conflict = conflict or machine.tracker.conflicts(where)
        if not conflict:
            replica.update((where, content) for where, content in staged.items() if content is not None)
            staged.clear()
            rounds = 0
            machine.frozen = False
            for _ in range(machine.randomness.randrange(_PAUSE_STEPS)):
                yield None
            yield SimulatedPoint(dict(replica), barrier_ns)
        yield None
