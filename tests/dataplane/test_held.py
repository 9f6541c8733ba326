"""Between the final point and the new generation neither side may send: held, whatever the machine or its target does.

Ways out: the new generation for the other side, or a cancel, which is a new generation for the same one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.disks.raw_file import create_raw_file
from backhaul.replication.control import AgentMode, ItemStatus, Method
from backhaul.replication.units import GRANULE, MiB
from dataplane.plane import Machine, RequestFailed
from dataplane.processes.stepped import SteppedPlane, running_stepped

SIZE = 2 * MiB


@pytest.fixture
async def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SteppedPlane]:
    async with running_stepped(tmp_path, monkeypatch) as running:
        yield running


def write(machine: Machine, seed: int) -> None:
    """The machine writes, as it does when it runs again."""
    with machine.disks[0].open("r+b") as file:
        file.write(random.Random(seed).randbytes(GRANULE))


async def held(plane: SteppedPlane, seed: int) -> tuple[Machine, ItemStatus, bytes]:
    """A machine whose final point the target has; what the target says then, and what its replica holds."""
    image = plane.folder / "web-0.img"
    create_raw_file(image, SIZE)
    image.write_bytes(random.Random(seed).randbytes(SIZE))
    machine = await plane.protect("web", [SIZE], disks=[image])
    await plane.complete_after(machine.item)
    final = msgspec.structs.replace(plane.assigned(machine), mode=AgentMode.FINAL)
    await machine.control.set("web", final)

    async def is_final() -> bool:
        return (await plane.status(machine.item)).final

    await plane.until(is_final, "the final point")
    return machine, await plane.status(machine.item), plane.replicas(machine)[0].read_bytes()


async def assert_unchanged(plane: SteppedPlane, machine: Machine, before: ItemStatus, replica: bytes) -> None:
    """No stream was opened, no point made, no byte written."""
    now = await plane.status(machine.item)
    assert (now.fence, now.stream_open, now.complete) == (before.fence, False, before.complete)
    assert plane.replicas(machine)[0].read_bytes() == replica


@pytest.mark.parametrize("mode", [AgentMode.FINAL, AgentMode.REPLICATE])
async def test_a_machine_that_reboots_while_it_is_held_gets_no_stream(
    plane: SteppedPlane, seed: int, mode: AgentMode
) -> None:
    """`replicate`: what the agent knew before, from a configuration server that is away."""
    machine, status, replica = await held(plane, seed)
    await machine.agent.stop()
    write(machine, seed + 1)
    await machine.control.set("web", msgspec.structs.replace(plane.assigned(machine), mode=mode))
    await machine.agent.start()
    report = await plane.reported_code(machine, "BH-TARGET-REFUSED")
    assert "its final delta was received" in report.params["params"]
    await plane.target.stop()
    await plane.target.start()  # it is so for a target that knows it from its folder only, too
    await plane.reported_code(machine, "BH-TARGET-REFUSED")
    await assert_unchanged(plane, machine, status, replica)


async def test_a_cancel_lets_the_same_machine_go_on(plane: SteppedPlane, seed: int) -> None:
    machine, status, replica = await held(plane, seed)
    assert status.complete is not None
    await plane.request(Method.ITEM_RAISE, descriptor=plane.descriptor_of(machine, generation=2))
    await asyncio.to_thread(write, machine, seed + 1)
    again = msgspec.structs.replace(plane.assigned(machine), mode=AgentMode.REPLICATE, generation=2)
    await machine.control.set("web", again)
    await plane.caught_up(machine)
    assert plane.replicas(machine)[0].read_bytes() == machine.disks[0].read_bytes()
    points = await plane.points(machine.item)
    assert [point.final for point in points if point.number <= status.complete.number][-1], "the final one stays"
    assert not points[-1].final
    await machine.agent.stop()
    await plane.promote(machine, 3)
    await plane.request(Method.ITEM_GO_TO, item=machine.item, point=status.complete.number)
    assert plane.replicas(machine)[0].read_bytes() == replica


async def test_an_older_cancel_or_move_opens_nothing_that_a_newer_one_closed(plane: SteppedPlane, seed: int) -> None:
    """A configuration server that repeats itself late: its generation is known as lower, and changes nothing."""
    machine, status, replica = await held(plane, seed)
    stale = plane.descriptor_of(machine, generation=2)
    await plane.promote(machine, 3)
    for method in (Method.ITEM_RAISE, Method.ITEM_PROMOTE, Method.ITEM_VERIFY):
        with pytest.raises(RequestFailed) as refusal:
            await plane.request(method, descriptor=stale)
        assert refusal.value.code == "BH-DESCRIPTOR-REFUSED"
    now = await plane.status(machine.item)
    assert (now.promoted, now.stream_open, now.fence.generation, now.complete) == (True, False, 3, status.complete)
    assert plane.replicas(machine)[0].read_bytes() == replica
