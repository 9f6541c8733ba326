"""Which recovery points thinning may drop: a pure decision, taken by the master target before it merges epochs.

Invariant: never the newest point, never a pinned or leased one, and the same points again when nothing new came
(what is kept once in its slot stays the one kept). The master target does not ask between failover and commit or
cancel. Times are UTC nanoseconds, so that daylight saving changes nothing. A clock that steps may keep points
longer than the policy says but never empties a history; points from the future are thinned by the count alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from backhaul.recovery.policies import ReplicationPolicy

_NS = 1_000_000_000


class RetainedPoint(NamedTuple):
    """A point for the decision. `pinned`: by an operator, by a reprotect, or leased by an open view."""

    number: int
    barrier_ns: int
    pinned: bool = False


def to_drop(points: Sequence[tuple[int, int, bool]], policy: ReplicationPolicy, now_ns: int) -> list[int]:
    """Numbers of the points to drop, oldest first.

    points   (number, barrier in ns of the source's wall clock, pinned or leased), in any order
    now_ns   wall clock of the target; it only ever shortens ages

    A point's age is measured against the newest point, not against now: while a source is silent its history stays
    whole, as that is when it is needed; and a target whose clock jumped ahead drops nothing for it.
    """
    ordered = [RetainedPoint(*point) for point in sorted(points)]
    if not ordered:
        return []
    newest = ordered[-1]
    reference_ns = min(now_ns, newest.barrier_ns)
    free = [point for point in ordered[:-1] if not point.pinned]
    dropped = _too_old(free, policy, reference_ns)
    dropped |= _thinned(ordered, free, policy, reference_ns)
    kept = [point for point in free if point.number not in dropped]
    surplus = len(ordered) - len(dropped) - policy.retention_points
    dropped.update(point.number for point in kept[: max(0, surplus)])
    return sorted(dropped)


def _too_old(free: Sequence[RetainedPoint], policy: ReplicationPolicy, reference_ns: int) -> set[int]:
    limit_ns = round(policy.retention_s * _NS)
    return {point.number for point in free if reference_ns - point.barrier_ns > limit_ns}


def _thinned(
    ordered: Sequence[RetainedPoint], free: Sequence[RetainedPoint], policy: ReplicationPolicy, reference_ns: int
) -> set[int]:
    """All but the first point of each slot. Slots are fixed in time, and a coarser one is made of whole finer ones,
    so the first point of a slot was also the first of the finer slot it has come from."""
    taken: set[tuple[int, int]] = set()
    dropped: set[int] = set()
    free_numbers = {point.number for point in free}
    for point in ordered:
        every_s = policy.spacing_s(max(0, reference_ns - point.barrier_ns) / _NS)
        if every_s <= 0:
            continue
        slot = (round(every_s * _NS), point.barrier_ns // round(every_s * _NS))
        if slot not in taken:
            taken.add(slot)
        elif point.number in free_numbers:
            dropped.add(point.number)
    return dropped
