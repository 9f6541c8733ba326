"""The prefix property through real processes: at every retained point, failed over and home again, and when the link is
cut while the machine writes on.

Random writers overwrite two disks all the time; points are made by the application's quiesce script.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.demo.oracle import Barrier
from backhaul.demo.oracle.history import load_history
from backhaul.disks.raw_file import create_raw_file
from backhaul.replication.control import AgentMode, Method
from backhaul.replication.units import BLOCK, GRANULE, MiB
from backhaul.replication.values import StillKind
from dataplane.plane import Machine
from dataplane.processes.judging import check_every_point
from dataplane.processes.plane import CountingProxy, ProcessPlane, running_processes
from dataplane.processes.writers import Writer, writing
from links.faultproxy import Direction

SIZE = 2 * MiB
LEAST = 6
"""Points at least that the oracle judges."""

WRITES_ON = 200
"""Writes that are acknowledged behind the cut, before anybody fails over."""

TRIES = 50
SETTLED_S = 0.3


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ProcessPlane]:
    async with running_processes(tmp_path) as running:
        yield running


async def points_made(plane: ProcessPlane, machine: Machine, count: int) -> None:
    """Wait for so many more points."""
    status = await plane.status(machine.item)
    await plane.complete_after(machine.item, (status.complete.number if status.complete else 0) + count - 1)


def new_disks(plane: ProcessPlane) -> list[Path]:
    """Of the machine at home."""
    disks = [plane.folder / f"web-{index}.img" for index in range(2)]
    for disk in disks:
        create_raw_file(disk, SIZE)
    return disks


def acknowledged(writer: Writer) -> int:
    """Newest write that the writer's log has as acknowledged, by whatever incarnation."""
    newest = load_history(writer.log).newest
    assert newest is not None
    return newest.newest_acknowledged


