"""The rungs of the way to a server: name, TCP, TLS, what answers. Probes climb until one breaks, and say which.

For the registration tool before it sends anything, and for `doctor` on either side. Invariant: a probe changes nothing
at the other end and sends no secret; each rung is looked at now, with a connection of its own, and bounded in time.
On an event loop.
"""

from __future__ import annotations

import asyncio
import enum
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from backhaul.links.certificates import Expect
from backhaul.links.connection import open_data
from backhaul.links.cutting import cut
from backhaul.links.dialer import CONNECT_S, Address, dial_data, dial_enrolment, dial_stream
from backhaul.links.enrolment import check_offer, receive_offer
from backhaul.links.errors import DataPortTaken, LinkUnreachable, NameUnresolved
from backhaul.links.listener import close_stream
from backhaul.links.passphrase import Passphrase
from backhaul.links.tls import ALPN_HTTP, Credentials
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Clock
from backhaul.replication.values import Role

HTTPS_PORT: Final = 443
"""The configuration server's; a data port there would be taken for it."""


class Rung(enum.StrEnum):
    """A rung, in the order of climbing."""

    DATA_PORT = "data port"
    NAME = "name resolution"
    TCP = "TCP connection"
    TLS = "TLS"
    ENROLMENT = "enrolment answers"
    SERVER = "server answers"


@dataclass(frozen=True, slots=True)
class Climbed:
    """How far a probe came: the rungs that held, and the one that broke with why; `error` None: all held."""

    held: tuple[Rung, ...]
    broken: Rung | None = None
    error: BackhaulError | None = None

    def check(self) -> None:
        """Raises what broke."""
        if self.error is not None:
            raise self.error


Step = Callable[[], Awaitable[None]]


async def climb(steps: list[tuple[Rung, Step]]) -> Climbed:
    """Take the steps in order until one raises a BackhaulError."""
    held: list[Rung] = []
    for rung, step in steps:
        try:
            await step()
        except BackhaulError as error:
            return Climbed(tuple(held), rung, error)
        held.append(rung)
    return Climbed(tuple(held))


async def probe_enrolment(address: Address, clock: Clock, passphrase: Passphrase | None = None) -> Climbed:
    """The way of a registration to the configuration server (or to a process server that passes it on).

    With the passphrase, also that the one it was made by answers; nothing of it is sent. Rungs: name (NameUnresolved),
    TCP (LinkUnreachable), TLS (HandshakeFailed, ProtocolRefused), enrolment (EnrolmentError's kinds).
    """

    async def tls() -> None:
        await close_stream((await dial_enrolment(address)).writer)

    async def answers() -> None:
        dialled = await dial_enrolment(address)
        try:
            offer = await receive_offer(dialled.reader, str(address))
            if passphrase is not None:
                check_offer(offer, passphrase, clock.wall_ns(), str(address))
        finally:
            await close_stream(dialled.writer)

    return await climb([*_reach(address), (Rung.TLS, tls), (Rung.ENROLMENT, answers)])


async def probe_server(address: Address, credentials: Credentials, expect: Expect, clock: Clock) -> Climbed:
    """The way to a registered server's data port, from one that has a certificate of its own.

    Rungs: name, TCP, TLS (with the certificate's kinds: expired, revoked, another server's), server (it greets, and so
    accepts our certificate: LinkLost, LinkEnded, VersionUnsupported).
    """

    async def tls() -> None:
        (await dial_data(address, credentials, expect, clock=clock)).abort()

    async def answers() -> None:
        connection = await dial_data(address, credentials, expect, clock=clock)
        try:
            await open_data(connection, credentials.identity.peer.name)
        finally:
            await connection.close()

    return await climb([*_reach(address), (Rung.TLS, tls), (Rung.SERVER, answers)])


async def probe_api(address: Address, credentials: Credentials) -> Climbed:
    """The way to the configuration server's API, from a server that has a certificate and dials by itself.

    Rungs: name, TCP, TLS (with the certificate's kinds: expired, another vault's, no configuration server's).
    """

    async def tls() -> None:
        dialled = await dial_stream(address, credentials, ALPN_HTTP, Expect(Role.CONFIGURATION_SERVER))
        await close_stream(dialled.writer)

    return await climb([*_reach(address), (Rung.TLS, tls)])


async def probe_reach(address: Address) -> Climbed:
    """Whether anything listens there. Rungs: name, TCP."""
    return await climb(_reach(address))


async def probe_data_port(host: str, port: int) -> Climbed:
    """Whether a server may listen there: DataPortTaken when the port is 443, taken, or not of this machine."""

    async def bind() -> None:
        if port == HTTPS_PORT or not 0 < port < 65536:
            raise DataPortTaken(peer=str(Address(host or "*", port)), reason="it must not be 443, and below 65536")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((host, port))
                sock.listen(1)
        except OSError as error:
            raise DataPortTaken(peer=str(Address(host or "*", port)), reason=error.strerror or str(error)) from error

    return await climb([(Rung.DATA_PORT, bind)])


def _reach(address: Address) -> list[tuple[Rung, Step]]:
    async def name() -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise NameUnresolved(peer=address.host, reason=str(error)) from error
        except TimeoutError as error:
            raise NameUnresolved(peer=address.host, reason=f"no answer within {CONNECT_S:g} s") from error

    async def tcp() -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(address.host, address.port)
        except TimeoutError as error:
            raise LinkUnreachable(peer=str(address), reason=f"no answer within {CONNECT_S:g} s") from error
        except OSError as error:
            raise LinkUnreachable(peer=str(address), reason=str(error)) from error
        cut(writer.transport)

    return [(Rung.NAME, name), (Rung.TCP, tcp)]
