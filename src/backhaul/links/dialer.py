"""Dialling a peer, once or for ever.

Invariant: what `dial_*` returns is a peer whose certificate, role and id are as expected. With TLS 1.3 the dialled
end may still refuse *us* after that: it shows as `LinkLost` on the first receive, which is why a data link greets
first (`connection.open_data`). Runs on the service's event loop.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from backhaul.links.certificates import Expect, PeerIdentity
from backhaul.links.connection import Connection, ConnectionSettings
from backhaul.links.errors import (
    CertificateMissing,
    CertificateProblem,
    HandshakeFailed,
    LinkUnreachable,
)
from backhaul.links.listener import STREAM_LIMIT, ByteStream
from backhaul.links.tls import (
    ALPN_DATA,
    ALPN_ENROL,
    HANDSHAKE_S,
    SHUTDOWN_S,
    Admission,
    Credentials,
    Gate,
    check_key_hash,
    check_protocol,
    unverified_context,
)
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Clock, Randomness

CONNECT_S: Final = 15.0
"""Name, TCP and TLS together; longer than a lost SYN's first repetitions (1, 3, 7 s)."""

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class Address(NamedTuple):
    """Where to dial."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Address:
        """From `host:port`, a host of IPv6 in brackets. Raises LinkUnreachable for anything else."""
        host, _, port = text.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
            raise LinkUnreachable(peer=f"{text:.100}", reason="it is not HOST:PORT")
        return Address(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class DialledStream(NamedTuple):
    """A byte stream that was dialled, and who is at its other end (None in enrolment)."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: PeerIdentity | None

    @property
    def stream(self) -> ByteStream:
        """Both directions."""
        return self.reader, self.writer


async def dial_data(
    address: Address,
    credentials: Credentials,
    expect: Expect,
    *,
    clock: Clock,
    settings: ConnectionSettings | None = None,
) -> Connection:
    """A message connection to `expect`. Raises LinkUnreachable, HandshakeFailed, CertificateProblem's kinds."""
    made: list[Connection] = []

    def admit(transport: asyncio.Transport, tls: ssl.SSLObject) -> asyncio.BaseProtocol:
        peer = _known_peer(address, ALPN_DATA, credentials, expect, transport, tls)
        made.append(Connection(peer, settings, clock))
        return made[0]

    await _dial(address, credentials.client_context(ALPN_DATA), admit)
    return made[0]


async def dial_stream(
    address: Address, credentials: Credentials, protocol: str, expect: Expect, *, way: socket.socket | None = None
) -> DialledStream:
    """A byte stream to `expect` speaking `protocol` (tunnel, API). Raises as `dial_data` does.

    `way`: a connected socket that leads there (through a tunnel), used instead of dialling; `address` then only names
    the peer in errors.
    """
    reader, protocol_end = _stream_protocol()
    peers: list[PeerIdentity] = []

    def admit(transport: asyncio.Transport, tls: ssl.SSLObject) -> asyncio.BaseProtocol:
        peers.append(_known_peer(address, protocol, credentials, expect, transport, tls))
        return protocol_end

    transport = await _dial(address, credentials.client_context(protocol), admit, way)
    return DialledStream(reader, _writer(transport, protocol_end, reader), peers[0])


async def dial_enrolment(address: Address, expect_key_hash: bytes | None = None) -> DialledStream:
    """A byte stream for enrolment, to a peer that TLS does not vouch for.

    `expect_key_hash`: the hash that was read back from a server that is not registered yet (SHA-256 of its key);
    None where the passphrase's hash is what is checked. Raises as `dial_data` does, and KeyHashWrong.
    """
    reader, protocol_end = _stream_protocol()

    def admit(transport: asyncio.Transport, tls: ssl.SSLObject) -> asyncio.BaseProtocol:
        check_protocol(tls, ALPN_ENROL, str(address))
        if expect_key_hash is not None:
            check_key_hash(tls, expect_key_hash, str(address))
        return protocol_end

    transport = await _dial(address, unverified_context(ALPN_ENROL), admit)
    return DialledStream(reader, _writer(transport, protocol_end, reader), None)


