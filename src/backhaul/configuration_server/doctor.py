"""`doctor`: walks the ladder to a server or through an item, rung by rung, and stops at the broken one.

Each rung is looked at now, not taken from records, and has a stable id; a broken one has a code and a fix. The order is
that of the classic product's diagnosis (reference/azure-site-recovery.md 2.5) but that a cause comes before what
follows from it: here a heartbeat is an answer to this server's question, and brings the other's clock, so both stand
on TCP and certificate. Of its rungs the firewall shows as TCP, a proxy as TLS; antivirus has none: nothing here scans
files. On the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from backhaul.configuration_server.doctor_errors import (
    RungAgentSilent,
    RungBlocked,
    RungClock,
    RungHeartbeat,
    RungService,
    RungSpace,
    RungUnregistered,
    RungUnstarted,
)
from backhaul.configuration_server.doctor_item import walk_item
from backhaul.configuration_server.errors import ServerSilent
from backhaul.configuration_server.heartbeats import ANSWER_S, convert, relay_status
from backhaul.configuration_server.items import target_of
from backhaul.configuration_server.occupancy import running_in
from backhaul.configuration_server.records import ServerRecord
from backhaul.configuration_server.registry import REGISTERED, addresses_of
from backhaul.configuration_server.settings import parse_address
from backhaul.links.certificates import Expect
from backhaul.links.cutting import cut
from backhaul.links.dialer import dial_data
from backhaul.links.errors import LinkUnreachable
from backhaul.process_server.health import Health
from backhaul.replication.control import Method, ServerStatus
from backhaul.replication.errors import BackhaulError
from backhaul.replication.values import Role

if TYPE_CHECKING:
    from backhaul.configuration_server.plane import ControlPlane

TCP_S: Final = 5.0
SPACE_CRITICAL: Final = 0.25
REPORT_S: Final = 30.0
"""An agent reports every second; half a minute without is silence."""


class BrokenRung(Exception):
    """The walk ends here."""


class Ladder:
    """The rungs so far."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.rungs: list[dict[str, Any]] = []

    @contextlib.asynccontextmanager
    async def rung(self, id: str, name: str) -> AsyncIterator[None]:
        """One rung; an error in it is shown with its fix and ends the walk."""
        entry: dict[str, Any] = {"id": id, "rung": name, "ok": True, "code": "", "reason": "", "fix": ""}
        self.rungs.append(entry)
        try:
            yield
        except BackhaulError as error:
            entry |= {"ok": False, "code": error.code, "reason": error.message, "fix": error.advice}
            raise BrokenRung from error

    def result(self) -> dict[str, Any]:
        """For the API."""
        return {"subject": self.subject, "ok": all(rung["ok"] for rung in self.rungs), "rungs": self.rungs}


@dataclass(frozen=True, slots=True)
class Answered:
    """A server's own answer to this walk. `relay`: a process server's, item by item."""

    status: ServerStatus
    relay: Health | None = None


