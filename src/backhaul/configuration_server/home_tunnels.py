"""Home dials out: a tunnel to the data port of every process server that has no way of its own to here.

    agent ── stream `api` ──> process server ── home's tunnel ──> this listener, where its TLS ends
    newcomer ── bh-enrol/1 ──> process server ── stream `enrol` ──> this desk

Invariant: a process server reaches these two words and nothing else of home; what it carries is TLS that ends here, or
an enrolment that relies on nobody between. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from backhaul.configuration_server.kept_links import LOOK_S, KeptLinks, LinkState
from backhaul.links.certificates import Expect
from backhaul.links.dialer import Address, DialledStream, Redial, dial_stream
from backhaul.links.enrolment import STEP_S, Desk, serve_enrolment
from backhaul.links.errors import EnrolmentMalformed
from backhaul.links.listener import Listener, close_stream
from backhaul.links.reaching import API, ENROL
from backhaul.links.through import into, plain_stream
from backhaul.links.tls import ALPN_TUNNEL, Credentials
from backhaul.links.tunnel import Destination, Tunnel, TunnelSettings, TunnelStream
from backhaul.replication.errors import BackhaulError
from backhaul.replication.values import Role

MAX_ENROLMENTS: Final = 16
"""At once through one process server; it bounds its newcomers itself, but may be anybody's by now."""

CONVERSATION_S: Final = 3 * STEP_S
"""Three messages, each with its own limit at both ends."""

_log = structlog.get_logger(__name__)


class HomeTunnels:
    """See the module. `wanted` gives servers and addresses (`dial_book.home_dials`); it blocks."""

    def __init__(
        self,
        wanted: Callable[[], Mapping[str, Sequence[Address]]],
        credentials: Credentials,
        listener: Listener,
        desk: Desk,
        world: Redial,
        *,
        look_s: float = LOOK_S,
        settings: TunnelSettings | None = None,
    ) -> None:
        self._credentials, self._listener, self._desk = credentials, listener, desk
        self._world, self._settings = world, settings
        self._links: KeptLinks[DialledStream] = KeptLinks(wanted, self._connect, self._serve, world, look_s)

    async def run(self) -> None:
        """Keep the tunnels until cancelled."""
        await self._links.run()

    def wake(self) -> None:
        """A server was registered, announced itself, or its setting changed: look at once."""
        self._links.wake()

    def wake_threadsafe(self) -> None:
        """`wake` for worker threads."""
        self._links.wake_threadsafe()

    def states(self) -> dict[str, LinkState]:
        """Each tunnel that is to be there: up since when, or down and why."""
        return self._links.states()

    def state(self, server: str) -> LinkState | None:
        """One tunnel; None where home keeps none."""
        return self._links.state(server)

    async def _connect(self, server: str, address: Address) -> DialledStream:
        return await dial_stream(address, self._credentials, ALPN_TUNNEL, Expect(Role.PROCESS_SERVER, server))

    async def _serve(self, server: str, address: Address, dialled: DialledStream) -> None:
        tunnel = Tunnel(
            dialled.reader,
            dialled.writer,
            f"{Role.PROCESS_SERVER}/{server}",
            {API: into(self._listener, f"through {server}"), ENROL: self._enrolment(server)},
            dialled=True,
            clock=self._world.clock,
            settings=self._settings,
        )
        _log.info("home_tunnel.up", server=server, address=str(address))
        try:
            await tunnel.run()
        finally:
            _log.info("home_tunnel.down", server=server, reason=str(tunnel.lost or ""))
            await close_stream(dialled.writer)

    def _enrolment(self, server: str) -> Destination:
        limit = asyncio.Semaphore(MAX_ENROLMENTS)

        async def serve(stream: TunnelStream) -> None:
            async with limit, asyncio.timeout(CONVERSATION_S):
                newcomer = await _newcomer(stream)
                origin = f"{newcomer} through {server}"
                async with plain_stream(stream) as (reader, writer):
                    try:
                        await serve_enrolment(reader, writer, self._desk, address=origin)
                    except BackhaulError as error:  # the newcomer was told
                        _log.info("enrolment.refused", newcomer=origin, code=error.code, reason=error.message)

        return serve


async def _newcomer(stream: TunnelStream) -> str:
    """The newcomer's address, which the process server put before its bytes. Raises EnrolmentMalformed, StreamReset."""
    header = b""
    while not header or len(header) <= header[0]:
        part = await stream.read(1 + header[0] - len(header) if header else 1)
        if not part:
            raise EnrolmentMalformed(peer=stream.destination, reason="it ended before it named the newcomer")
        header += part
    try:
        name = header[1:].decode("ascii")
    except UnicodeDecodeError as error:
        raise EnrolmentMalformed(peer=stream.destination, reason="the newcomer's address is not ASCII") from error
    if not name or not name.isprintable():
        raise EnrolmentMalformed(peer=stream.destination, reason="it names no newcomer")
    return name
