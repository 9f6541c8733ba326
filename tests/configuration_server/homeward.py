"""A home that can only dial out and a cloud that can only be dialled, on loopback.

`Home.door` is the address of home that everybody in the cloud is told: a port that counts who comes. Where a test ends
with `door.connections == 0`, all that worked came through home's own connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backhaul.configuration_server.home_tunnels import HomeTunnels
from backhaul.configuration_server.http_front import PEER, HttpFront
from backhaul.links.authority import Authority
from backhaul.links.dialer import Address, Backoff, Redial
from backhaul.links.enrolment import AskBody, Desk, Issued, KnownSecret, SecretBook, serve_enrolment
from backhaul.links.enrolment_limits import Limiter, MemoryFailures
from backhaul.links.listener import Caller, Listener, listen, stream_route
from backhaul.links.passphrase import Passphrase, make_passphrase
from backhaul.links.tls import ALPN_ENROL, ALPN_HTTP, Credentials
from backhaul.links.tunnel import TunnelSettings
from backhaul.process_server.api_relay import ApiRelay
from backhaul.process_server.run import ProcessServerConfig, run
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.units import MiB
from backhaul.replication.values import Role
from links.faultproxy import FaultProxy
from links.world import make_authority

WORLD = Redial(RealClock(), RealRandomness(), Backoff(first_s=0.02, most_s=0.1))
CLOCK = RealClock()


async def until(holds: Callable[[], object]) -> Any:
    """Waits until it holds; the test's own timeout is the bound."""
    while not (found := holds()):  # noqa: ASYNC110 - the condition is the code under test's own state
        await asyncio.sleep(0.005)
    return found


@contextlib.asynccontextmanager
async def running(work: Awaitable[Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """A task for as long as the block lasts."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass
class Home:
    """Authority, enrolment desk and an API that says who called it with what."""

    authority: Authority
    passphrase: Passphrase
    credentials: Credentials
    book: SecretBook
    limiter: Limiter
    listener: Listener
    door: FaultProxy
    desk: Desk
    heard: list[tuple[str, str, str, bytes]] = field(default_factory=list)
    enrolled: list[AskBody] = field(default_factory=list)

    @property
    def address(self) -> Address:
        """Where the cloud is told that home is."""
        return Address("127.0.0.1", self.door.port)

    def member(self, role: Role, name: str) -> Credentials:
        """A registered server's credentials."""
        return Credentials(self.authority.own_identity(role, name), CLOCK)

    def tunnels(
        self, wanted: Mapping[str, Sequence[Address]], *, settings: TunnelSettings | None = None
    ) -> HomeTunnels:
        """Home's tunnels to these servers; the mapping may change meanwhile."""
        return HomeTunnels(
            lambda: wanted, self.credentials, self.listener, self.desk, WORLD, look_s=0.05, settings=settings
        )


@contextlib.asynccontextmanager
async def home_at(folder: Path) -> AsyncIterator[Home]:
    """A home in `folder`."""
    authority = make_authority(folder / "authority")
    passphrase = make_passphrase(authority.issuing.certificate, RealRandomness())
    book, enrolled, heard = SecretBook(passphrase), [], []
    credentials = Credentials(authority.own_identity(Role.CONFIGURATION_SERVER, "cs1", dns=("cs.home",)), CLOCK)
    limiter = Limiter(MemoryFailures(), CLOCK)

    async def issue(ask: AskBody, known: KnownSecret) -> Issued:
        enrolled.append(ask)
        chain = authority.issue(ask.csr, ask.role, ask.id, dns=ask.dns, addresses=ask.addresses)
        return Issued(chain, authority.trust, {"vault": authority.vault})

    desk = Desk(lambda: credentials.identity, book, limiter, issue, CLOCK, RealRandomness())

    async def application(scope: Any, receive: Any, send: Any) -> None:
        peer, body = scope[PEER], b""
        while (message := await receive()).get("more_body") or message.get("body"):
            body += message["body"]
            if not message.get("more_body"):
                break
        heard.append((peer.name if peer else "", scope["method"], scope["path"], body))
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'"heard"'})

    async def enrolment(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        await serve_enrolment(reader, writer, desk, address=caller.host)

    front = HttpFront(application)
    routes = {ALPN_HTTP: front.route, ALPN_ENROL: stream_route(enrolment)}
    listener = await listen("127.0.0.1", 0, credentials, routes)
    try:
        async with FaultProxy(listener.port) as door:
            yield Home(authority, passphrase, credentials, book, limiter, listener, door, desk, heard, enrolled)
    finally:
        await front.close()
        await listener.close()


@dataclass
class CloudServer:
    """A process server that runs."""

    address: Address
    api: ApiRelay
    task: asyncio.Task[Any]


@contextlib.asynccontextmanager
async def process_server(
    home: Home, folder: Path, name: str = "ps1", *, port: int = 0, credentials: Credentials | None = None
) -> AsyncIterator[CloudServer]:
    """A registered process server; `credentials` as home issued them otherwise."""
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    api = ApiRelay(CLOCK)
    config = ProcessServerConfig(name, folder, "127.0.0.1", port, 256 * MiB)
    credentials = credentials or home.member(Role.PROCESS_SERVER, name)
    work = run(config, credentials, RealFiles(), CLOCK, RealRandomness(), listening.set_result, api)
    async with running(work) as task:
        await asyncio.wait({listening, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield CloudServer(Address("127.0.0.1", listening.result()), api, task)
