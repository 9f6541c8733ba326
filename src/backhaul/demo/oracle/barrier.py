"""Barriers: what images must hold at least. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from backhaul.demo.oracle.history import History, Incarnation


class _Kind(enum.Enum):
    NONE = enum.auto()
    AT_NS = enum.auto()
    AT_SEQUENCE = enum.auto()
    FINAL = enum.auto()


@dataclass(frozen=True)
class Barrier:
    """Everything acknowledged before it must be in the images; use the constructors below.

    `incarnation` 0 chooses by itself: the newest one (FINAL, AT_SEQUENCE), or the newest that had started (AT_NS).
    Name it where another line of writers, as in a test failover, logs into the same folder.
    """

    kind: _Kind = _Kind.NONE
    value: int = 0
    incarnation: int = 0

    @classmethod
    def none(cls) -> Barrier:
        """Any prefix will do."""
        return cls()

    @classmethod
    def at_ns(cls, wall_ns: int, incarnation: int = 0) -> Barrier:
        """What the log has as acknowledged before this wall clock of the writers, as in `EpochEnd.barrier_ns`."""
        return cls(_Kind.AT_NS, wall_ns, incarnation)

    @classmethod
    def at_sequence(cls, sequence: int, incarnation: int = 0) -> Barrier:
        """Every acknowledged write up to and including `sequence`, as answered by `quiesce`."""
        return cls(_Kind.AT_SEQUENCE, sequence, incarnation)

    @classmethod
    def final(cls, incarnation: int = 0) -> Barrier:
        """Every acknowledged write: the writers were stopped, as in a planned failover."""
        return cls(_Kind.FINAL, 0, incarnation)

    def chosen(self, history: History) -> Incarnation | None:
        """The incarnation whose writes are demanded; None if nothing is."""
        if self.kind is _Kind.NONE:
            return None
        if self.incarnation:
            return history.incarnations.get(self.incarnation)
        if self.kind is _Kind.AT_NS:
            started = [number for number, found in history.incarnations.items() if found.started_ns < self.value]
            return history.incarnations[max(started)] if started else None
        return history.newest

    def demands(self, incarnation: Incarnation, index: int) -> bool:
        """Whether the acknowledged write at `index` of the chosen incarnation must be in the images."""
        if self.kind is _Kind.AT_NS:
            return incarnation.acked_ns[index] < self.value
        if self.kind is _Kind.AT_SEQUENCE:
            return incarnation.first_sequence + index <= self.value
        return self.kind is _Kind.FINAL
