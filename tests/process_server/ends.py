"""An agent and a target that speak the protocol in clear, over real TLS, to a real process server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from backhaul.links.authority import Authority, AuthorityStore
from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, open_data
from backhaul.links.dialer import Address, dial_data
from backhaul.links.errors import LinkLost
from backhaul.links.tls import Credentials
from backhaul.process_server.run import ProcessServerConfig, run
from backhaul.replication import messages as m
from backhaul.replication.messages import MessageType
from backhaul.replication.ports import Files, RealClock, RealFiles, RealRandomness
from backhaul.replication.units import MiB
from backhaul.replication.values import Fence, ItemId, Role
from process_server.world import AGENT, ITEM, payload

TARGET = "target-1"
CLOCK = RealClock()


@dataclass
class Vault:
    """A vault's authority; makes credentials."""

    authority: Authority

    def credentials(self, role: Role, name: str) -> Credentials:
        return Credentials(self.authority.own_identity(role, name), CLOCK)


def make_vault(folder: Path) -> Vault:
    return Vault(Authority.create("v1", AuthorityStore(RealFiles(), folder, CLOCK, RealRandomness())))


def config(folder: Path) -> ProcessServerConfig:
    return ProcessServerConfig("ps1", folder, "127.0.0.1", 0, 256 * MiB)


@contextlib.asynccontextmanager
async def serving(
    vault: Vault, folder: Path, files: Files | None = None
) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
    """A process server in this process: its port and its task."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    credentials = vault.credentials(Role.PROCESS_SERVER, "ps1")
    task = asyncio.create_task(
        run(config(folder), credentials, files or RealFiles(), CLOCK, RealRandomness(), port.set_result)
    )
    task.add_done_callback(lambda ended: port.done() or port.cancel())
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await port
        if task.done():
            task.result()
        yield port.result(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def connect(vault: Vault, port: int, role: Role, name: str) -> Connection:
    credentials = vault.credentials(role, name)
    expect = Expect(Role.PROCESS_SERVER, "ps1")
    connection = await dial_data(Address("127.0.0.1", port), credentials, expect, clock=CLOCK)
    await open_data(connection, name)
    return connection


async def receive(connection: Connection, kind: MessageType) -> m.Message:
    """The next message of this kind; others are passed over."""
    while True:
        received = await connection.receive()
        if received.type is kind:
            return received


class TargetEnd:
    """A target that keeps what it gets, in order, and never forgets it: it stands for its disk."""

    def __init__(self, item: ItemId = ITEM) -> None:
        self.item = item
        self.fence = Fence(1, 1, 0)
        self.received: dict[Fence, list[bytes]] = {}
        self.gaps: list[int] = []
        self.hold = False
        """Receive and acknowledge nothing as applied."""
        self.progress = asyncio.Condition()

    @property
    def frames(self) -> list[bytes]:
        return self.received.get(self.fence, [])

    async def serve(self, connection: Connection) -> None:
        """Until the connection ends."""
        served = m.Served(self.item, self.fence, max(0, len(self.frames) - 1), AGENT)
        await connection.send(m.message(m.Serves((served,))))
        with contextlib.suppress(LinkLost):
            while True:
                await self._take(connection, await connection.receive())

    async def _take(self, connection: Connection, received: m.Message) -> None:
        if received.type is MessageType.OPEN_REQUEST:
            self.fence = Fence(1, 1, self.fence.stream + 1)
            answer = m.OpenAnswer(self.item, self.fence, AGENT)
            await connection.send(m.message(answer, b"answer to " + received.payload))
        elif received.type is MessageType.ATTACH:
            reply = m.ReplyHead(self.item, self.fence.stream, b"incarnation", 1)
            await connection.send(m.message(reply, b"newest state"))
        elif received.type in (MessageType.STREAM, MessageType.FRAME):
            await self._append(connection, received)

    async def _append(self, connection: Connection, received: m.Message) -> None:
        if received.type is MessageType.STREAM:
            fence, number = m.read_head(received, m.StreamHead).fence, 0
        else:
            head = m.FrameHead.decode(received.head)
            fence, number = head.fence, head.number
        held = self.received.setdefault(fence, [])
        if number > len(held):
            self.gaps.append(number)
        elif number == len(held):
            held.append(bytes(received.payload))
        if not self.hold:
            await connection.send(m.message(m.AppliedHead(self.item, fence.stream, len(held) - 1)))
        async with self.progress:
            self.progress.notify_all()

    async def until(self, done: Callable[[], bool]) -> None:
        async with self.progress, asyncio.timeout(30):
            await self.progress.wait_for(done)


@contextlib.asynccontextmanager
async def target_dials(vault: Vault, port: int, target: TargetEnd, name: str = TARGET) -> AsyncIterator[Connection]:
    """The target is connected for as long as this lasts."""
    connection = await connect(vault, port, Role.MASTER_TARGET, name)
    task = asyncio.create_task(target.serve(connection))
    try:
        yield connection
    finally:
        await connection.close()
        await task


class AgentEnd:
    """An agent that sends numbered frames of known content."""

    def __init__(self, connection: Connection, item: ItemId = ITEM, size: int = 1000) -> None:
        self.connection = connection
        self.item = item
        self.size = size
        self.fence = Fence(0, 0, 0)
        self.acknowledged = -1

    async def attach(self) -> m.Position:
        await self.connection.send(m.message(m.Attach(self.item)))
        return m.read_head(await receive(self.connection, MessageType.POSITION), m.Position)

    async def open(self) -> None:
        """Attach, wait for the target, open a stream and send its header."""
        ask = m.message(m.OpenRequest(self.item), b"request")
        if (await self.attach()).target_connected:
            await self.connection.send(ask)
        while (received := await self.connection.receive()).type is not MessageType.OPEN_ANSWER:
            if received.type is MessageType.POSITION and m.read_head(received, m.Position).target_connected:
                await self.connection.send(ask)
        assert bytes(received.payload) == b"answer to request"
        self.fence = m.read_head(received, m.OpenAnswer).fence
        await self.connection.send(m.message(m.StreamHead(self.item, self.fence), self.content(0)))

    def content(self, number: int) -> bytes:
        return payload(self.item, number, self.size if number else 500)

    async def send(self, numbers: range) -> None:
        for number in numbers:
            head = m.FrameHead(self.item, self.fence, number)
            await self.connection.send(m.Message(MessageType.FRAME, head.encode(), self.content(number)))

    async def spooled(self, number: int) -> int:
        """Wait until everything up to `number` is durable at the process server."""
        while True:
            head = m.read_head(await receive(self.connection, MessageType.SPOOLED), m.SpooledHead)
            if head.stream == self.fence.stream and head.number >= number:
                return head.number
