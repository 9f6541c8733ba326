"""One port for everything: the handshake's ALPN decides who takes the connection.

Invariant: a handler sees only peers that its route admits; nothing that a peer sends, and nothing that a handler
raises, ends the listener. Runs on the service's event loop.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from backhaul.links.certificates import PeerIdentity
from backhaul.links.connection import Connection, ConnectionSettings, farewell
from backhaul.links.cutting import cut
from backhaul.links.errors import CertificateMissing, LinkUnreachable, ProtocolRefused, RoleRefused
from backhaul.links.tls import (
    ALPN_DATA,
    ALPN_HTTP,
    CERTIFICATE_REQUIRED,
    HANDSHAKE_S,
    SHUTDOWN_S,
    Credentials,
    Gate,
)
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Clock
from backhaul.replication.values import Role

MAX_HANDSHAKES: Final = 128
"""Handshakes under way at once; more wait in the kernel's queue."""

MAX_CONNECTIONS: Final = 1024
"""Open connections of one listener: agents of one network and a few servers. Descriptors and memory are bounded."""

BACKLOG: Final = 256
ACCEPT_PAUSE_S: Final = 0.2
"""Pause when the kernel has no descriptor left."""

STREAM_LIMIT: Final = 64 * 1024
"""Bytes buffered per byte stream before its reading pauses."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end: `peer` is None where no certificate was shown (enrolment, API)."""

    address: str
    peer: PeerIdentity | None

    @property
    def name(self) -> str:
        """For messages and logs."""
        return self.peer.name if self.peer else self.address

    @property
    def host(self) -> str:
        """The address without its port: what a caller without certificate is counted under."""
        return self.address.rpartition(":")[0]


ByteStream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ProtocolFactory = Callable[[Caller], asyncio.BaseProtocol]


@dataclass(frozen=True, slots=True)
class Route:
    """What to do with connections of one ALPN. `roles` None admits every role, and callers without certificate
    where the protocol does not require one.
    """

    make: ProtocolFactory
    roles: frozenset[Role] | None = None


def data_route(
    handler: Callable[[Connection], Awaitable[None]],
    *,
    clock: Clock,
    roles: frozenset[Role] | None = None,
    settings: ConnectionSettings | None = None,
) -> Route:
    """A route to message connections; each is closed when its handler returns or raises."""

    def make(caller: Caller) -> asyncio.BaseProtocol:
        assert caller.peer is not None, "data links require a certificate"
        connection = Connection(caller.peer, settings, clock)
        _start(_run_data(handler, connection))
        return connection

    return Route(make, roles)


def stream_route(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter, Caller], Awaitable[None]],
    *,
    roles: frozenset[Role] | None = None,
) -> Route:
    """A route to byte streams (tunnel, enrolment); each is closed when its handler returns or raises."""

    def make(caller: Caller) -> asyncio.BaseProtocol:
        reader = asyncio.StreamReader(limit=STREAM_LIMIT)
        return asyncio.StreamReaderProtocol(reader, functools.partial(_run_stream, handler, caller))

    return Route(make, roles)


async def _run_data(handler: Callable[[Connection], Awaitable[None]], connection: Connection) -> None:
    try:
        await handler(connection)
    except BackhaulError as error:
        _log.info("link.ended", peer=connection.peer.name, code=error.code, reason=error.message)
        await connection.close(error)
    except Exception:
        _log.exception("link.handler_failed", peer=connection.peer.name)
        connection.abort()
    finally:
        await connection.close()


async def _run_stream(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter, Caller], Awaitable[None]],
    caller: Caller,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    try:
        await handler(reader, writer, caller)
    except (BackhaulError, OSError, EOFError) as error:
        _log.info("link.ended", peer=caller.name, reason=str(error))
    except Exception:
        _log.exception("link.handler_failed", peer=caller.name)
    finally:
        await close_stream(writer)


async def close_stream(writer: asyncio.StreamWriter) -> None:
    """Close a byte stream behind what is unsent; a peer that takes nothing is cut off."""
    writer.close()
    try:
        async with asyncio.timeout(SHUTDOWN_S):
            await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        _log.debug("link.cut", reason=str(error))
        cut(writer.transport)


