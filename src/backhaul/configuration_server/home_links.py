"""What home dials, as one value: the tunnels to process servers, and servers that wait to be registered.

Made by `serving` beside the listener whose API the tunnels lead to; asked by `doctor` and by views of servers. Event
loop only.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from backhaul.configuration_server.dial_book import DialBook, DialEntry, Dialling, home_dials
from backhaul.configuration_server.enrolment_dialling import EnrolmentDialling
from backhaul.configuration_server.home_tunnels import HomeTunnels
from backhaul.configuration_server.kept_links import LOOK_S, LinkState
from backhaul.configuration_server.registry import Registry
from backhaul.configuration_server.shapes.times import utc_text
from backhaul.configuration_server.vault import Vault
from backhaul.links.dialer import Address
from backhaul.links.enrolment import Desk
from backhaul.links.listener import Listener
from backhaul.recovery.health import Alert, Assessment
from backhaul.recovery.preflight_facts import Health
from backhaul.replication.values import Role


class HomeLinks:
    """See the module."""

    def __init__(
        self, vault: Vault, registry: Registry, listener: Listener, desk: Desk, *, look_s: float = LOOK_S
    ) -> None:
        self.book = DialBook(vault.database)
        self.tunnels = HomeTunnels(
            lambda: home_dials(registry, self.book), vault.credentials, listener, desk, vault.world, look_s=look_s
        )
        self.enrolments = EnrolmentDialling(self.book.awaited, desk, self._enrolled, vault.world, look_s=look_s)

    async def run(self) -> None:
        """Dial until cancelled."""
        await asyncio.gather(self.tunnels.run(), self.enrolments.run())

    async def expect(
        self, server: str, role: Role, addresses: tuple[str, ...], key_hash: bytes, dialling: Dialling = Dialling.HOME
    ) -> None:
        """A server was deployed and shows this key hash; dial it from now on. Raises AddressWrong, BodyWrong."""
        await asyncio.to_thread(self.book.expect, server, role, addresses, key_hash, dialling)
        self.enrolments.wake()

    async def set_dialling(self, server: str, role: Role, dialling: Dialling) -> None:
        """Who dials this server from now on."""
        await asyncio.to_thread(self.book.set_dialling, server, role, dialling)
        self.enrolments.wake()
        self.tunnels.wake()

    async def forget(self, server: str) -> None:
        """It was deleted."""
        await asyncio.to_thread(self.book.forget, server)
        self.enrolments.wake()
        self.tunnels.wake()

    def _enrolled(self, entry: DialEntry, address: Address) -> None:
        self.book.tell(entry.server, entry.role, [str(address)])
        self.book.registered(entry.server)
        self.tunnels.wake_threadsafe()

    def check_awaited(self, server: str) -> None:
        """Raises why a deployed server cannot register over home's connection; nothing where none is awaited."""
        refused, state = self.enrolments.refusal(server), self.enrolments.states().get(server)
        if state is not None and refused is not None:
            raise refused
        if state is not None:
            state.check()

    def shape(self, server: str) -> dict[str, Any] | None:
        """The state of home's link to a server, for views; None where home keeps none."""
        state = self.tunnels.state(server)
        if state is not None:
            return _shape("tunnel", state)
        state = self.enrolments.states().get(server)
        return _shape("enrolment", state) if state is not None else None


def with_home_link(found: Assessment, state: LinkState | None) -> Assessment:
    """A process server's health, with home's tunnel to it: while that is down, nobody behind it reaches this server."""
    if state is None or state.up or state.error is None:
        return found
    error = state.error
    alert = Alert(error.code, Health.WARNING, f"Home's tunnel to it is down: {error.message}", (), error.advice)
    health = Health.WARNING if found.health is Health.HEALTHY else found.health
    return Assessment(health, (*found.alerts, alert))


def _shape(kind: str, state: LinkState) -> dict[str, Any]:
    error = state.error
    return {
        "kind": kind,
        "up": state.up,
        "since": utc_text(state.since_ns),
        "address": state.address,
        "code": error.code if error else "",
        "reason": error.message if error else "",
        "fix": error.advice if error else "",
        "params": msgspec.to_builtins({name: str(value) for name, value in error.params.items()}) if error else {},
    }
