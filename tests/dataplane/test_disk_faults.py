"""Source disks that cannot be read, grow, shrink, vanish or are replaced: reported with a code, and no point made.

Each test first proves that its fault happened, and that all goes on once it is mended.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.disks.raw_file import create_raw_file
from backhaul.replication.control import AgentMode, Method, SourceDisk
from backhaul.replication.units import GRANULE, MiB
from dataplane.plane import Machine, RequestFailed, writable
from dataplane.processes.stepped import SteppedPlane, running_stepped

SIZE = 4 * MiB
BAD = 2 * MiB
"""Where the bad sector lies: behind what the tests overwrite."""


@pytest.fixture
async def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SteppedPlane]:
    async with running_stepped(tmp_path, monkeypatch) as running:
        yield running


async def fill(image: Path, seed: int, offset: int, length: int) -> None:
    with await writable(image) as file:
        file.seek(offset)
        file.write(random.Random(seed).randbytes(length))


async def resize(image: Path, size: int) -> None:
    with await writable(image) as file:
        file.truncate(size)


async def protected(plane: SteppedPlane, seed: int) -> Machine:
    """A machine with a noisy disk, replicated."""
    image = plane.folder / "web-0.img"
    create_raw_file(image, SIZE)
    await fill(image, seed, 0, SIZE)
    machine = await plane.protect("web", [SIZE], disks=[image])
    await plane.caught_up(machine)
    return machine


def equal(plane: SteppedPlane, machine: Machine) -> bool:
    return machine.disks[0].read_bytes() == plane.replicas(machine)[0].read_bytes()


async def no_point(plane: SteppedPlane, machine: Machine, code: str) -> None:
    """The fault is reported, again and again, and no point is made meanwhile."""
    await plane.reported_code(machine, code)
    newest = await plane.newest(machine)
    await plane.reported_code(machine, code)
    assert await plane.newest(machine) == newest


async def test_a_bad_sector_is_reported_stops_the_points_and_is_never_zeros(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    before = machine.disks[0].read_bytes()
    plane.source.fail("disk.read", errno.EIO, BAD, BAD + 512)
    await fill(machine.disks[0], seed + 1, 0, GRANULE)
    report = await plane.reported_code(machine, "BH-DISK-READ")
    assert report.params["disk"] == str(machine.disks[0])
    assert plane.source.fired, "the disk failed to be read"
    await no_point(plane, machine, "BH-DISK-READ")
    after = plane.replicas(machine)[0].read_bytes()
    assert after[BAD : BAD + MiB] == before[BAD : BAD + MiB], "nothing took the place of what could not be read"
    plane.source.mend()
    await plane.caught_up(machine)
    assert equal(plane, machine)
    assert (await plane.reported(machine)).code == ""


async def test_a_disk_that_cannot_be_read_from_the_start_has_no_point(plane: SteppedPlane, seed: int) -> None:
    image = plane.folder / "web-0.img"
    create_raw_file(image, SIZE)
    await fill(image, seed, 0, SIZE)
    plane.source.fail("disk.read", errno.EIO, BAD, BAD + 512)
    machine = await plane.protect("web", [SIZE], disks=[image])
    await no_point(plane, machine, "BH-DISK-READ")
    assert await plane.newest(machine) == 0
    assert not any(plane.replicas(machine)[0].read_bytes()[BAD : BAD + GRANULE]), "nothing is known of it"
    plane.source.mend()
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def test_a_grown_disk_has_no_point_until_its_item_has_grown(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    await fill(machine.disks[0], seed + 1, SIZE, MiB)
    await no_point(plane, machine, "BH-DISK-CHANGED-SIZE")
    identity = msgspec.structs.replace(plane.assigned(machine).disks[0].identity, size=SIZE + MiB)
    await plane.request(Method.ITEM_RAISE, descriptor=plane.descriptor("web", machine.item, [identity]))
    grown = (SourceDisk(identity, str(machine.disks[0])),)
    await machine.control.set("web", msgspec.structs.replace(plane.assigned(machine), disks=grown))
    await plane.caught_up(machine)
    assert plane.replicas(machine)[0].stat().st_size == SIZE + MiB
    assert equal(plane, machine)


async def test_a_disk_larger_than_its_replica_sends_nothing(plane: SteppedPlane, seed: int) -> None:
    """The assignment knows the new size, the target does not."""
    machine = await protected(plane, seed)
    await resize(machine.disks[0], SIZE + MiB)
    identity = msgspec.structs.replace(plane.assigned(machine).disks[0].identity, size=SIZE + MiB)
    grown = (SourceDisk(identity, str(machine.disks[0])),)
    await machine.control.set("web", msgspec.structs.replace(plane.assigned(machine), disks=grown))
    await no_point(plane, machine, "BH-DISKS-DIFFER")


async def test_a_shrunk_disk_has_no_point(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    end = machine.disks[0].read_bytes()[SIZE - MiB :]
    await resize(machine.disks[0], SIZE - MiB)
    await no_point(plane, machine, "BH-DISK-CHANGED-SIZE")
    assert plane.replicas(machine)[0].read_bytes()[SIZE - MiB :] == end
    with await writable(machine.disks[0]) as file:
        file.seek(SIZE - MiB)
        file.write(end)
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def test_a_disk_that_is_gone_has_no_point_until_it_is_back(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    away = machine.disks[0].with_name("away.img")
    machine.disks[0].rename(away)
    await no_point(plane, machine, "BH-DISK-MISSING")
    away.rename(machine.disks[0])
    await fill(machine.disks[0], seed + 1, 0, GRANULE)
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def test_an_agent_that_starts_without_its_disk_waits_for_it(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    await machine.agent.stop()
    away = machine.disks[0].with_name("away.img")
    machine.disks[0].rename(away)
    await machine.agent.start()
    await no_point(plane, machine, "BH-DISK-MISSING")
    away.rename(machine.disks[0])
    await fill(machine.disks[0], seed + 1, 0, GRANULE)
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def test_another_disk_in_its_place_is_compared_before_anything_is_a_point(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    other = machine.disks[0].with_name("other.img")
    shutil.copyfile(machine.disks[0], other)
    await fill(other, seed + 1, MiB, GRANULE)
    machine.control.reports.clear()
    other.rename(machine.disks[0])
    await plane.caught_up(machine)
    assert equal(plane, machine)
    report = await plane.reported(machine)
    assert report.disks[0].differing == GRANULE, "the agent opened the new disk and compared it"


async def test_a_replica_smaller_than_the_source_is_refused_before_anything_is_written(
    plane: SteppedPlane, seed: int
) -> None:
    small = plane.folder / "small.img"
    create_raw_file(small, SIZE - MiB)
    await fill(small, seed, 0, SIZE - MiB)
    before = small.read_bytes()
    with pytest.raises(RequestFailed) as refusal:
        await plane.protect("web", [SIZE], paths=[str(small)])
    assert refusal.value.code == "BH-REPLICA-TOO-SMALL"
    assert small.read_bytes() == before
    await plane.target.stop()
    await plane.target.start()  # nothing half-made keeps it from starting
    os.truncate(small, SIZE)
    machine = await plane.protect("web", [SIZE], paths=[str(small)])
    await plane.caught_up(machine)
    assert machine.disks[0].read_bytes() == small.read_bytes()


async def test_a_machine_on_standby_sends_nothing(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    await machine.control.set("web", msgspec.structs.replace(plane.assigned(machine), mode=AgentMode.STANDBY))

    async def standing_by() -> bool:
        return [item.state for report in machine.control.reports[-1:] for item in report.items] == ["standby"]

    await plane.until(standing_by, "the agent stands by")
    newest = await plane.newest(machine)
    reads = plane.source.log["disk.read"]
    machine.control.reports.clear()
    await plane.until(standing_by, "another report")
    assert (await plane.newest(machine), plane.source.log["disk.read"]) == (newest, reads)
    await machine.control.set("web", msgspec.structs.replace(plane.assigned(machine), mode=AgentMode.REPLICATE))
    await plane.caught_up(machine)