_tasks: set[asyncio.Task[None]] = set()
"""asyncio itself holds tasks weakly."""


def _start(work: Awaitable[None]) -> asyncio.Task[None]:
    task = asyncio.ensure_future(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


class Listener:
    """Accepts on one port until closed. Made by `listen`."""

    def __init__(
        self,
        sockets: list[socket.socket],
        credentials: Credentials,
        routes: Mapping[str, Route],
        max_connections: int,
    ) -> None:
        self._sockets = sockets
        self._credentials = credentials
        self._routes = dict(routes)
        self._max_connections = max_connections
        self._open: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._handshakes = asyncio.Semaphore(MAX_HANDSHAKES)
        self._greeting: set[asyncio.Task[None]] = set()
        self._accepting = [asyncio.create_task(self._accept(sock)) for sock in sockets]

    @property
    def port(self) -> int:
        """The port, chosen by the kernel where 0 was asked for."""
        return int(self._sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Accept no more and cut every connection; their handlers see LinkLost."""
        work = [*self._accepting, *self._greeting]
        for task in work:
            task.cancel()
        try:
            await asyncio.gather(*work, return_exceptions=True)
        finally:  # also when whoever closes is cancelled
            for sock in self._sockets:
                sock.close()
            for transport in list(self._open):
                cut(transport)

    async def take(self, connected: socket.socket, address: str) -> None:
        """Serve a connection that came another way (a tunnel's stream) as if it had been accepted here.

        `address`, as `host:port`, is what it is named and counted under. Returns when the handshake is over.
        """
        await self._handshakes.acquire()
        await self._greet(connected, address)

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._handshakes.acquire()
            try:
                accepted, address = await loop.sock_accept(sock)
            except OSError as error:
                self._handshakes.release()
                _log.warning("listener.accept_failed", reason=str(error))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            except BaseException:
                self._handshakes.release()
                raise
            task = asyncio.create_task(self._greet(accepted, f"{address[0]}:{address[1]}"))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, accepted: socket.socket, address: str) -> None:
        """One handshake, with the credentials of this moment."""
        gate = Gate(functools.partial(self._admit, address), _farewell)
        try:
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = self._credentials.server_context(tuple(self._routes))
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: gate,
                accepted,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:
            accepted.close()
            _log.info("listener.handshake_failed", peer=address, reason=str(error))
        finally:
            self._handshakes.release()
        if gate.refused is not None:
            _log.warning("listener.refused", peer=address, code=gate.refused.code, reason=gate.refused.message)

    def _admit(self, address: str, transport: asyncio.Transport, tls: ssl.SSLObject) -> asyncio.BaseProtocol:
        protocol = tls.selected_alpn_protocol() or ALPN_HTTP
        route = self._routes.get(protocol)
        if route is None:
            raise ProtocolRefused(peer=address, protocol=protocol)
        peer = self._credentials.peer_of(tls)
        if peer is None and (protocol in CERTIFICATE_REQUIRED or route.roles is not None):
            raise CertificateMissing(peer=address, protocol=protocol)
        if peer is not None and route.roles is not None and peer.role not in route.roles:
            raise RoleRefused(peer=peer.name, expected=", ".join(sorted(route.roles)))
        if sum(not known.is_closing() for known in self._open) >= self._max_connections:
            raise LinkUnreachable(peer=address, reason=f"{self._max_connections} connections are open already")
        self._open.add(transport)
        if peer is not None:
            self._credentials.guard(transport, peer)
        return route.make(Caller(address, peer))


def _farewell(tls: ssl.SSLObject, error: BackhaulError) -> bytes:
    return farewell(error) if tls.selected_alpn_protocol() == ALPN_DATA else b""


async def listen(
    host: str,
    port: int,
    credentials: Credentials,
    routes: Mapping[str, Route],
    *,
    max_connections: int = MAX_CONNECTIONS,
) -> Listener:
    """Accept on `host` (empty: all addresses) and `port` (0: any). Raises LinkUnreachable when it is taken."""
    infos = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, kind, number, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, number)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind(address)
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise LinkUnreachable(peer=f"{host}:{port}", reason=str(error)) from error
    return Listener(sockets, credentials, routes, max_connections)
