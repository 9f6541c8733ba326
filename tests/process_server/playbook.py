"""Playbooks for the relay: `play >> event << command << command`; every command must be named, in order."""

from __future__ import annotations

from backhaul.process_server.events import Command, Connected, Event, Received, Send, Stored
from backhaul.process_server.relay import Relay
from backhaul.process_server.throttle import ThrottleLimits
from backhaul.replication import messages as m
from backhaul.replication.values import Fence, ItemId, Role
from process_server.world import AGENT, FENCE, ITEM

TARGET = "target-1"
A, B, T, U, C = 1, 2, 10, 11, 20
"""Connections: of agents, of targets, of the configuration server."""


class Playbook:
    """Feeds events to a relay and compares what comes out."""

    def __init__(self, relay: Relay | None = None) -> None:
        self.relay = relay or Relay("ps", ThrottleLimits())
        self._out: list[Command] = []

    def __rshift__(self, event: Event) -> Playbook:
        self.done()
        self._out = self.relay.handle(event)
        return self

    def __lshift__(self, command: Command) -> Playbook:
        assert self._out, f"nothing more came out, expected {command}"
        assert self._out.pop(0) == command
        return self

    def skip(self) -> list[Command]:
        """What came out, looked at by the test itself."""
        out, self._out = self._out, []
        return out

    def done(self) -> None:
        """Nothing else came out."""
        assert not self._out, f"not expected: {self._out}"


def agent(connection: int = A, name: str = AGENT) -> Connected:
    return Connected(connection, Role.AGENT, name)


def target(connection: int = T, name: str = TARGET) -> Connected:
    return Connected(connection, Role.MASTER_TARGET, name)


def says(connection: int, head: m.Head, payload: bytes = b"") -> Received:
    return Received(connection, m.message(head, payload))


def tells(connection: int, head: m.Head, payload: bytes = b"") -> Send:
    return Send(connection, m.message(head, payload))


def frame(number: int, *, connection: int = A, fence: Fence = FENCE, item: ItemId = ITEM, size: int = 100) -> Received:
    head = m.FrameHead(item, fence, number)
    return Received(connection, m.Message(m.MessageType.FRAME, head.encode(), bytes(size)))


def stored(number: int, *, fence: Fence = FENCE, item: ItemId = ITEM, asked: int | None = None) -> Stored:
    return Stored({item: number if asked is None else asked}, {item: (fence, number)})


def serves(applied: int = 0, *, fence: Fence = FENCE, name: str = AGENT, item: ItemId = ITEM) -> m.Serves:
    return m.Serves((m.Served(item, fence, applied, name),))


def streaming(*, spooled: int = 2) -> Playbook:
    """An agent and a target are connected, a stream is granted, frames up to `spooled` are durable."""
    play = Playbook()
    events: list[Event] = [agent(), target(), says(A, m.Attach(ITEM)), says(T, serves(fence=Fence(1, 1, 0)))]
    events += [stored(-1, fence=Fence(1, 1, 0))]
    events += [says(A, m.OpenRequest(ITEM), b"request"), says(T, m.OpenAnswer(ITEM, FENCE, AGENT), b"answer")]
    events += [stored(-1), says(A, m.StreamHead(ITEM, FENCE), b"header")]
    events += [frame(number) for number in range(1, spooled + 1)]
    events += [stored(spooled)]
    for event in events:
        play >> event
        play.skip()
    return play
