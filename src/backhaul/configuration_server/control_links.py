"""Requests to servers over `bh-data/1`: one link per server, opened when it is needed, given up when it breaks.

Invariant: a request is answered once, with its own answer, or raises; nothing is sent twice by itself, as the caller
alone knows what may be repeated. Event loop only.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import structlog

from backhaul.configuration_server.errors import ServerRefused, ServerSilent
from backhaul.configuration_server.settings import parse_address
from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, open_data
from backhaul.links.dialer import dial_data
from backhaul.links.errors import LinkLost
from backhaul.links.tls import Credentials
from backhaul.replication import messages as m
from backhaul.replication.control import Method
from backhaul.replication.errors import UNDECODABLE, BackhaulError, FrameMalformed
from backhaul.replication.ports import Clock
from backhaul.replication.values import Role

ANSWER_S: Final = 30.0
"""Making a replica creates sparse files and a few synced records; undoing an epoch may take longer and says so."""

MAX_WAITING: Final = 256
"""Requests under way per server."""

NAME: Final = "configuration-server"

_log = structlog.get_logger(__name__)


class _Link:
    """One server's link: a connection, the task that reads it, and who waits."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.waiting: dict[int, asyncio.Future[m.Message]] = {}
        self._numbers = itertools.count(1)
        self.reading = asyncio.create_task(self._read(), name=f"control {connection.peer.name}")

    async def ask(self, method: Method, params: dict[str, Any]) -> tuple[m.Response, bytes]:
        number = next(self._numbers)
        future: asyncio.Future[m.Message] = asyncio.get_running_loop().create_future()
        self.waiting[number] = future
        try:
            await self.connection.send(m.message(m.Request(number, method.value, params)))
            received = await future
        finally:
            del self.waiting[number]
        return m.read_head(received, m.Response), bytes(received.payload)

    async def _read(self) -> None:
        try:
            while True:
                received = await self.connection.receive()
                future = self.waiting.get(m.read_head(received, m.Response).id)
                if future is not None and not future.done():
                    future.set_result(received)
        except (LinkLost, FrameMalformed) as error:
            for future in self.waiting.values():
                if not future.done():
                    future.set_exception(LinkLost(peer=self.connection.peer.name, reason=error.message))
        finally:
            self.connection.abort()


Place = tuple[Role, Sequence[str]]


class ControlLinks:
    """The links of a configuration server. `place` gives role and addresses of a server id."""

    def __init__(self, credentials: Credentials, clock: Clock, place: Callable[[str], Place]) -> None:
        self._credentials, self._clock, self._place = credentials, clock, place
        self._links: dict[str, _Link] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def request(
        self, server: str, method: Method, params: dict[str, Any] | None = None, *, limit_s: float = ANSWER_S
    ) -> Any:
        """The result, as builtins. Raises ServerSilent (nothing is known of the request's fate) or ServerRefused with
        the server's own code.
        """
        try:
            async with asyncio.timeout(limit_s):
                link = await self._link(server)
                if len(link.waiting) >= MAX_WAITING:
                    raise ServerSilent(server=server, reason=f"{MAX_WAITING} requests wait for it already")
                response, payload = await link.ask(method, params or {})
        except TimeoutError as error:
            raise ServerSilent(server=server, reason=f"no answer within {limit_s:g} s") from error
        except (LinkLost, FrameMalformed) as error:
            raise ServerSilent(server=server, reason=error.message) from error
        if response.code:
            raise ServerRefused(server=server, method=method.value, reason_code=response.code, params=response.result)
        try:
            return msgspec.msgpack.decode(payload)
        except UNDECODABLE as error:
            raise ServerSilent(server=server, reason=f"its answer makes no sense: {error}") from error

    async def _link(self, server: str) -> _Link:
        async with self._locks.setdefault(server, asyncio.Lock()):
            link = self._links.get(server)
            if link is None or link.connection.lost is not None:
                link = self._links[server] = _Link(await self._dial(server))
            return link

    async def _dial(self, server: str) -> Connection:
        role, addresses = await asyncio.to_thread(self._place, server)
        reason = "it has not said where it is yet"
        for address in addresses:
            try:
                connection = await dial_data(
                    parse_address(address), self._credentials, Expect(role, server), clock=self._clock
                )
                await open_data(connection, NAME)
            except BackhaulError as error:
                reason = str(error)
            else:
                return connection
        raise ServerSilent(server=server, reason=reason)

    def forget(self, server: str) -> None:
        """Cut the link to a server that is gone."""
        link = self._links.pop(server, None)
        if link is not None:
            link.connection.abort()
        self._locks.pop(server, None)

    async def close(self) -> None:
        """End every link."""
        links = tuple(self._links.values())
        self._links.clear()
        for link in links:
            link.connection.abort()
        await asyncio.gather(*(link.reading for link in links), return_exceptions=True)
