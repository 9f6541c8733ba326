"""Spool, journal and replica that are full or fail: held back without loss, and going on once that is mended.

A failed sync ends the service's process instead; starting it again recovers.
"""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from backhaul.disks.raw_file import create_raw_file
from backhaul.links.errors import LinkLost
from backhaul.replication.control import Method
from backhaul.replication.units import MiB
from backhaul.replication.values import ItemPolicy
from dataplane.plane import POLICY, Machine, Plane, RequestFailed, writable
from dataplane.processes.plane import ProcessPlane, Service, running_processes
from dataplane.processes.stepped import SteppedPlane, running_stepped
from dataplane.processes.steps import FAIL_AT

SIZE = 16 * MiB


@pytest.fixture
async def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SteppedPlane]:
    async with running_stepped(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[ProcessPlane]:
    async with running_processes(tmp_path) as running:
        yield running


async def fill(image: Path, seed: int, length: int = 4 * MiB, offset: int = 0) -> None:
    with await writable(image) as file:
        file.seek(offset)
        file.write(random.Random(seed).randbytes(length))


async def protected(plane: Plane, seed: int, policy: ItemPolicy = POLICY) -> Machine:
    """A machine with some data, replicated."""
    image = plane.folder / "web-0.img"
    create_raw_file(image, SIZE)
    await fill(image, seed, SIZE)
    machine = await plane.protect("web", [SIZE], disks=[image], policy=policy)
    await plane.caught_up(machine)
    return machine


def equal(plane: Plane, machine: Machine) -> bool:
    return machine.disks[0].read_bytes() == plane.replicas(machine)[0].read_bytes()


async def waits(plane: Plane, machine: Machine, code: str) -> None:
    """The target says why it holds back."""

    async def says() -> bool:
        return (await plane.status(machine.item)).waiting == code

    await plane.until(says, f"the target waits with {code}")


# --- a full journal ---------------------------------------------------------------------------------------------------

JOURNAL = 10 * MiB
PART = 4 * MiB
"""Two parts' before-images fit the journal; a pin keeps all three."""


async def filled_journal(plane: SteppedPlane, seed: int) -> Machine:
    """An item whose pin keeps more before-images than its journal takes."""
    bounded = msgspec.structs.replace(POLICY, journal_bytes=JOURNAL)
    machine = await protected(plane, seed, bounded)
    await plane.request(Method.ITEM_PIN, item=machine.item, name="kept", point=None)
    for part in range(2):
        await fill(machine.disks[0], seed + 1 + part, PART, part * PART)
        await plane.caught_up(machine)
    await fill(machine.disks[0], seed + 3, PART, 2 * PART)
    await waits(plane, machine, "BH-JOURNAL-FULL")
    await plane.reported_code(machine, "BH-JOURNAL-FULL")
    newest = await plane.newest(machine)
    await plane.reported_code(machine, "BH-JOURNAL-FULL")
    assert await plane.newest(machine) == newest, "no point while it is full"
    assert (await plane.status(machine.item)).journal_bytes <= JOURNAL
    return machine


async def test_a_full_journal_waits_until_a_pin_is_released(plane: SteppedPlane, seed: int) -> None:
    machine = await filled_journal(plane, seed)
    stream = (await plane.status(machine.item)).fence.stream
    await plane.request(Method.ITEM_RELEASE, item=machine.item, name="kept")
    await plane.caught_up(machine)
    status = await plane.status(machine.item)
    assert (status.waiting, status.fence.stream) == ("", stream), "the same stream goes on"
    assert equal(plane, machine)


async def test_a_full_journal_waits_until_its_bound_is_raised(plane: SteppedPlane, seed: int) -> None:
    machine = await filled_journal(plane, seed)
    pinned = (await plane.status(machine.item)).pins["kept"]
    raised = plane.descriptor_of(machine, policy=msgspec.structs.replace(POLICY, journal_bytes=64 * MiB))
    await plane.request(Method.ITEM_RAISE, descriptor=raised)
    await plane.caught_up(machine)
    assert equal(plane, machine)
    await machine.agent.stop()
    await plane.promote(machine, 2)
    await plane.request(Method.ITEM_GO_TO, item=machine.item, point=pinned)
    assert plane.replicas(machine)[0].read_bytes() == random.Random(seed).randbytes(SIZE)


async def test_a_full_journal_outlives_a_restart_of_its_target(plane: SteppedPlane, seed: int) -> None:
    machine = await filled_journal(plane, seed)
    await plane.target.stop()
    await plane.target.start()
    await waits(plane, machine, "BH-JOURNAL-FULL")
    await plane.request(Method.ITEM_RELEASE, item=machine.item, name="kept")
    await plane.caught_up(machine)
    assert equal(plane, machine)


# --- what cannot be written -------------------------------------------------------------------------------------------

WAITING = (
    ("journal.write", errno.ENOSPC, "BH-JOURNAL-FULL"),
    ("journal.write", errno.EIO, "BH-JOURNAL-WRITE-FAILED"),
    ("disk.write", errno.ENOSPC, "BH-DISK-FULL"),
    ("disk.write", errno.EIO, "BH-DISK-WRITE"),
    ("disk.read", errno.EIO, "BH-DISK-READ"),
)


@pytest.mark.parametrize(("step", "number", "code"), WAITING, ids=[f"{s}-{errno.errorcode[n]}" for s, n, _ in WAITING])
async def test_a_target_that_cannot_write_waits_and_loses_nothing(
    plane: SteppedPlane, seed: int, step: str, number: int, code: str
) -> None:
    machine = await protected(plane, seed)
    stream = (await plane.status(machine.item)).fence.stream
    plane.at_target.fail(step, number)
    await fill(machine.disks[0], seed + 1)
    await waits(plane, machine, code)
    await plane.reported_code(machine, code)
    assert step in plane.at_target.fired
    plane.at_target.mend()
    await plane.caught_up(machine)
    status = await plane.status(machine.item)
    assert (status.waiting, status.fence.stream) == ("", stream), "the same stream goes on"
    assert equal(plane, machine)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
async def test_a_process_server_that_cannot_write_holds_back_and_loses_nothing(
    plane: SteppedPlane, seed: int, number: int
) -> None:
    machine = await protected(plane, seed)
    plane.at_relay.fail("spool.write", number)
    await fill(machine.disks[0], seed + 1)

    async def refused_twice() -> bool:
        return plane.at_relay.fired.count("spool.write") >= 2

    await plane.until(refused_twice, "the spool could not be written")
    plane.at_relay.mend()
    await plane.caught_up(machine)
    assert equal(plane, machine)
    assert (await plane.status(machine.item)).fence.stream == 1, "the same stream goes on"


@pytest.mark.parametrize(
    "step", ["manifest.replace", "journal.replace", "maps.replace", "fence.replace", "item.replace"]
)
async def test_an_item_that_cannot_be_made_leaves_nothing(plane: SteppedPlane, seed: int, step: str) -> None:
    plane.at_target.fail(step, errno.ENOSPC)
    image = plane.folder / "web-0.img"
    create_raw_file(image, SIZE)
    if step == "manifest.replace":
        plane.at_target.fail("journal.make_folder", errno.ENOSPC)
    with pytest.raises(RequestFailed) as refusal:
        await plane.protect("web", [SIZE], disks=[image])
    assert refusal.value.code in ("BH-ITEM-NOT-MADE", "BH-JOURNAL-WRITE-FAILED")
    assert plane.at_target.fired
    plane.at_target.mend()
    await plane.target.stop()
    await plane.target.start()
    assert await plane.request(Method.ITEM_LIST) == []
    await fill(image, seed)
    machine = await plane.protect("web", [SIZE], disks=[image])
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def test_one_item_that_cannot_be_opened_keeps_no_other_from_going_on(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    other = await plane.protect("db", [MiB])
    await plane.caught_up(other)
    await plane.target.stop()
    lost = plane.replicas(machine)[0]
    lost.rename(lost.with_name("away"))
    await plane.target.start()
    with pytest.raises(RequestFailed) as refusal:
        await plane.status(machine.item)
    assert refusal.value.code == "BH-DISK-MISSING"
    await plane.caught_up(other)
    lost.with_name("away").rename(lost)
    await plane.until(lambda: _is_served(plane, machine), "the item is served again")
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def _is_served(plane: Plane, machine: Machine) -> bool:
    try:
        return bool(await plane.status(machine.item))
    except RequestFailed:
        return False


async def test_an_item_that_cannot_be_opened_can_be_deleted(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    await plane.target.stop()
    plane.replicas(machine)[0].unlink()
    await plane.target.start()
    await plane.request(Method.ITEM_DELETE, item=machine.item, keep_disks=False)
    assert await plane.request(Method.ITEM_LIST) == []
    assert list((plane.folder / "target" / "items").iterdir()) == []


# --- what ends the process --------------------------------------------------------------------------------------------

FATAL = (
    ("target", "journal.sync:2", "EIO"),
    ("target", "disk.sync:1", "EIO"),  # what is written may fit one batch, and then no second one comes
    ("relay", "spool.sync:2", "EIO"),
)


@pytest.mark.parametrize(("who", "step", "name"), FATAL, ids=[step for _, step, _ in FATAL])
async def test_a_failed_sync_ends_the_process_and_a_restart_recovers(
    processes: ProcessPlane, seed: int, who: str, step: str, name: str
) -> None:
    machine = await protected(processes, seed)
    service = processes.service(who, machine)
    points = await processes.points(machine.item)
    await ended_by(service, f"{step}:{name}", lambda: fill(machine.disks[0], seed + 1))
    await service.start()
    await processes.caught_up(machine)
    assert equal(processes, machine)
    kept = {point.number: point for point in await processes.points(machine.item)}
    assert all(kept[point.number] == point for point in points)
    assert processes.compares(machine) == 1


async def ended_by(service: Service, failure: str, act: Callable[[], Awaitable[None]]) -> None:
    """Start it again with a call that will fail; it ends by itself, and not by a signal."""
    await service.quit()
    service.environment[FAIL_AT] = failure
    await service.start(may_end=True)
    await act()
    assert await service.ended() == 1
    assert f"fired {failure.split(':')[0]}" in service.log.read_text()


async def test_without_space_for_the_fence_an_opening_waits_and_the_others_go_on(
    plane: SteppedPlane, seed: int
) -> None:
    machine, other = await protected(plane, seed), await plane.protect("mail", [MiB])
    await plane.caught_up(other)
    await machine.agent.stop()
    plane.at_target.fail("fence.replace", errno.ENOSPC)
    await machine.agent.start()
    await plane.reported_code(machine, "BH-TARGET-REFUSED")
    await plane.caught_up(other)
    plane.at_target.mend()
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def test_a_failed_sync_of_the_fence_ends_the_target(processes: ProcessPlane, seed: int) -> None:
    """What decides who may write is stored before anything follows from it."""
    machine = await protected(processes, seed)
    await processes.target.quit()
    processes.target.environment[FAIL_AT] = "fence.replace:1:EIO"
    await processes.target.start()
    agent = processes.service("agent", machine)
    await agent.quit()
    await agent.start()
    assert await processes.target.ended() == 1
    await processes.target.start()
    await fill(machine.disks[0], seed + 1)
    await processes.caught_up(machine)
    assert equal(processes, machine)


async def test_a_sync_that_fails_in_a_control_request_ends_the_target_too(processes: ProcessPlane, seed: int) -> None:
    machine = await protected(processes, seed)
    await machine.agent.stop()
    await processes.target.quit()
    processes.target.environment[FAIL_AT] = "fence.replace:1:EIO"
    await processes.target.start()
    with pytest.raises(LinkLost):
        await processes.promote(machine, 2)
    assert await processes.target.ended() == 1
    await processes.target.start()
    assert (await processes.promote(machine, 2)).promoted
    assert equal(processes, machine)
