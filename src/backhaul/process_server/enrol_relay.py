"""Passes registrations of newcomers on to home: an agent that has no certificate yet reaches nothing but this port.

    newcomer ── bh-enrol/1 ──> process server ── stream `enrol` of home's tunnel ──> configuration server

The stream begins with one byte of length and the newcomer's address, so that home counts wrong tries per newcomer; all
after it are the newcomer's and the desk's own bytes, which rely on nobody between them (wire.md, section 7). Invariant:
bounded in number, bytes, time and rate, as everybody who reaches the port may try. On the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from backhaul.links.enrolment import MAX_ENROLMENT, STEP_S
from backhaul.links.errors import LinkLost
from backhaul.links.forwarding import TcpDuplex, splice
from backhaul.links.listener import Caller, Route, stream_route
from backhaul.links.reaching import ENROL
from backhaul.links.tunnel import MAX_DATA, Tunnel
from backhaul.process_server.errors import NewcomersLimited
from backhaul.replication.ports import Clock

MAX_NEWCOMERS: Final = 16
"""At once; machines of a network register one after the other, and each takes a second."""

PER_MINUTE: Final = 30
"""From one address: a person who mistypes a passphrase some times; a try with its probes takes three connections."""

ALL_PER_MINUTE: Final = 120
CONVERSATION_S: Final = 3 * STEP_S
"""Three messages, each with its own limit at both ends."""

CONVERSATION_BYTES: Final = 2 * (MAX_ENROLMENT + 4)
"""Per direction; the desk says two messages, the newcomer one."""

MAX_ADDRESS: Final = 64
_MINUTE_NS: Final = 60 * 1_000_000_000

_log = structlog.get_logger(__name__)


class EnrolRelay:
    """Takes newcomers and splices them to home."""

    def __init__(self, home: Callable[[], Tunnel | None], clock: Clock) -> None:
        self._home, self._clock = home, clock
        self._taken: deque[tuple[int, str]] = deque()
        self._present = 0

    def route(self) -> Route:
        """For the listener, under `bh-enrol/1`: no certificate is asked for."""
        return stream_route(self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        self._admit(caller.host)
        home = self._home()
        if home is None:
            raise LinkLost(peer="the configuration server", reason="home has not dialled this process server")
        self._present += 1
        try:
            async with asyncio.timeout(CONVERSATION_S):
                await self._carry(home, _Bounded(TcpDuplex(reader, writer), caller.host), caller.host)
        except TimeoutError:
            _log.info("newcomer.too_slow", peer=caller.host)
        finally:
            self._present -= 1

    def _admit(self, host: str) -> None:
        """Raises NewcomersLimited."""
        now = self._clock.monotonic_ns()
        while self._taken and self._taken[0][0] < now - _MINUTE_NS:
            self._taken.popleft()
        theirs = sum(known == host for _, known in self._taken)
        if self._present >= MAX_NEWCOMERS or len(self._taken) >= ALL_PER_MINUTE:
            raise NewcomersLimited(peer=host, reason="many others register at this moment")
        if theirs >= PER_MINUTE:
            raise NewcomersLimited(peer=host, reason=f"it tried {theirs} times within a minute")
        self._taken.append((now, host))

    async def _carry(self, home: Tunnel, newcomer: _Bounded, host: str) -> None:
        stream = await home.open(ENROL)
        try:
            name = host.encode("ascii", "replace")[:MAX_ADDRESS]
            await stream.write(bytes([len(name)]) + name)
            await splice(newcomer, stream)
        finally:
            stream.reset("the newcomer has gone")


class _Bounded:
    """A newcomer's connection that passes no more bytes than a registration has."""

    def __init__(self, inner: TcpDuplex, host: str) -> None:
        self._inner, self._host = inner, host
        self._read = self._written = 0

    async def read(self, size: int = MAX_DATA) -> bytes:
        data = await self._inner.read(size)
        self._read += len(data)
        self._check(self._read)
        return data

    async def write(self, data: bytes) -> None:
        self._written += len(data)
        self._check(self._written)
        await self._inner.write(data)

    async def end(self) -> None:
        """The desk has said its last; TLS has no half-closed connection."""
        self._inner.close()

    def reset(self, reason: str) -> None:
        self._inner.reset(reason)

    def _check(self, passed: int) -> None:
        if passed > CONVERSATION_BYTES:
            raise NewcomersLimited(peer=self._host, reason=f"it exchanged more than {CONVERSATION_BYTES} bytes")
