"""A machine's disks reach the replica through a process server, over real TLS, with recovery points."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.mobility.unconfirmed import Unconfirmed
from backhaul.replication.control import AgentMode, Method
from backhaul.replication.units import GRANULE, MiB
from backhaul.replication.values import EpochEnd
from dataplane.plane import Machine, Plane, running_plane, writable


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path) as running:
        yield running


async def fill(image: Path, seed: int, *ranges: tuple[int, int]) -> None:
    noise = random.Random(seed)
    with await writable(image) as file:
        for offset, length in ranges:
            file.seek(offset)
            file.write(noise.randbytes(length))


async def test_a_stopped_machine_is_replicated_with_all_its_disks(plane: Plane, seed: int) -> None:
    machine = await plane.protect("web", [8 * MiB, 4 * MiB + 512])
    await plane.complete_after(machine.item)
    await fill(machine.disks[0], seed, (0, GRANULE), (3 * MiB + 512, 100 * 1024))
    await fill(machine.disks[1], seed + 1, (4 * MiB, 512))
    await plane.caught_up(machine)
    for source, replica in zip(machine.disks, plane.replicas(machine), strict=True):
        assert source.read_bytes() == replica.read_bytes()


def assert_equal(plane: Plane, machine: Machine) -> None:
    for source, replica in zip(machine.disks, plane.replicas(machine), strict=True):
        assert source.read_bytes() == replica.read_bytes()


async def test_every_retained_point_is_reached_byte_for_byte(plane: Plane, seed: int) -> None:
    machine = await plane.protect("web", [2 * MiB, 2 * MiB])
    images: dict[int, list[bytes]] = {}
    for turn in range(4):
        await fill(machine.disks[turn % 2], seed + turn, (turn * GRANULE, 3 * GRANULE))
        status = await plane.caught_up(machine)
        assert status.complete is not None
        images[status.complete.number] = [disk.read_bytes() for disk in machine.disks]
    await machine.agent.stop()
    generation = 1
    for number, contents in list(images.items())[::-1]:
        generation += 1
        await plane.promote(machine, generation)
        await plane.request(Method.ITEM_GO_TO, item=machine.item, point=number)
        assert [replica.read_bytes() for replica in plane.replicas(machine)] == contents


MADE_APART = 6


async def test_points_made_while_the_way_is_interrupted_hold_what_their_barriers_say(
    plane: Plane, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They arrive late, in order, and every one of them: what the disk holds now is in none of the first so many."""
    made = 0
    real = Unconfirmed.ended

    def ended(self: Unconfirmed, end: EpochEnd) -> None:
        nonlocal made
        made += 1
        real(self, end)

    machine = await plane.protect("web", [2 * MiB])
    await fill(machine.disks[0], seed, (0, MiB))
    number = (await plane.caught_up(machine)).points
    before = machine.disks[0].read_bytes()
    await plane.relay.stop()
    monkeypatch.setattr(Unconfirmed, "ended", ended)

    async def made_apart() -> bool:
        return made >= MADE_APART

    await plane.until(made_apart, f"{MADE_APART} points while no process server is there")
    opened_ns = time.time_ns()
    await fill(machine.disks[0], seed + 1, (0, MiB))
    filled_ns = time.time_ns()
    await plane.relay.start()
    await plane.caught_up(machine)
    assert_equal(plane, machine)
    after = machine.disks[0].read_bytes()
    await machine.agent.stop()
    points = (await plane.points(machine.item))[number:]
    assert sum(point.barrier_ns < opened_ns for point in points) >= MADE_APART
    await plane.promote(machine, 2)
    for point in reversed(points):
        await plane.request(Method.ITEM_GO_TO, item=machine.item, point=point.number)
        held = plane.replicas(machine)[0].read_bytes()
        assert held == before or point.barrier_ns > opened_ns, point
        assert held == after or point.barrier_ns < filled_ns, point


@pytest.mark.parametrize("which", ["relay", "target", "both"])
async def test_a_restart_of_a_server_goes_on_without_a_compare(plane: Plane, which: str, seed: int) -> None:
    machine = await plane.protect("web", [4 * MiB])
    await plane.caught_up(machine)
    servers = {"relay": [plane.relay], "target": [plane.target], "both": [plane.relay, plane.target]}[which]
    for server in servers:
        await server.stop()
    await fill(machine.disks[0], seed, (0, MiB))
    for server in servers:
        await server.start()
    await plane.caught_up(machine)
    assert_equal(plane, machine)
    compared = {disk.compared for report in machine.control.reports for item in report.items for disk in item.disks}
    assert compared <= {0, 4 * MiB}, "the disk was compared once, at the start"