async def test_every_retained_point_forward_and_home(plane: ProcessPlane, seed: int, deep: bool) -> None:
    disks = new_disks(plane)
    async with writing(plane.folder / "writer", "web", disks, seed, blocks=SIZE // BLOCK) as writer:
        machine = await plane.protect("web", [SIZE, SIZE], disks=disks, still=writer.plan)
        await points_made(plane, machine, 40 if deep else 10)
        await writer.stop()
        await machine.agent.stop()
        points = await check_every_point(plane, machine, writer)
    assert {point.kind for point in points} == {StillKind.FROZEN}
    assert len(points) >= 10, "the oracle had something to judge"

    await go_on_in_the_cloud_and_come_home(plane, machine, writer, seed, 30 if deep else LEAST)


async def go_on_in_the_cloud_and_come_home(
    plane: ProcessPlane, machine: Machine, writer: Writer, seed: int, count: int
) -> None:
    """The writer goes on upon the replica's writable layer; the old disks become its replica: every point of it is
    judged while the writer goes on; then that is canceled, and a final point made.
    """
    cloud = [plane.folder / f"cloud-{index}.img" for index in range(2)]
    for replica, layer in zip(plane.replicas(machine), cloud, strict=True):
        shutil.copyfile(replica, layer)
    away = Writer(writer.folder, "web", cloud)  # another incarnation in the same log
    await away.start(seed + 1, blocks=SIZE // BLOCK)
    try:
        home = await plane.protect(
            "wez", [SIZE, SIZE], disks=cloud, paths=[str(disk) for disk in machine.disks], still=away.plan
        )
        await points_made(plane, home, count)
        points = await check_every_point(plane, home, away, machine.disks)
        assert len(points) >= count, "the oracle had something to judge"
        assert {point.kind for point in points} == {StillKind.FROZEN}
        await plane.request(Method.ITEM_GO_TO, item=home.item, point=points[-1].number)
        report = away.check(machine.disks, Barrier.at_ns(points[-1].barrier_ns))
        assert report.incarnation == 2, "the second writer's work is at home"
        assert report.missing > 0, "it has written on since"
        await replicate_again(plane, home, 3)
        await away.stop()
        await make_final(plane, home, away)
    finally:
        await away.stop()
    report = away.check(machine.disks, Barrier.final())
    assert report.missing == 0
    assert report.incarnation == 2, "the second writer's work came home"
    for layer, disk in zip(cloud, machine.disks, strict=True):
        assert layer.read_bytes() == disk.read_bytes()


async def replicate_again(plane: ProcessPlane, machine: Machine, generation: int) -> None:
    """As a cancel has it: another generation, the same machine, and it makes points again."""
    await plane.request(Method.ITEM_RAISE, descriptor=plane.descriptor_of(machine, generation=generation))
    again = msgspec.structs.replace(plane.assigned(machine), generation=generation)
    await machine.control.set(machine.name, again)
    await points_made(plane, machine, 2)


async def make_final(plane: ProcessPlane, machine: Machine, writer: Writer) -> None:
    """The last point of a writer that has stopped, which needs no script."""
    plan = msgspec.structs.replace(writer.plan, stopped=True)
    final = msgspec.structs.replace(plane.assigned(machine), mode=AgentMode.FINAL, still=plan)
    await machine.control.set(machine.name, final)

    async def is_final() -> bool:
        return (await plane.status(machine.item)).final

    await plane.until(is_final, "the final point at home")


@pytest.mark.parametrize("cut", ["to the process server", "to the target"])
async def test_an_unplanned_failover_while_the_link_is_cut_and_the_machine_writes_on(
    plane: ProcessPlane, seed: int, deep: bool, cut: str
) -> None:
    """To the newest point, and to each older one, with the writer running all the time. What it wrote behind the cut
    is lost, no more; and when the link is whole again, what waited behind it changes nothing.
    """
    disks = new_disks(plane)
    async with writing(plane.folder / "writer", "web", disks, seed, blocks=SIZE // BLOCK) as writer:
        machine = await plane.protect("web", [SIZE, SIZE], disks=disks, still=writer.plan)
        await points_made(plane, machine, 30 if deep else LEAST)
        link = plane.by_agent if cut == "to the process server" else plane.by_target
        direction: Direction = (
            "up" if link is plane.by_agent else "down"
        )  # the target dials, and frames come down to it
        await cut_within_an_epoch(plane, machine, link, direction, random.Random(seed))
        passed, behind = dict(link.passed), acknowledged(writer)

        async def wrote_on() -> bool:
            return acknowledged(writer) >= behind + WRITES_ON

        await plane.until(wrote_on, "the machine writes on")
        points = await check_every_point(plane, machine, writer)
        assert len(points) >= LEAST, "the oracle had something to judge"
        newest = points[-1]
        await plane.request(Method.ITEM_GO_TO, item=machine.item, point=newest.number)
        report = writer.check(plane.replicas(machine), Barrier.at_ns(newest.barrier_ns))
        assert report.missing >= WRITES_ON, "what was written behind the cut is lost: nothing else proves the cut"
        assert dict(link.passed) == passed, "nothing passed meanwhile"
        before = [replica.read_bytes() for replica in plane.replicas(machine)]
        link.resume()
        await plane.until(lambda: refused(plane, machine), "the old machine hears that it was failed over")
        assert acknowledged(writer) > behind + WRITES_ON, "it had written all the time"
    assert [replica.read_bytes() for replica in plane.replicas(machine)] == before
    assert (await plane.points(machine.item))[: len(points)] == points


async def cut_within_an_epoch(
    plane: ProcessPlane, machine: Machine, link: CountingProxy, direction: Direction, chance: random.Random
) -> None:
    """Cut the link by a count of bytes, so that some blocks of an epoch are in the replica and others never come."""
    for _ in range(TRIES):
        link.after(direction, chance.randrange(GRANULE, MiB), link.stall)
        await plane.until(lambda: is_cut(link), "the link is cut")
        before = None
        while before != (before := (await plane.status(machine.item)).applied):  # noqa: ASYNC110
            await asyncio.sleep(SETTLED_S)  # what has passed is still being applied
        if (await plane.status(machine.item)).started_epoch:
            return
        link.resume()
    raise AssertionError(f"not within an epoch in {TRIES} cuts")


async def is_cut(link: CountingProxy) -> bool:
    """Whether the armed cut has happened."""
    return link.done


async def refused(plane: ProcessPlane, machine: Machine) -> bool:
    """Whether the agent says so now."""
    reports = plane.reports(machine)
    return bool(reports) and reports[-1].code == "BH-TARGET-REFUSED"
