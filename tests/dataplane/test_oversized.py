"""A process server that announces more than any message may hold: the link ends before a byte of it is waited for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.links.connection import Connection, accept_data
from backhaul.links.errors import LinkLost
from backhaul.links.listener import data_route, listen
from backhaul.links.tls import ALPN_DATA, Credentials
from backhaul.replication import messages as m
from backhaul.replication.ports import RealClock
from backhaul.replication.units import MAX_FRAME, MiB
from backhaul.replication.values import Role
from dataplane.plane import Plane, running_plane

T = m.MessageType
ANNOUNCED = [(T.REPLY, 42, MAX_FRAME + 17), (T.OPEN_ANSWER, 65535, 0), (T.SPOOLED, 16 * 1024 + 1, 0)]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path) as running:
        yield running


class Boaster:
    """A process server with every key that announces too much to whoever comes, and notes how they leave."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.port = 0

    async def serve(self, connection: Connection) -> None:
        await accept_data(connection, "boaster")
        kind, head, payload = ANNOUNCED[len(self.left) % len(ANNOUNCED)]
        assert connection._transport is not None
        connection._transport.write(m.PREFIX.pack(kind, m.VERSION, head, payload))
        with contextlib.suppress(LinkLost):
            while True:
                await connection.receive()
        self.left.append(str(connection.lost))

    async def left_by_all(self) -> bool:
        return len(self.left) >= len(ANNOUNCED)


@contextlib.asynccontextmanager
async def boasting(credentials: Credentials) -> AsyncIterator[Boaster]:
    boaster = Boaster()
    listener = await listen("127.0.0.1", 0, credentials, {ALPN_DATA: data_route(boaster.serve, clock=RealClock())})
    boaster.port = listener.port
    try:
        yield boaster
    finally:
        await listener.close()


async def test_neither_an_agent_nor_a_target_waits_for_more_than_a_message_may_hold(plane: Plane) -> None:
    machine = await plane.protect("web", [MiB])
    await plane.complete_after(machine.item)
    assert plane.master_target is not None
    assignment = plane.assigned(machine)
    async with boasting(plane.relay_credentials) as to_agent:
        addresses = (f"127.0.0.1:{to_agent.port}",)
        await machine.agent.stop()
        await machine.control.set("web", msgspec.structs.replace(assignment, process_server_addresses=addresses))
        await machine.agent.start()
        await plane.until(to_agent.left_by_all, "the agent leaves, and tries again")
        await machine.agent.stop()
    async with boasting(plane.credentials(Role.PROCESS_SERVER, "relay-2")) as to_target:
        plane.master_target.dial("relay-2", (f"127.0.0.1:{to_target.port}",))
        await plane.until(to_target.left_by_all, "the target leaves, and tries again")
        plane.master_target.hang_up("relay-2")
    assert all("BH-FRAME-MALFORMED" in reason for reason in to_agent.left + to_target.left), to_agent.left
    await machine.control.set("web", assignment)
    await machine.agent.start()
    await plane.caught_up(machine)