class Doctor:
    """Walks ladders."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def server(self, name: str) -> dict[str, Any]:
        """The ladder of a server or agent. Raises ResourceUnknown."""
        server = await asyncio.to_thread(self._plane.registry.get, name)
        ladder = Ladder(server.name)
        with contextlib.suppress(BrokenRung):
            await self._walk_server(ladder, server)
        return ladder.result()

    async def item(self, name: str) -> dict[str, Any]:
        """The ladder of an item: agent, process server, target, the links between them, stream, points.

        Raises ResourceUnknown.
        """
        record = await asyncio.to_thread(self._plane.items.get, name)
        ladder = Ladder(record.name)
        answers: dict[str, Answered] = {}
        with contextlib.suppress(BrokenRung):
            for server_id in (record.agent, record.process_server, target_of(record)):
                if server_id:
                    server = await asyncio.to_thread(self._plane.registry.get, server_id)
                    answered = await self._walk_server(ladder, server)
                    answers |= {} if answered is None else {server_id: answered}
            await walk_item(self._plane, ladder, record, answers)
        return ladder.result()

    async def _walk_server(self, ladder: Ladder, server: ServerRecord) -> Answered | None:
        """What it answered; None for an agent, which is not asked."""
        who = f"{server.role} {server.name}"
        async with ladder.rung("registered", f"{who}: registered"):
            if server.state != REGISTERED:
                self._plane.home.check_awaited(server.id)
                command = self._plane.next_command(server) or "register it again"
                raise RungUnregistered(server=who, state=server.state, command=command)
        if server.kind is Role.AGENT:
            await self._walk_agent(ladder, server, who)
            return None
        async with ladder.rung("address", f"{who}: has said where it is"):
            if not addresses_of(server):
                raise RungUnstarted(server=who, command=self._plane.next_command(server))
        if server.built_in:
            async with ladder.rung("service", f"{who}: service runs"):
                await asyncio.to_thread(self._check_service, server, who)
        async with ladder.rung("tcp", f"{who}: TCP connection"):
            await _connect(addresses_of(server))
        async with ladder.rung("tls", f"{who}: TLS and certificate"):
            await self._greet(server)
        async with ladder.rung("answers", f"{who}: answers"):
            answered = await self._ask(server)
        async with ladder.rung("heartbeat", f"{who}: heartbeat"):
            self._check_heartbeat(server, who)
        tunnel = self._plane.home.tunnels.state(server.id)
        if tunnel is not None:
            async with ladder.rung("tunnel", f"{who}: tunnel from home"):
                tunnel.check()
        await self._walk_figures(ladder, server, answered.status, who)
        return answered

    async def _walk_figures(self, ladder: Ladder, server: ServerRecord, status: ServerStatus, who: str) -> None:
        limit_s = self._plane.vault.settings.thresholds.clock_skew_s
        async with ladder.rung("clock", f"{who}: clock"):
            skew_s = (status.now_ns - self._plane.vault.clock.wall_ns()) / 1e9
            if abs(skew_s) > limit_s:
                raise RungClock(server=who, skew_s=f"{skew_s:.0f}", limit_s=f"{limit_s:g}")
        async with ladder.rung("space", f"{who}: free space"):
            blocked = status.details.get("blocked")
            if blocked:
                raise RungBlocked(server=who, reason=blocked)
            if status.space_free < SPACE_CRITICAL * status.space_total and server.kind is Role.PROCESS_SERVER:
                raise RungSpace(server=who, percent=f"{100 * status.space_free / max(1, status.space_total):.0f}")

    async def _walk_agent(self, ladder: Ladder, server: ServerRecord, who: str) -> None:
        async with ladder.rung("reports", f"{who}: reports"):
            known = self._plane.live.agents.get(server.id)
            age_s = self._plane.live.age_s(known[1]) if known else None
            if age_s is None or age_s > REPORT_S:
                silent = (
                    "has not reported since this server started" if age_s is None else f"is silent for {age_s:.0f} s"
                )
                raise RungAgentSilent(server=who, age=silent)

    def _check_service(self, server: ServerRecord, who: str) -> None:
        vault = self._plane.vault
        folder = vault.data_dir / str(server.role)  # as `built_in` lays them out
        if running_in(vault.files, folder) is None:
            raise RungService(server=who, log=folder / "service.log")

    def _check_heartbeat(self, server: ServerRecord, who: str) -> None:
        """Heartbeats are asked for by another task than this one, so that one answer does not make up for them."""
        live = self._plane.live
        age_s = live.age_s(live.server(server.id).at_ns)
        if age_s is None or age_s > self._plane.vault.settings.thresholds.unknown_after_s:
            raise RungHeartbeat(server=who, age="never" if age_s is None else f"{age_s:.0f} s ago")

    async def _ask(self, server: ServerRecord) -> Answered:
        answer = await self._plane.links.request(server.id, Method.STATUS, limit_s=ANSWER_S)
        if server.kind is Role.MASTER_TARGET:
            return Answered(convert(answer, ServerStatus, server.id))
        health: Health = convert(answer, Health, server.id)
        return Answered(relay_status(server.id, health), health)

    async def _greet(self, server: ServerRecord) -> None:
        plane = self._plane
        last: BackhaulError = ServerSilent(server=server.id, reason="it has no address")
        for address in addresses_of(server):
            try:
                connection = await dial_data(
                    parse_address(address),
                    plane.vault.credentials,
                    Expect(server.kind, server.id),
                    clock=plane.vault.clock,
                )
            except BackhaulError as error:
                last = error
            else:
                connection.abort()
                return
        raise last


async def _connect(addresses: tuple[str, ...]) -> None:
    """A TCP connection to any of the addresses, and nothing more. Raises LinkUnreachable."""
    reason = ""
    for text in addresses:
        address = parse_address(text)
        try:
            async with asyncio.timeout(TCP_S):
                _, writer = await asyncio.open_connection(address.host, address.port)
        except (OSError, TimeoutError) as error:
            reason = str(error) or f"no answer within {TCP_S:g} s"
        else:
            cut(writer.transport)
            return
    raise LinkUnreachable(peer=", ".join(addresses), reason=reason)