async def test_a_restarted_agent_compares_and_sends_only_what_differs(plane: Plane, seed: int) -> None:
    machine = await plane.protect("web", [16 * MiB])
    await fill(machine.disks[0], seed, (0, 8 * MiB))
    await plane.caught_up(machine)
    await machine.agent.stop()
    machine.control.reports.clear()
    await fill(machine.disks[0], seed + 1, (4 * MiB, GRANULE))
    await machine.agent.start()
    await plane.caught_up(machine)
    assert_equal(plane, machine)
    report = await plane.reported(machine)
    assert report.disks[0].compared == 16 * MiB
    assert 0 < report.disks[0].sent <= 2 * GRANULE


async def test_a_lost_spool_costs_the_unapplied_blocks_and_no_compare(plane: Plane, seed: int) -> None:
    machine = await plane.protect("web", [8 * MiB])
    await plane.caught_up(machine)
    await plane.target.stop()
    await fill(machine.disks[0], seed, (0, 4 * MiB))
    await plane.until(lambda: plane.spooled_bytes(2 * MiB), "frames in the spool while the target is away")
    await plane.relay.stop()
    shutil.rmtree(plane.folder / "relay")
    machine.control.reports.clear()
    await plane.relay.start()
    await plane.target.start()
    await plane.caught_up(machine)
    assert_equal(plane, machine)
    states = {item.state for report in machine.control.reports for item in report.items}
    assert "verifying" not in states


async def test_an_old_process_server_that_comes_back_changes_nothing(plane: Plane, seed: int) -> None:
    machine = await plane.protect("web", [4 * MiB])
    await plane.caught_up(machine)
    await plane.target.stop()
    await fill(machine.disks[0], seed, (0, 2 * MiB))
    await plane.until(lambda: plane.spooled_bytes(MiB), "frames in the spool")
    await plane.relay.stop()
    await machine.agent.stop()
    await plane.target.start()
    await plane.request(Method.ITEM_RAISE, descriptor=plane.descriptor_of(machine, generation=2))
    before = [replica.read_bytes() for replica in plane.replicas(machine)]
    await plane.relay.start()

    async def emptied() -> bool:
        return not await plane.spooled_bytes(1)

    await plane.until(emptied, "the spool forgets the closed stream")
    assert [replica.read_bytes() for replica in plane.replicas(machine)] == before


async def test_failed_over_and_home_again_with_only_differing_granules(plane: Plane, seed: int) -> None:
    """Both directions: the replica becomes the machine, and the old disks its replica at another target."""
    machine = await plane.protect("web", [16 * MiB])
    await fill(machine.disks[0], seed, (0, 8 * MiB))
    await plane.caught_up(machine)
    await machine.agent.stop()
    await plane.promote(machine, 2)
    cloud_disk = plane.folder / "cloud.img"
    shutil.copyfile(plane.replicas(machine)[0], cloud_disk)  # the writable layer the machine runs on
    await fill(cloud_disk, seed + 1, (MiB, 3 * GRANULE))
    home = await plane.protect("wez", [16 * MiB], disks=[cloud_disk], paths=[str(machine.disks[0])])
    await plane.caught_up(home)
    assert cloud_disk.read_bytes() == machine.disks[0].read_bytes()
    report = await plane.reported(home)
    assert report.disks[0].differing == 3 * GRANULE
    assert report.disks[0].sent == 3 * GRANULE


async def test_a_promoted_replica_takes_no_stream(plane: Plane) -> None:
    machine = await plane.protect("web", [MiB])
    await plane.caught_up(machine)
    await plane.promote(machine, 2)
    machine.control.reports.clear()

    async def refused() -> bool:
        return any(i.code == "BH-TARGET-REFUSED" for report in machine.control.reports for i in report.items)

    await plane.until(refused, "the agent reports the refusal")
    status = await plane.status(machine.item)
    assert status.promoted
    assert not status.stream_open


async def test_a_final_point_closes_the_stream_for_good(plane: Plane, seed: int) -> None:
    machine = await plane.protect("web", [2 * MiB])
    await fill(machine.disks[0], seed, (0, MiB))
    await machine.control.set("web", msgspec.structs.replace(plane.assigned(machine), mode=AgentMode.FINAL))

    async def final() -> bool:
        return (await plane.status(machine.item)).final

    await plane.until(final, "the final point")
    points = await plane.points(machine.item)
    assert points[-1].final
    assert_equal(plane, machine)
