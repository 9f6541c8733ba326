"""As root: loop devices, mounted ext4, SQLite committing all the time, points by FIFREEZE, devices as replicas."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.demo.oracle import Barrier
from backhaul.replication.control import Method, PointStatus, StillImagePlan
from backhaul.replication.units import MiB
from backhaul.replication.values import Consistency, StillKind
from dataplane.plane import POLICY, Machine
from dataplane.processes.plane import ProcessPlane, running_processes
from dataplane.processes.volumes import check_database, committing, loops, make_ext4, mounted

pytestmark = pytest.mark.root

SIZE = 16 * MiB
FREEZING = StillImagePlan(stopped=False, freeze=True)
PATIENT = msgspec.structs.replace(POLICY, freeze_limit_s=10.0)
"""Frozen for longer than a product would on a machine that runs other tests meanwhile."""


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ProcessPlane]:
    async with running_processes(tmp_path) as running:
        yield running


async def more_points(plane: ProcessPlane, machine: Machine, count: int) -> None:
    status = await plane.status(machine.item)
    await plane.complete_after(
        machine.item, (status.complete.number if status.complete else 0) + count - 1, within_s=60
    )


async def test_every_frozen_point_mounts_with_all_that_was_committed_there_and_back(
    plane: ProcessPlane, seed: int, deep: bool
) -> None:
    images = [plane.folder / f"web-{index}.img" for index in range(2)]
    for image in images:
        make_ext4(image, SIZE)
    with loops(images) as devices:
        async with contextlib.AsyncExitStack() as running:
            points = running.enter_context(mounted(devices, plane.folder / "home"))
            log = await running.enter_async_context(committing(plane.folder / "writer", "web", points[0], seed))
            machine = await plane.protect("web", [SIZE, SIZE], disks=devices, still=FREEZING, policy=PATIENT)
            await more_points(plane, machine, 20 if deep else 5)
            await machine.agent.stop()
        assert len(await check_points(plane, machine, log, 2, plane.replicas(machine))) >= 5
        await come_home(plane, machine, log, devices, seed)


async def check_points(
    plane: ProcessPlane, machine: Machine, log: Path, generation: int, disks: list[Path]
) -> list[PointStatus]:
    """Fail the item over, and judge the database at each of its points, newest first. The points, oldest first."""
    await plane.promote(machine, generation)  # undoes what had begun after the newest
    offered = await plane.points(machine.item)
    assert {(point.kind, point.consistency) for point in offered} == {(StillKind.FROZEN, Consistency.FILE_SYSTEM)}
    for point in reversed(offered):
        await plane.request(Method.ITEM_GO_TO, item=machine.item, point=point.number)
        check_database(log, disks[0], plane.folder / "judged", Barrier.at_ns(point.barrier_ns))
    await plane.request(Method.ITEM_GO_TO, item=machine.item, point=offered[-1].number)
    return offered


async def come_home(plane: ProcessPlane, machine: Machine, log: Path, devices: list[Path], seed: int) -> None:
    """The machine goes on upon its writable layer; the old loop devices are its replica. (A final, stopped point is
    proved on images: where nobody may look at process 1, nobody can prove that a device has no writer.)
    """
    layers = [plane.folder / f"layer-{index}.img" for index in range(2)]
    for replica, layer in zip(plane.replicas(machine), layers, strict=True):
        shutil.copyfile(replica, layer)
    with loops(layers) as cloud:
        async with contextlib.AsyncExitStack() as running:
            points = running.enter_context(mounted(cloud, plane.folder / "cloud"))
            async with committing(plane.folder / "writer", "web", points[0], seed + 1):
                home = await plane.protect(
                    "wez",
                    [SIZE, SIZE],
                    disks=cloud,
                    paths=[str(device) for device in devices],
                    still=FREEZING,
                    policy=PATIENT,
                )
                await more_points(plane, home, 4)
            await more_points(plane, home, 2)  # the last one holds all that was committed
            await home.agent.stop()
        images = [plane.folder / f"web-{index}.img" for index in range(2)]
        offered = await check_points(plane, home, log, 2, images)
        assert len(offered) >= 5, "judged while SQLite committed, and once it had stopped"
        await plane.request(Method.ITEM_DELETE, item=home.item, keep_disks=False)
        assert all(device.is_block_device() for device in devices), "a device is its owner's, and stays"
    report = check_database(log, images[0], plane.folder / "judged", Barrier.final())
    assert report.incarnation == 2
    assert report.missing == 0
