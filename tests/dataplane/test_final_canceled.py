"""A final point is asked for under one generation, and is made under no other.

A cancel raises the generation at the target before the agent hears of it. An agent that made its final point again
under the new one would close the item's stream for good, and nothing would replicate after the cancel.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.replication.control import AgentMode, Method
from backhaul.replication.units import MiB
from dataplane.plane import Plane, running_plane


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path) as running:
        yield running


async def test_an_agent_that_has_not_heard_of_the_cancel_makes_no_final_point(plane: Plane) -> None:
    machine = await plane.protect("web", [MiB])
    await plane.complete_after(machine.item)
    told = plane.assigned(machine)
    await machine.control.set("web", msgspec.structs.replace(told, mode=AgentMode.FINAL))

    async def is_final() -> bool:
        return (await plane.status(machine.item)).final

    await plane.until(is_final, "the final point")
    canceled = await plane.request(Method.ITEM_RAISE, descriptor=plane.descriptor_of(machine, generation=2))
    assert not canceled["final"]
    await plane.relay.stop()  # so that the agent opens another stream before it hears of the cancel
    await plane.relay.start()

    async def goes_on() -> int:
        status = await plane.status(machine.item)
        assert not status.final, "a final point that nobody asked for under this generation"
        return status.fence.stream if status.fence.generation == 2 and status.stream_open else 0

    await plane.until(goes_on, "the agent, which is still to make a final point, has opened a stream")
    newest = (await plane.status(machine.item)).complete
    await plane.complete_after(machine.item, newest.number + 1 if newest else 0)
    await goes_on()
    await machine.control.set("web", msgspec.structs.replace(told, generation=2))
    newest = (await plane.status(machine.item)).complete
    await plane.complete_after(machine.item, newest.number + 1 if newest else 0)
