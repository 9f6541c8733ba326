"""What the relay knows of an item and of a peer. Changed by `relay` only."""

from __future__ import annotations

from dataclasses import dataclass, field

from backhaul.process_server.index import Backlog
from backhaul.replication.messages import Message
from backhaul.replication.values import Fence, ItemId, Role

NOTHING = -1
"""Number of a stream of which not even the header (0) is there."""


@dataclass(slots=True)
class Item:
    """One item on its way through.

    Invariant: applied <= spooled <= accepted; the backlog holds what is accepted and not applied.
    `fence` and `agent`: the newest grant; `agent` empty means that nobody may send.
    """

    name: ItemId
    fence: Fence | None = None
    agent: str = ""
    accepted: int = NOTHING
    spooled: int = NOTHING
    applied: int = NOTHING
    forwarded: int = NOTHING
    in_flight_bytes: int = 0
    backlog: Backlog = field(default_factory=Backlog)
    target: int | None = None
    served: Fence | None = None
    attached: dict[str, int] = field(default_factory=dict)
    asking: set[str] = field(default_factory=set)
    answer: Message | None = None
    throttled: bool = False
    turn: int = 0

    @property
    def source(self) -> int | None:
        """The connection of the agent that may send."""
        return self.attached.get(self.agent) if self.agent else None

    @property
    def idle(self) -> bool:
        """Nothing is held of it and nobody is there for it: it may be forgotten."""
        return not len(self.backlog) and not self.attached and self.target is None and self.answer is None

    def start(self, fence: Fence, agent: str, applied: int) -> None:
        """Begin stream `fence`; everything before it is closed."""
        self.fence, self.agent = fence, agent
        self.accepted = self.spooled = self.applied = applied
        self.backlog = Backlog(applied + 1)
        self.answer = None
        self.rewind()

    def rewind(self) -> None:
        """Forward again from what is not applied."""
        self.forwarded = self.applied
        self.in_flight_bytes = 0
        self.turn += 1

    def cut(self, position: int) -> None:
        """What was accepted behind `position` was not stored."""
        self.backlog.cut(position)
        self.accepted = self.spooled = max(position, self.applied)

    def free(self, number: int) -> None:
        """Everything up to `number` is applied."""
        before = self.backlog.bytes
        self.backlog.free(number)
        self.applied = number
        self.spooled, self.accepted = max(self.spooled, number), max(self.accepted, number)
        self.in_flight_bytes -= min(before - self.backlog.bytes, self.in_flight_bytes)
        if number > self.forwarded:
            self.forwarded, self.in_flight_bytes = number, 0


@dataclass(slots=True)
class Peer:
    """One connection. `replaced`: how often a newer one of the same name took the place of an older."""

    connection: int
    role: Role
    id: str
    replaced: int = 0
    items: set[ItemId] = field(default_factory=set)
    told: set[tuple[ItemId, str]] = field(default_factory=set)
    """Refusals that this peer has heard and not yet acted upon; each is sent once."""
