"""HTTP on the one TLS port: connections whose ALPN is `http/1.1` (or none) go to the API's application.

uvicorn's protocol is given the transport after the handshake; whose certificate was shown, if any, is in the ASGI
scope under `PEER`. Bodies are bounded before anything reads them. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from backhaul.configuration_server.errors import BodyTooLarge
from backhaul.links.certificates import PeerIdentity
from backhaul.links.listener import Caller, Route
from backhaul.replication.units import MiB

PEER: Final = "backhaul.peer"
MAX_BODY: Final = 1 * MiB
"""The largest body is an agent's report: some hundred bytes per disk."""

KEEP_ALIVE_S: Final = 30
"""A client that polls every few seconds keeps its connection."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class HttpFront:
    """Makes the HTTP end of connections, and ends them at shutdown."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._config = Config(
            application,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()
        self._state = ServerState()

    @property
    def route(self) -> Route:
        """The listener's route; who may call what, the route table says."""
        return Route(self._make)

    def _make(self, caller: Caller) -> asyncio.BaseProtocol:
        protocol = H11Protocol(config=self._config, server_state=self._state, app_state={})
        protocol.app = _Connected(self._application, caller.peer)
        return protocol

    async def close(self) -> None:
        """End idle connections and wait for requests in hand; the caller bounds how long."""
        for connection in tuple(self._state.connections):
            connection.shutdown()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)


class _Connected:
    """The application as one connection sees it."""

    def __init__(self, application: Application, peer: PeerIdentity | None) -> None:
        self._application, self._peer = application, peer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise BodyTooLarge(limit=MAX_BODY)
            return message

        scope[PEER] = self._peer
        await self._application(scope, bounded, send)
