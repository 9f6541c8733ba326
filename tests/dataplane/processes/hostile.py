"""Peers that mean harm, with certificates of the vault: an agent that sends what it likes, and a man in the middle.

async with between(plane, machine) as middle:      # agent --> middle --> process server
    middle.up = Once(MessageType.FRAME, flipped)    # what to do with which message, agent to target
    ... middle.up.done ...
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Self

import msgspec

from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, accept_data, open_data
from backhaul.links.dialer import Address, dial_data
from backhaul.links.errors import LinkLost
from backhaul.links.identity import TrustVerifier
from backhaul.links.listener import data_route, listen
from backhaul.links.tls import ALPN_DATA, Credentials
from backhaul.replication import messages as m
from backhaul.replication.control import Method
from backhaul.replication.ports import RealClock, RealRandomness
from backhaul.replication.records import Refused, Reply
from backhaul.replication.source import SourceSession
from backhaul.replication.values import ItemId, Role
from dataplane.plane import Machine, Plane

ANSWER_S = 20.0
Change = Callable[[m.Message], list[m.Message]]


class RawAgent:
    """An agent of the vault without its good manners. It opens streams as an agent does, and sends what it is told."""

    def __init__(self, connection: Connection, session: SourceSession) -> None:
        self.connection, self.session = connection, session
        self.seen: list[m.Message] = []
        self.replies: list[Reply] = []

    @classmethod
    async def connect(cls, plane: Plane, agent: str, item: ItemId, machine: str) -> Self:
        """Greet the process server with the certificate of `agent`."""
        credentials = plane.credentials(Role.AGENT, agent)
        verifier = TrustVerifier(lambda: credentials.identity.trust, RealClock())
        key = bytes((await plane.request(Method.TARGET_KEY))["key"])
        session = SourceSession(item, machine, key, credentials.identity, verifier, RealRandomness(), RealClock())
        address = Address("127.0.0.1", plane.relay_port)
        connection = await dial_data(address, credentials, Expect(Role.PROCESS_SERVER), clock=RealClock())
        await open_data(connection, agent)
        return cls(connection, session)

    async def next(self, *kinds: m.MessageType) -> m.Message:
        """The next message of one of these kinds; replies to the stream are opened on the way."""
        async with asyncio.timeout(ANSWER_S):
            while True:
                received = await self.connection.receive()
                self.seen.append(received)
                if received.type is m.MessageType.REPLY:
                    self.replies += self.session.replies(received)
                if received.type in kinds:
                    return received

    async def open(self) -> None:
        """Attach and open a stream."""
        item = self.session.item
        await self.connection.send(m.message(m.Attach(item)))
        await self.next(m.MessageType.POSITION)
        await self.connection.send(self.session.request("hostile"))
        answer = await self.next(m.MessageType.OPEN_ANSWER, m.MessageType.OPEN_REFUSED)
        assert answer.type is m.MessageType.OPEN_ANSWER, m.read_head(answer, m.OpenRefused)
        await self.connection.send(self.session.answered(answer))

    async def refusal(self) -> Refused:
        """The target's next sealed refusal."""
        while True:
            found = [reply for reply in self.replies if isinstance(reply, Refused)]
            if found:
                self.replies.remove(found[0])
                return found[0]
            await self.next(m.MessageType.REPLY)

    async def refused(self) -> str:
        """Code of the next refusal in clear."""
        received = await self.next(m.MessageType.OPEN_REFUSED)
        return m.read_head(received, m.OpenRefused).code

    async def lost(self) -> LinkLost:
        """How the process server ends the link."""
        try:
            while True:
                await self.next(m.MessageType.BYE)
        except LinkLost as error:
            return error


@dataclass
class Once:
    """Changes the `number`-th message of a kind (from 1), and lets all others pass."""

    kind: m.MessageType
    change: Change
    number: int = 1
    done: bool = False
    _seen: int = 0

    def __call__(self, message: m.Message) -> list[m.Message]:
        if message.type is not self.kind:
            return [message]
        self._seen += 1
        if self._seen != self.number:
            return [message]
        self.done = True
        return self.change(message)


@dataclass
class Swapped:
    """Holds the `number`-th message of a kind back until the next one of that kind has passed."""

    kind: m.MessageType
    number: int = 1
    done: bool = False
    _seen: int = 0
    _held: list[m.Message] = field(default_factory=list)

    def __call__(self, message: m.Message) -> list[m.Message]:
        if message.type is not self.kind:
            return [message]
        self._seen += 1
        if self._seen == self.number:
            self._held.append(message)
            return []
        if self._held:
            self.done = True
        held, self._held = self._held, []
        return [message, *held]


