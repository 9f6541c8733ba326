"""Passes the configuration server's API on to the agents of this network.

Home dials out: the configuration server opens a tunnel to this process server, agents open one each, and a stream
that an agent opens to `api` goes through the newest tunnel from home. TLS inside the streams ends at the configuration
server: what passes here is ciphertext. Invariant: the word `api` is all that can be reached, and no agent holds more
than its share of the streams. On the event loop.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Final

import structlog

from backhaul.links.forwarding import relay_to
from backhaul.links.listener import Caller, Route, stream_route
from backhaul.links.reaching import API
from backhaul.links.tunnel import Destination, Tunnel, TunnelSettings
from backhaul.replication.ports import Clock
from backhaul.replication.values import Role

MAX_STREAMS: Final = 16
"""Streams of one agent's tunnel: it keeps four connections to the API and makes some anew; home's tunnel has 256."""

MAX_TUNNELS: Final = 2
"""Tunnels of one agent: its present one, and one that broke and was not noticed yet. A further one ends the oldest."""

_ROLES: Final = frozenset({Role.CONFIGURATION_SERVER, Role.AGENT, Role.MASTER_TARGET, Role.PROCESS_SERVER})
"""A process server: this one's own registration tool, which reaches home as the agents behind it do."""

_log = structlog.get_logger(__name__)


class ApiRelay:
    """Holds the tunnels from home."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._homes: list[Tunnel] = []
        self._others: defaultdict[str, list[Tunnel]] = defaultdict(list)

    @property
    def home(self) -> Tunnel | None:
        """The newest tunnel of a configuration server; None while none is up."""
        return self._homes[-1] if self._homes else None

    def route(self) -> Route:
        """For the listener, under `bh-tunnel/1`."""
        return stream_route(self._serve, roles=_ROLES)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        assert caller.peer is not None, "tunnels require a certificate"
        if caller.peer.role is Role.CONFIGURATION_SERVER:
            await self._serve_home(Tunnel(reader, writer, caller.name, {}, dialled=False, clock=self._clock))
            return
        reachable: dict[str, Destination] = {API: relay_to(lambda: self.home, API)}
        settings = TunnelSettings(max_streams=MAX_STREAMS)
        tunnel = Tunnel(reader, writer, caller.name, reachable, dialled=False, clock=self._clock, settings=settings)
        theirs = self._others[caller.name]
        theirs.append(tunnel)
        try:
            if len(theirs) > MAX_TUNNELS:
                _log.warning("tunnel.replaced", peer=caller.name)
                await theirs.pop(0).close()
            await tunnel.run()
        finally:
            if tunnel in theirs:
                theirs.remove(tunnel)
            if not theirs:
                self._others.pop(caller.name, None)

    async def _serve_home(self, tunnel: Tunnel) -> None:
        self._homes.append(tunnel)
        _log.info("tunnel.up", peer=tunnel.peer)
        try:
            await tunnel.run()
        finally:
            self._homes.remove(tunnel)
            _log.info("tunnel.down", peer=tunnel.peer)
