"""Judging an item at its master target: every point it offers, by the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backhaul.demo.oracle import Barrier
from backhaul.replication.control import Method, PointStatus
from dataplane.plane import Machine, Plane
from dataplane.processes.writers import Writer


async def check_every_point(
    plane: Plane, machine: Machine, writer: Writer, replicas: Sequence[Path] | None = None
) -> list[PointStatus]:
    """Fail the item over, and go to each of its points, newest first: each holds everything acknowledged before its
    barrier, and nothing that was written after it. The points, oldest first. `replicas`: where the replica lies, if
    not in disks of the target's own.
    """
    generation = (await plane.status(machine.item)).fence.generation + 1
    await plane.promote(machine, generation)
    points = await plane.points(machine.item)
    for point in reversed(points):
        await plane.request(Method.ITEM_GO_TO, item=machine.item, point=point.number)
        report = writer.check(replicas or plane.replicas(machine), Barrier.at_ns(point.barrier_ns))
        assert report.newest is None or report.newest.wall_ns <= point.barrier_ns, "a write from after the point"
    return points
