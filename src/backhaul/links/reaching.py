"""Ways to the configuration server's API, for servers and agents that have their certificate.

Home dials out: where nothing can dial home, the way leads through a process server, or (on the process server itself)
through the tunnel that home keeps to it. Which way is taken is a setting. Invariant: whatever the way, what is returned
is TLS with a configuration server of the vault, checked by its certificate; a process server between sees ciphertext.
On the service's event loop.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from backhaul.links.certificates import Expect
from backhaul.links.dialer import Address, DialledStream, dial_stream
from backhaul.links.errors import HandshakeFailed, LinkLost, LinkUnreachable, StreamReset
from backhaul.links.through import socket_to
from backhaul.links.tls import ALPN_HTTP, ALPN_TUNNEL, Credentials
from backhaul.links.tunnel import Tunnel, TunnelSettings
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Clock
from backhaul.replication.values import Role

API: Final = "api"
"""Destination: the configuration server's own TLS port. Inside the stream a TLS connection of its own is opened."""

ENROL: Final = "enrol"
"""Destination: the configuration server's enrolment desk; see `process_server.enrol_relay` for the first bytes."""

AGAIN_NS: Final = 300 * 1_000_000_000
"""A way that failed has its turn behind the others for so long: a dropped packet costs a whole time-out to find out."""

HOME: Final = Expect(Role.CONFIGURATION_SERVER)
_THROUGH: Final = Address("the configuration server through a tunnel", 0)

_log = structlog.get_logger(__name__)


class Reach(enum.StrEnum):
    """The setting: how a server or agent reaches the configuration server."""

    DIRECT = "direct"
    """Its own addresses first (same network, or a VPN), a process server's if those do not answer."""

    PROCESS_SERVER = "process-server"
    """Only through a process server: one address, one port."""


class Way(Protocol):
    """One way. Each call makes a new connection."""

    async def connect(self) -> DialledStream:
        """A connection to the API. Raises LinkError's and TunnelError's kinds."""
        ...

    async def close(self) -> None:
        """Give up what is kept between calls."""
        ...


class DirectWay:
    """Dials the configuration server; every address it was ever told, in turn."""

    def __init__(self, addresses: Callable[[], Sequence[Address]], credentials: Credentials) -> None:
        self._addresses, self._credentials = addresses, credentials

    async def connect(self) -> DialledStream:
        """See `Way`."""
        last: BackhaulError = LinkUnreachable(peer=str(HOME), reason="no address of it is known")
        for address in tuple(self._addresses()):
            try:
                return await dial_stream(address, self._credentials, ALPN_HTTP, HOME)
            except BackhaulError as error:
                last = error
        raise last

    async def close(self) -> None:
        """Nothing is kept."""


class HomeTunnelWay:
    """The process server's own way: through the tunnel that home dialled."""

    def __init__(self, home: Callable[[], Tunnel | None], credentials: Credentials) -> None:
        self._home, self._credentials = home, credentials

    async def connect(self) -> DialledStream:
        """See `Way`."""
        tunnel = self._home()
        if tunnel is None:
            raise LinkLost(peer=str(HOME), reason="home has not dialled this process server")
        return await _open_api(tunnel, self._credentials)

    async def close(self) -> None:
        """The tunnel is home's."""


class RelayWay:
    """An agent's way: a tunnel to a process server of its network, kept; each connection is a stream in it."""

    def __init__(
        self,
        addresses: Callable[[], Sequence[Address]],
        credentials: Credentials,
        clock: Clock,
        *,
        server: str | None = None,
        settings: TunnelSettings | None = None,
    ) -> None:
        """`server`: the id that the process server's certificate must have; None accepts any of the vault."""
        self._addresses, self._credentials, self._clock, self._settings = addresses, credentials, clock, settings
        self._expect = Expect(Role.PROCESS_SERVER, server)
        self._lock = asyncio.Lock()
        self._tunnel: Tunnel | None = None
        self._running: asyncio.Task[None] | None = None

    async def connect(self) -> DialledStream:
        """See `Way`."""
        async with self._lock:
            if self._tunnel is None or self._tunnel.lost is not None:
                await self._dial()
            tunnel = self._tunnel
        assert tunnel is not None, "dialled above"
        return await _open_api(tunnel, self._credentials)

    async def _dial(self) -> None:
        await self._end()
        last: BackhaulError = LinkUnreachable(peer=str(self._expect), reason="no address of it is known")
        for address in tuple(self._addresses()):
            try:
                dialled = await dial_stream(address, self._credentials, ALPN_TUNNEL, self._expect)
            except BackhaulError as error:
                last = error
                continue
            assert dialled.peer is not None, "dial_stream checks the certificate"
            name = dialled.peer.name
            self._tunnel = Tunnel(
                dialled.reader, dialled.writer, name, {}, dialled=True, clock=self._clock, settings=self._settings
            )
            self._running = asyncio.create_task(_run(self._tunnel), name=f"tunnel to {name}")
            return
        raise last

    async def close(self) -> None:
        """End the tunnel."""
        async with self._lock:
            await self._end()

    async def _end(self) -> None:
        if self._tunnel is not None and self._running is not None:
            await self._tunnel.close()
            await self._running
        self._tunnel = self._running = None


async def _run(tunnel: Tunnel) -> None:
    try:
        await tunnel.run()
    except BackhaulError as error:
        _log.info("tunnel.down", peer=tunnel.peer, code=error.code, reason=error.message)


async def _open_api(tunnel: Tunnel, credentials: Credentials) -> DialledStream:
    """The inner connection: its TLS ends at the configuration server."""
    stream = await tunnel.open(API)
    way, _ = socket_to(stream)
    try:
        return await dial_stream(_THROUGH, credentials, ALPN_HTTP, HOME, way=way)
    except HandshakeFailed as error:
        try:
            await stream.end()
        except StreamReset as reset:
            raise reset from error  # the other end's reason says more than the handshake that it broke
        raise
    except BaseException:
        stream.reset("the connection did not come about")
        raise


class FirstWay:
    """Several ways, the first that works; one that failed lately has its turn last."""

    def __init__(self, ways: Sequence[Way], clock: Clock) -> None:
        self._ways, self._clock = tuple(ways), clock
        self._failed_ns: dict[int, int] = {}

    async def connect(self) -> DialledStream:
        """See `Way`."""
        last: BackhaulError = LinkUnreachable(peer=str(HOME), reason="no way to it is set")
        for number in self._order():
            try:
                dialled = await self._ways[number].connect()
            except BackhaulError as error:
                self._failed_ns[number] = self._clock.monotonic_ns()
                last = error
            else:
                self._failed_ns.pop(number, None)
                return dialled
        raise last

    def _order(self) -> list[int]:
        now = self._clock.monotonic_ns()

        def lately(number: int) -> bool:
            return now - self._failed_ns.get(number, now - AGAIN_NS) < AGAIN_NS

        return sorted(range(len(self._ways)), key=lately)

    async def close(self) -> None:
        """Close each."""
        for way in self._ways:
            await way.close()


def make_way(
    reach: Reach,
    credentials: Credentials,
    clock: Clock,
    *,
    direct: Callable[[], Sequence[Address]],
    process_servers: Callable[[], Sequence[Address]],
    server: str | None = None,
) -> Way:
    """The way that the setting names. `direct` is not dialled where the setting is PROCESS_SERVER."""
    relay = RelayWay(process_servers, credentials, clock, server=server)
    if reach is Reach.PROCESS_SERVER:
        return relay
    return FirstWay((DirectWay(direct, credentials), relay), clock)
