"""Resync, rebind and the end of a protection on real local sites and a real data plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.configuration_server.lifecycle import ending
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.recovery.item import Report, Side, State
from backhaul.recovery.states import step
from backhaul.replication.control import AgentMode, Assignment, ItemReport, Method
from backhaul.replication.units import GRANULE
from backhaul.sites.contract import PowerOff
from backhaul.sites.values import MachineDisk, MachineRequest, PowerState
from lifecycle.real_world import ITEM, LOOK_S, RealWorld, real_world

OTHER_ID = "5c0e9d52-1111-4222-8333-944445555666"


@pytest.fixture
async def world(tmp_path: Path, seed: int) -> AsyncIterator[RealWorld]:
    async with real_world(tmp_path, seed) as running:
        yield running


def contents(world: RealWorld, side: Side) -> list[bytes]:
    """What the side's disks hold."""
    return [image.read_bytes() for image in world.images(side)]


def stop_machine(world: RealWorld) -> None:
    """Nobody writes any more, so the replica is to become equal and stay so."""
    world.site("home").power_off(world.stored.home.machine, PowerOff.HARD, token="stopped")


def flip_a_bit(image: Path) -> None:
    """Behind everybody's back."""
    with image.open("r+b") as file:
        file.seek(3 * GRANULE + 4097)
        byte = file.read(1)[0]
        file.seek(3 * GRANULE + 4097)
        file.write(bytes([byte ^ 1]))


async def report_of(world: RealWorld, machine: str, generation: int) -> ItemReport:
    """The first report of the machine that says that it has compared under this generation."""
    async with asyncio.timeout(60):
        while True:
            for report in world.reports("agent-home", machine):
                for item in report.items:
                    compared = item.state == "replicating" and item.fence is not None
                    if compared and item.fence is not None and item.fence.generation == generation:
                        return item
            await asyncio.sleep(LOOK_S)  # polls what an agent reports once a second


async def first_report(world: RealWorld, machine: str) -> ItemReport:
    """The first that the machine's agent says of the item."""
    async with asyncio.timeout(60):
        while True:
            for report in world.reports("agent-home", machine):
                if report.items:
                    return report.items[0]
            await asyncio.sleep(LOOK_S)  # polls what an agent reports once a second


def noted(world: RealWorld, report: Report) -> None:
    """The control plane notes what an agent reported."""
    world.stored = msgspec.structs.replace(world.stored, state=step(world.stored.state, report))


async def test_a_resync_finds_what_was_changed_behind_the_targets_back(world: RealWorld) -> None:
    await world.job(w.PROTECT)
    await world.points(3)
    stop_machine(world)
    await world.points(2)
    truth = contents(world, Side.HOME)
    assert contents(world, Side.CLOUD) == truth
    known = {"item": ITEM, "disk": 1, "first": 0, "count": 1, "reread": False}
    await world.request("mt-cloud", Method.ITEM_DIGESTS, known)  # the target's map knows all of it from now on
    flip_a_bit(world.images(Side.CLOUD)[1])
    await world.points(3)
    assert contents(world, Side.CLOUD) != truth, "nobody looks where nothing was written"
    before = {point.number for point in await world.recovery_points()}

    await world.job(w.RESYNC)
    assert world.now() is State.VERIFYING
    found = await report_of(world, world.stored.home.machine, 2)
    assert [disk.differing for disk in found.disks] == [0, GRANULE], "the one granule, and nothing else"
    noted(world, Report.COMPARED)
    await world.points(1)
    assert world.now() is State.PROTECTED
    assert contents(world, Side.CLOUD) == truth
    assert before <= {point.number for point in await world.recovery_points()}, "older points stay"


async def test_a_changed_machine_id_is_a_copy_until_it_is_bound_by_name(world: RealWorld) -> None:
    await world.job(w.PROTECT)
    await world.points(2)
    stop_machine(world)
    old = world.stored.home.machine
    rename_machine(world)
    held = world.held("agent-home", old)
    told = held.current.items[0]
    await held.set(OTHER_ID, msgspec.structs.replace(told, mode=AgentMode.STANDBY))
    await world.start_agent("agent-home", OTHER_ID, Assignment(1, old, (told,)))
    stream = (await world.status("mt-cloud")).fence
    assert (await first_report(world, OTHER_ID)).state == "standby"
    assert (await world.status("mt-cloud")).fence == stream, "it asked for no stream"
    noted(world, Report.COPY_FOUND)

    await world.job(w.REBIND, Wish(machine=OTHER_ID))
    await report_of(world, OTHER_ID, 2)
    noted(world, Report.COMPARED)
    status = await world.points(2)
    assert (status.descriptor.active_machine, status.descriptor.generation) == (OTHER_ID, 2)
    assert contents(world, Side.CLOUD) == contents(world, Side.HOME)


def rename_machine(world: RealWorld) -> None:
    """The machine at home is defined anew, under another id, on its own disks."""
    site, place = world.site("home"), world.stored.home
    site.delete_machine(place.machine, token="renamed-away")
    parts = tuple(MachineDisk(disk) for disk in place.disks)
    request = MachineRequest(
        place.name, "prod", place.network, "default", place.command, parts, address=place.address, machine_id=OTHER_ID
    )
    site.create_machine(request, token="renamed")


async def test_the_end_leaves_nothing_of_the_replica_and_all_of_the_machine(world: RealWorld) -> None:
    await world.job(w.PROTECT)
    await world.points(2)
    assert len(world.site("cloud").disks()) == 2
    own = {disk.id for disk in world.site("home").disks()}
    await world.job(ending.DISABLE)
    assert world.forgotten
    assert world.site("cloud").disks() == ()
    assert {disk.id for disk in world.site("home").disks()} == own
    assert [machine.power for machine in world.site("home").machines()] == [PowerState.RUNNING]
    assert await world.request("mt-cloud", Method.ITEM_LIST, {}) == []
    assert not (world.folder / "mt-cloud" / "items" / ITEM).exists()
    spool = await world.request("ps-home", Method.STATUS, {})
    assert (spool["backlog_bytes"], [item["agent_connected"] for item in spool["items"]]) == (0, [False])


async def test_an_end_towards_home_gives_the_old_disks_back(world: RealWorld) -> None:
    await world.job(w.PROTECT)
    await world.points(2)
    await world.job(w.PLANNED)
    await world.job(w.COMMIT)
    await world.job(w.REPROTECT)
    await world.points(2)
    old, machine = world.stored.home.disks, world.stored.home.machine
    await world.job(ending.DISABLE)
    assert {disk.id: disk.holder for disk in world.site("home").disks()} == dict.fromkeys(old, f"machine:{machine}")
    assert [one.power for one in world.site("cloud").machines()] == [PowerState.RUNNING]
    assert await world.request("mt-home", Method.ITEM_LIST, {}) == []
    world.site("home").power_on(machine, token="alive")
    assert world.site("home").power_state(machine) is PowerState.RUNNING
