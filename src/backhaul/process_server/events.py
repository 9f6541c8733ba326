"""What happens to the relay, and what it wants done: the whole interface of the engine in `relay`.

Plain values. Connections are numbers that the service hands out and never uses twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backhaul.process_server.errors import SpoolWriteFailed
from backhaul.process_server.spool import Entry, Space
from backhaul.replication.errors import BackhaulError
from backhaul.replication.messages import Message, Request
from backhaul.replication.values import Fence, ItemId, Role


@dataclass(frozen=True, slots=True)
class Connected:
    """A peer greeted. `role` and `id` are its certificate's."""

    connection: int
    role: Role
    id: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a peer."""

    connection: int
    message: Message


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone."""

    connection: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A batch is durable. `asked`: its last frame of each item; `positions`: what the spool now holds of each."""

    asked: Mapping[ItemId, int]
    positions: Mapping[ItemId, tuple[Fence, int]]


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """Nothing of `entries`, which are all that was waiting, was stored."""

    entries: Sequence[Entry]
    error: SpoolWriteFailed


@dataclass(frozen=True, slots=True)
class SpaceReturned:
    """The spool can be written again."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """The spool lost what it held of these items; item -> why."""

    items: Mapping[ItemId, str]


@dataclass(frozen=True, slots=True)
class Measured:
    """Space of the spool at this moment."""

    space: Space


Event = Connected | Received | Disconnected | Stored | StoreFailed | SpaceReturned | Dropped | Measured


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a peer."""

    connection: int
    message: Message


@dataclass(frozen=True, slots=True)
class Close:
    """Say why and close the connection. The relay has forgotten it already."""

    connection: int
    reason: BackhaulError


@dataclass(frozen=True, slots=True)
class Store:
    """Put the entry behind those that wait to be stored."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Free:
    """Behind what waits to be stored: everything up to `number` of the stream is applied."""

    item: ItemId
    fence: Fence
    number: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Behind what waits to be stored: the item is not relayed here any more."""

    item: ItemId


@dataclass(frozen=True, slots=True)
class Purge:
    """Take the item's frames out of what waits to be stored: one before them is missing."""

    item: ItemId


@dataclass(frozen=True, slots=True)
class Wake:
    """There may be frames to forward to this target: see `Relay.take`."""

    connection: int


@dataclass(frozen=True, slots=True)
class Control:
    """A request of the configuration server."""

    connection: int
    request: Request


Command = Send | Close | Store | Free | Forget | Purge | Wake | Control


@dataclass(frozen=True, slots=True)
class Forward:
    """Records `first .. first + count - 1` are to be sent to the item's target. `turn`: see `Relay.is_current`."""

    item: ItemId
    fence: Fence
    first: int
    count: int
    bytes: int
    turn: int
