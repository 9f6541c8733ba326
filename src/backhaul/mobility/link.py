"""The agent's one connection to its process server, shared by the items of the machine.

Invariant: an item's frames are sent only between the POSITION that answered its ATTACH and the end of that
connection, so they never pass what was there before. Keeps dialling every address it was ever told. Runs on the
agent's event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, open_data
from backhaul.links.dialer import Address, Redial, dial_data, reconnecting
from backhaul.links.errors import LinkLost
from backhaul.links.tls import Credentials
from backhaul.replication import messages as m
from backhaul.replication.errors import FrameMalformed
from backhaul.replication.values import ItemId, Role

_log = structlog.get_logger(__name__)


class ItemEnd(Protocol):
    """An item's end of the link. All calls come from the event loop and return at once."""

    @property
    def item(self) -> ItemId: ...

    def attached(self, position: m.Position) -> None:
        """The process server says what it holds; frames may be sent from now on."""
        ...

    def received(self, message: m.Message) -> None:
        """A message for this item. Raises FrameMalformed, which closes the connection."""
        ...

    def detached(self) -> None:
        """The connection ended; nothing may be sent until `attached`."""
        ...


_ITEM_HEADS: dict[m.MessageType, type[m.Head]] = {
    m.MessageType.OPEN_ANSWER: m.OpenAnswer,
    m.MessageType.OPEN_REFUSED: m.OpenRefused,
    m.MessageType.SPOOLED: m.SpooledHead,
    m.MessageType.REPLY: m.ReplyHead,
    m.MessageType.THROTTLE: m.Throttle,
}


class ProcessServerLink:
    """Dials the process server, says which items this agent is the source of, and passes messages on."""

    def __init__(
        self,
        name: str,
        server: str | None,
        addresses: Callable[[], Sequence[Address]],
        credentials: Credentials,
        world: Redial,
    ) -> None:
        """`server` is the id the peer's certificate must have; None accepts any process server of the vault."""
        self._name = name
        self._expect = Expect(Role.PROCESS_SERVER, server)
        self._addresses = addresses
        self._credentials = credentials
        self._world = world
        self._ends: dict[ItemId, ItemEnd] = {}
        self._connection: Connection | None = None

    @property
    def is_up(self) -> bool:
        """Whether there is a connection at the moment."""
        return self._connection is not None and self._connection.lost is None

    async def join(self, end: ItemEnd) -> None:
        """Serve an item from now on."""
        self._ends[end.item] = end
        if self._connection is not None:
            await self._attach(end)

    def leave(self, item: ItemId) -> None:
        """Serve the item no longer; one that never joined is no error."""
        end = self._ends.pop(item, None)
        if end is not None:
            end.detached()

    async def _attach(self, end: ItemEnd) -> None:
        try:
            await self.send([m.message(m.Attach(end.item))])
        except LinkLost:
            _log.debug("attach.link_lost", item=end.item)  # the next connection attaches every item again

    async def send(self, messages: Sequence[m.Message]) -> None:
        """Send in order. Raises LinkLost when there is no connection or it ends."""
        if self._connection is None:
            raise LinkLost(peer=str(self._expect), reason="it is not connected")
        await self._connection.send_many(messages)

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        try:
            await reconnecting(self._addresses, self._connect, self._serve, self._world)
        finally:
            self._drop()

    async def _connect(self, address: Address) -> Connection:
        connection = await dial_data(address, self._credentials, self._expect, clock=self._world.clock)
        await open_data(connection, self._name)
        return connection

    async def _serve(self, connection: Connection) -> None:
        self._connection = connection
        _log.info("process_server.connected", peer=connection.peer.name)
        try:
            for end in tuple(self._ends.values()):
                await self._attach(end)
            while True:
                self._dispatch(await connection.receive())
        except FrameMalformed as error:
            await connection.close(error)
            raise
        finally:
            connection.abort()
            self._drop()

    def _drop(self) -> None:
        self._connection = None
        for end in self._ends.values():
            end.detached()

    def _dispatch(self, received: m.Message) -> None:
        if received.type is m.MessageType.POSITION:
            position = m.read_head(received, m.Position)
            if end := self._ends.get(position.item):
                end.attached(position)
            return
        kind = _ITEM_HEADS.get(received.type)
        if kind is None:
            raise FrameMalformed(peer=str(self._expect), reason=f"{received.type.name} is not for an agent")
        head = m.read_head(received, kind)
        if end := self._ends.get(head.item):  # type: ignore[attr-defined]  # all of these name an item
            end.received(received)
