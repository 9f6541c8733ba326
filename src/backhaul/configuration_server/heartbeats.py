"""Asks every registered process server and master target for its state, again and again.

Invariant: a server that does not answer shows as silent, never by its old figures; one slow server delays no other.
One task on the event loop.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
import structlog

from backhaul.configuration_server.control_links import ControlLinks
from backhaul.configuration_server.errors import ServerSilent
from backhaul.configuration_server.live import Live
from backhaul.configuration_server.records import ServerRecord
from backhaul.configuration_server.registry import REGISTERED, Registry
from backhaul.process_server.health import Health
from backhaul.replication.control import ItemStatus, Method, ServerStatus
from backhaul.replication.errors import BackhaulError
from backhaul.replication.values import Role

ANSWER_S: Final = 10.0
"""A server that takes longer to say how it is does not do well."""

AT_ONCE: Final = 32
_RATE_S: Final = 60

_log = structlog.get_logger(__name__)


class Heartbeats:
    """The asking task."""

    def __init__(self, registry: Registry, links: ControlLinks, live: Live, every_s: float) -> None:
        self._registry, self._links, self._live, self._every_s = registry, links, live, every_s
        self._limit = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self.round()
            await asyncio.sleep(self._every_s)

    async def round(self) -> None:
        """Ask every server once."""
        servers = await asyncio.to_thread(self._registry.list)
        asked = [s for s in servers if s.state == REGISTERED and s.kind is not Role.AGENT]
        await asyncio.gather(*(self._ask(server) for server in asked))

    async def _ask(self, server: ServerRecord) -> None:
        async with self._limit:
            try:
                answer = await self._links.request(server.id, Method.STATUS, limit_s=ANSWER_S)
                if server.kind is Role.MASTER_TARGET:
                    self._live.heard(server.id, convert(answer, ServerStatus, server.id))
                    await self._ask_items(server.id)
                else:
                    health: Health = convert(answer, Health, server.id)
                    self._live.heard(server.id, relay_status(server.id, health), health.items)
                await asyncio.to_thread(self._registry.heard, server.id)
            except BackhaulError as error:
                self._live.silent(server.id, error.message)

    async def _ask_items(self, server: str) -> None:
        answer = await self._links.request(server, Method.ITEM_LIST, limit_s=ANSWER_S)
        for status in convert(answer, list[ItemStatus], server):
            self._live.target_said(status)


def convert(value: Any, kind: Any, server: str) -> Any:
    """A result as `kind`. Raises ServerSilent for one that makes no sense: it says nothing."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ServerSilent(server=server, reason=f"its answer makes no sense: {error}") from error


def relay_status(server_id: str, health: Health) -> ServerStatus:
    """A process server's own figures in the form that all servers have."""
    return ServerStatus(
        role=Role.PROCESS_SERVER,
        id=server_id,
        name=health.name,
        version=health.version,
        started_ns=health.started_ns,
        now_ns=health.sampled_ns,
        cpu_percent=health.machine_cpu_percent,
        memory_total=health.machine_memory_total_bytes,
        memory_available=health.machine_memory_total_bytes - health.machine_memory_used_bytes,
        space_total=health.spool_bound_bytes,
        space_free=int(health.free_share * health.spool_bound_bytes),
        backlog_bytes=health.backlog_bytes,
        backlog_oldest_s=health.oldest_age_s,
        in_bytes_per_s=health.in_rate.get(_RATE_S, 0.0),
        out_bytes_per_s=health.out_rate.get(_RATE_S, 0.0),
        items=tuple(item.item for item in health.items),
        peers=tuple(f"{peer.role}/{peer.id}" for peer in health.peers),
        certificate_not_after_ns=0,
        details={"blocked": health.blocked, "damages": list(health.damages), "stalled": health.stalled_items},
    )