def _stream_protocol() -> tuple[asyncio.StreamReader, asyncio.StreamReaderProtocol]:
    reader = asyncio.StreamReader(limit=STREAM_LIMIT)
    return reader, asyncio.StreamReaderProtocol(reader)


def _writer(
    transport: asyncio.Transport, protocol: asyncio.StreamReaderProtocol, reader: asyncio.StreamReader
) -> asyncio.StreamWriter:
    return asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())


def _known_peer(
    address: Address,
    protocol: str,
    credentials: Credentials,
    expect: Expect,
    transport: asyncio.Transport,
    tls: ssl.SSLObject,
) -> PeerIdentity:
    check_protocol(tls, protocol, str(address))
    peer = credentials.peer_of(tls)
    if peer is None:
        raise CertificateMissing(peer=str(address), protocol=protocol)
    expect.check(peer)
    credentials.guard(transport, peer)
    return peer


async def _dial(
    address: Address, context: ssl.SSLContext, admit: Admission, way: socket.socket | None = None
) -> asyncio.Transport:
    gate = Gate(admit, lambda tls, error: b"")
    where: dict[str, Any] = {"host": address.host, "port": address.port}
    if way is not None:
        where = {"sock": way, "server_hostname": ""}
    try:
        async with asyncio.timeout(CONNECT_S):
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: gate,
                **where,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
    except ssl.SSLError as error:
        raise HandshakeFailed(peer=str(address), reason=error.reason or str(error)) from error
    except (ConnectionResetError, ConnectionAbortedError) as error:
        reason = str(error) or "the peer ended it; its log says why"
        raise HandshakeFailed(peer=str(address), reason=reason) from error
    except TimeoutError as error:
        raise LinkUnreachable(peer=str(address), reason=f"no answer within {CONNECT_S:g} s") from error
    except OSError as error:
        raise LinkUnreachable(peer=str(address), reason=str(error)) from error
    if gate.refused is not None:
        raise gate.refused
    return transport


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after a round in which no address answered.

    The n-th wait is between half and all of `first_s` * 2**n, never above `most_s`. A link that held longer than
    `most_s` starts the count again.
    """

    first_s: float = 0.5
    most_s: float = 30.0

    def wait_s(self, failures: int, randomness: Randomness) -> float:
        """Seconds to wait after the given number of failures in a row (from 1), with jitter."""
        bound = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 32))
        return bound * (0.5 + int.from_bytes(randomness.token(4), "big") / 2**33)


@dataclass(frozen=True, slots=True)
class Redial:
    """What `reconnecting` needs of the world; `pause` is `asyncio.sleep` but in tests."""

    clock: Clock
    randomness: Randomness
    backoff: Backoff = Backoff()
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep


async def reconnecting(
    addresses: Callable[[], Sequence[Address]],
    connect: Callable[[Address], Awaitable[T]],
    serve: Callable[[T], Awaitable[None]],
    world: Redial,
) -> None:
    """Keep one link up, for ever: dial every address known at the time in turn and `serve` what answers. A link that
    held is dialled again from the first address; one that ended early gives the next address its turn, so that a
    peer that answers and refuses us does not hide the others. Ends by being cancelled, or with an error that is
    not BackhaulError or OSError.
    """
    failures = 0
    while True:
        failures += 1
        for address in tuple(addresses()):
            began_ns = world.clock.monotonic_ns()
            await _try(address, connect, serve)
            if world.clock.monotonic_ns() - began_ns > world.backoff.most_s * 1e9:
                failures = 1
                break
        await world.pause(world.backoff.wait_s(failures, world.randomness))


async def _try(
    address: Address, connect: Callable[[Address], Awaitable[T]], serve: Callable[[T], Awaitable[None]]
) -> None:
    answered = False
    try:
        link = await connect(address)
        answered = True
        await serve(link)
    except CertificateProblem as error:
        _log.warning("dial.refused", address=str(address), code=error.code, reason=error.message)
    except (BackhaulError, OSError) as error:
        _log.info("dial.ended" if answered else "dial.failed", address=str(address), reason=str(error))
