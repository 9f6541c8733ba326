"""A vault's authority and its servers in a folder, a clock that stands still, and links on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backhaul.links.authority import Authority, AuthorityStore
from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, ConnectionSettings
from backhaul.links.dialer import Address, dial_data
from backhaul.links.identity import UNSEALED, Identity, KeySeal
from backhaul.links.listener import Listener, Route, data_route, listen
from backhaul.links.tls import ALPN_DATA, Credentials
from backhaul.replication.ports import Clock, RealClock, RealFiles, RealRandomness
from backhaul.replication.values import Role

DAY_NS: Final = 24 * 3600 * 1_000_000_000
PROCESS_SERVER: Final = Expect(Role.PROCESS_SERVER, "ps1")


@dataclass
class HandClock:
    """Time passes only by `advance`."""

    wall: int = field(default_factory=time.time_ns)
    monotonic: int = 0

    def wall_ns(self) -> int:
        return self.wall

    def monotonic_ns(self) -> int:
        return self.monotonic

    def advance(self, ns: int) -> None:
        self.wall += ns
        self.monotonic += ns


def make_authority(
    folder: Path, *, vault: str = "v1", clock: Clock | None = None, seal: KeySeal = UNSEALED
) -> Authority:
    """A fresh authority in `folder`."""
    return Authority.create(vault, AuthorityStore(RealFiles(), folder, clock or RealClock(), RealRandomness(), seal))


@dataclass
class Vault:
    """An authority and credentials of some servers of it."""

    authority: Authority

    def identity(self, role: Role, peer_id: str) -> Identity:
        return self.authority.own_identity(role, peer_id)

    def credentials(self, role: Role, peer_id: str) -> Credentials:
        return Credentials(self.identity(role, peer_id), RealClock())


Handler = Callable[[Connection], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(credentials: Credentials, routes: dict[str, Route]) -> AsyncIterator[Listener]:
    """A listener on loopback."""
    listener = await listen("127.0.0.1", 0, credentials, routes)
    try:
        yield listener
    finally:
        await listener.close()


@contextlib.asynccontextmanager
async def linked(
    vault: Vault,
    handler: Handler,
    *,
    settings: ConnectionSettings | None = None,
    clock: Clock | None = None,
    server_clock: Clock | None = None,
) -> AsyncIterator[Connection]:
    """An agent's connection to a process server that runs `handler`."""
    route = data_route(handler, clock=server_clock or RealClock(), settings=settings)
    async with listening(vault.credentials(Role.PROCESS_SERVER, "ps1"), {ALPN_DATA: route}) as listener:
        connection = await dial_data(
            Address("127.0.0.1", listener.port),
            vault.credentials(Role.AGENT, "a1"),
            PROCESS_SERVER,
            clock=clock or RealClock(),
            settings=settings,
        )
        try:
            yield connection
        finally:
            await connection.close()


async def until_lost(connection: Connection) -> Exception:
    """Takes messages until the connection ends, and gives the error."""
    try:
        while True:
            await connection.receive()
    except Exception as error:
        return error


async def until(condition: Callable[[], object]) -> None:
    """Lets the event loop go round until the condition holds; the test's timeout is the bound."""
    while not condition():  # noqa: ASYNC110 - the condition is the code under test's own state
        await asyncio.sleep(0)


async def turns(count: int = 10) -> None:
    """Lets the event loop go round; for asserting that something does *not* happen."""
    for _ in range(count):
        await asyncio.sleep(0)