@dataclass
class Replayed:
    """Sends everything of a kind a second time, `later` messages of that kind behind the first."""

    kind: m.MessageType
    later: int
    done: bool = False
    _kept: list[m.Message] = field(default_factory=list)

    def __call__(self, message: m.Message) -> list[m.Message]:
        if message.type is not self.kind:
            return [message]
        self._kept.append(m.Message(message.type, bytes(message.head), bytes(message.payload)))
        if len(self._kept) <= self.later:
            return [message]
        self.done = True
        return [message, self._kept.pop(0)]


def flipped(message: m.Message) -> list[m.Message]:
    """One bit of the payload, in its middle."""
    payload = bytearray(message.payload)
    payload[len(payload) // 2] ^= 1
    return [m.Message(message.type, message.head, payload)]


def truncated(message: m.Message) -> list[m.Message]:
    """Half of the payload."""
    return [m.Message(message.type, message.head, bytes(message.payload[: len(message.payload) // 2]))]


def emptied(message: m.Message) -> list[m.Message]:
    """No payload at all."""
    return [m.Message(message.type, message.head, b"")]


def doubled(message: m.Message) -> list[m.Message]:
    """The same message twice."""
    return [message, message]


def dropped(message: m.Message) -> list[m.Message]:
    """Nothing."""
    return []


def frame_head(**changes: int) -> Change:
    """A frame that claims another number, stream or generation (added to its own)."""

    def change(message: m.Message) -> list[m.Message]:
        head = m.FrameHead.decode(message.head)
        fence = msgspec.structs.replace(
            head.fence,
            generation=head.fence.generation + changes.get("generation", 0),
            stream=head.fence.stream + changes.get("stream", 0),
        )
        lie = m.FrameHead(head.item, fence, head.number + changes.get("number", 0))
        return [m.Message(message.type, lie.encode(), message.payload)]

    return change


def spooled_lie(message: m.Message) -> list[m.Message]:
    """A claim about frames that do not exist."""
    head = m.read_head(message, m.SpooledHead)
    return [m.message(msgspec.structs.replace(head, number=head.number + 1000))]


def position_lie(message: m.Message) -> list[m.Message]:
    """A process server that says it holds more than it does."""
    head = m.read_head(message, m.Position)
    return [m.message(msgspec.structs.replace(head, number=head.number + 3))]


class Between:
    """A man in the middle with every key: a process server to the agent, the agent to the process server."""

    def __init__(self, plane: Plane, machine_agent: str) -> None:
        self._plane, self._agent = plane, machine_agent
        self.up: Change = lambda message: [message]
        self.down: Change = lambda message: [message]
        self.connections = itertools.count()

    async def serve(self, connection: Connection) -> None:
        """One connection of the agent."""
        await accept_data(connection, "between")
        next(self.connections)
        credentials = Credentials(self._plane.identity(Role.AGENT, self._agent), RealClock())
        address = Address("127.0.0.1", self._plane.relay_port)
        far = await dial_data(address, credentials, Expect(Role.PROCESS_SERVER), clock=RealClock())
        await open_data(far, "between")
        tasks = [
            asyncio.create_task(self._pump(connection, far, lambda message: self.up(message))),
            asyncio.create_task(self._pump(far, connection, lambda message: self.down(message))),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await far.close()

    @staticmethod
    async def _pump(one: Connection, other: Connection, change: Change) -> None:
        with contextlib.suppress(LinkLost):
            while True:
                for message in change(await one.receive()):
                    await other.send(message)


@contextlib.asynccontextmanager
async def between(plane: Plane, machine: Machine) -> AsyncIterator[Between]:
    """The machine's agent (stopped before) reaches its process server through the man in the middle only."""
    middle = Between(plane, f"agent-{machine.name}")
    route = data_route(middle.serve, clock=RealClock())
    listener = await listen("127.0.0.1", 0, plane.relay_credentials, {ALPN_DATA: route})
    assignment = plane.assigned(machine)
    through = msgspec.structs.replace(assignment, process_server_addresses=(f"127.0.0.1:{listener.port}",))
    await machine.control.set(machine.name, through)
    try:
        yield middle
    finally:
        await machine.agent.stop()
        await listener.close()
        await machine.control.set(machine.name, assignment)
