"""RPO: the age of the newest recovery point that could be failed over to right now. Nothing else is called RPO.

Pure; called by the heartbeat of the configuration server with what the target itself reports of its points.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class PointAge(msgspec.Struct, frozen=True):
    """A recovery point as its target reports it. `barrier_ns` is the wall clock of the source.

    complete    its epoch is COMPLETE at the target (spooled or half applied ones are not)
    withdrawn   the journal below it is damaged, or its disks were handed out for writing
    """

    number: int
    barrier_ns: int
    complete: bool = True
    withdrawn: bool = False


class Rpo(msgspec.Struct, frozen=True):
    """`seconds` is None when no point could be failed over to, or nobody knows; `why` says which.

    clock_skew_s   by how much the newest point lies in the future; above 0 the figure is not to be trusted
    """

    seconds: float | None
    point: int | None = None
    clock_skew_s: float = 0.0
    why: str = ""


def rpo(points: Iterable[PointAge], now_ns: int, *, target_answers: bool = True) -> Rpo:
    """RPO at `now_ns` (wall clock). The newest point is the one with the highest number, whatever the clocks say."""
    if not target_answers:
        return Rpo(None, why="the target does not answer, so it is not known which points it still has")
    usable = [point for point in points if point.complete and not point.withdrawn]
    if not usable:
        return Rpo(None, why="there is no recovery point that could be failed over to")
    newest = max(usable, key=lambda point: point.number)
    age_s = (now_ns - newest.barrier_ns) / 1e9
    if age_s < 0:
        return Rpo(0.0, newest.number, -age_s, "the source's clock is ahead")
    return Rpo(age_s, newest.number)
