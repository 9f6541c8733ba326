"""The tunnel (`bh-tunnel/1`): many byte streams over one TLS connection, opened from either end.

    frame   type u8, stream u32, length u32, payload
    OPEN word · DATA bytes · CREDIT u32 · END · RESET reason · PING · PONG

Invariants: a stream names a destination by a word that the accepting end maps, never by host and port; no stream
holds more unread bytes than its window, so one that nobody reads holds up no other; a peer that breaks the rules
loses the tunnel and nothing else. The end that dialled numbers its streams oddly. All on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from backhaul.links.cutting import cut
from backhaul.links.errors import (
    DestinationUnknown,
    LinkLost,
    LinkStalled,
    StreamReset,
    TunnelFull,
    TunnelViolation,
)
from backhaul.links.listener import close_stream
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Clock
from backhaul.replication.units import KiB, MiB

WINDOW: Final = 256 * KiB
"""Unread bytes of a stream, per direction: 20 ms at 100 Mbit/s, and 64 MiB with every stream full."""

MAX_STREAMS: Final = 256
"""Streams open at once, per opening end: agents of one network, each with a few requests."""

MAX_DATA: Final = 32 * KiB
"""Largest frame, so that streams take turns."""

MAX_REASON: Final = 200
UNSENT_LIMIT: Final = 4 * MiB
"""Data waits for the peer to read; only answers (CREDIT, RESET, PONG) do not. More of them unsent is a flood."""

WORD: Final = re.compile(rb"[a-z][a-z0-9-]{0,31}")
_FRAME: Final = struct.Struct("!BII")
_CREDIT: Final = struct.Struct("!I")
_MAX_STREAM: Final = 2**32 - 1
_UNKNOWN: Final = "unknown destination"
_FULL: Final = "too many streams"

_log = structlog.get_logger(__name__)


class FrameType(enum.IntEnum):
    """Kind of a frame."""

    OPEN = 1
    DATA = 2
    CREDIT = 3
    END = 4
    RESET = 5
    PING = 6
    PONG = 7


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """`idle_s`: a peer from which nothing comes for so long is stalled. `max_streams`: per opening end."""

    idle_s: float = 20.0
    max_streams: int = MAX_STREAMS


class TunnelStream:
    """One stream. One task reads, one task writes."""

    def __init__(self, tunnel: Tunnel, number: int, destination: str) -> None:
        self.destination = destination
        self.number = number
        self._tunnel = tunnel
        self._parts: deque[bytes] = deque()
        self._receivable = WINDOW
        self._consumed = 0
        self._credit = WINDOW
        self._ended_here = False
        self._ended_there = False
        self._broken: StreamReset | None = None
        self._changed = asyncio.Event()

    async def read(self, size: int = MAX_DATA) -> bytes:
        """At most `size` bytes; empty when the peer ended its direction. Raises StreamReset."""
        while not self._parts:
            if self._ended_there:
                return b""
            await self._change()
        part = self._parts.popleft()
        if len(part) > size:
            self._parts.appendleft(part[size:])
            part = part[:size]
        self._grant(len(part))
        return part

    async def write(self, data: bytes) -> None:
        """Send all of `data`; waits for the peer to read. Raises StreamReset."""
        rest = memoryview(data)
        while len(rest):
            while self._broken is None and not self._credit:
                await self._change()
            self._check()
            size = min(len(rest), self._credit, MAX_DATA)
            self._credit -= size
            self._tunnel.put(FrameType.DATA, self.number, bytes(rest[:size]))
            await self._tunnel.drain()
            rest = rest[size:]

    async def end(self) -> None:
        """End this direction; the other goes on. Raises StreamReset."""
        self._check()
        if not self._ended_here:
            self._ended_here = True
            self._tunnel.put(FrameType.END, self.number)
            self._forget_when_over()
            await self._tunnel.drain()

    def reset(self, reason: str) -> None:
        """End both directions at once, telling the peer why; on a stream that is over, nothing."""
        if self._broken is None and not (self._ended_here and self._ended_there):
            self._tunnel.put(FrameType.RESET, self.number, reason.encode()[:MAX_REASON])
            self.broke(StreamReset(peer=self._tunnel.peer, destination=self.destination, reason=reason))

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken.with_traceback(None)

    async def _change(self) -> None:
        self._check()
        self._changed.clear()
        await self._changed.wait()

    def _grant(self, size: int) -> None:
        self._consumed += size
        if self._consumed >= WINDOW // 2 and not self._ended_there and self._broken is None:
            self._receivable += self._consumed
            self._tunnel.put(FrameType.CREDIT, self.number, _CREDIT.pack(self._consumed))
            self._consumed = 0

    def _forget_when_over(self) -> None:
        if self._ended_here and self._ended_there:
            self._tunnel.forget(self.number)

    # the tunnel's calls

    def took(self, data: bytes) -> None:
        """DATA came. Raises TunnelViolation."""
        if self._ended_there or len(data) > self._receivable:
            raise TunnelViolation(peer=self._tunnel.peer, reason="data after the end, or more than its credit")
        self._receivable -= len(data)
        self._parts.append(data)
        self._changed.set()

    def credited(self, size: int) -> None:
        """CREDIT came. Raises TunnelViolation."""
        self._credit += size
        if self._credit > WINDOW:
            raise TunnelViolation(peer=self._tunnel.peer, reason="more credit than the window")
        self._changed.set()

    def ended(self) -> None:
        """END came. Raises TunnelViolation."""
        if self._ended_there:
            raise TunnelViolation(peer=self._tunnel.peer, reason="a second end of one stream")
        self._ended_there = True
        self._changed.set()
        self._forget_when_over()

    def broke(self, error: StreamReset) -> None:
        """RESET came, or the tunnel is gone. What was received before is still read."""
        if self._broken is None:
            self._broken = error
            self._changed.set()
            self._tunnel.forget(self.number)


Destination = Callable[[TunnelStream], Awaitable[None]]
"""Serves one stream; when it returns, the stream is ended."""


class Tunnel:
    """One end of a tunnel; `run` must be running while streams are used."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: str,
        destinations: Mapping[str, Destination],
        *,
        dialled: bool,
        clock: Clock,
        settings: TunnelSettings | None = None,
    ) -> None:
        self.peer = peer
        self._reader = reader
        self._writer = writer
        self._destinations = dict(destinations)
        self._clock = clock
        self._settings = settings or TunnelSettings()
        self._next = 1 if dialled else 2
        self._newest_theirs = 0
        self._streams: dict[int, TunnelStream] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._heard_ns = clock.monotonic_ns()
        self._lost: BackhaulError | None = None

    @property
    def lost(self) -> BackhaulError | None:
        """Why the tunnel ended; None while it is up."""
        return self._lost

    async def open(self, destination: str) -> TunnelStream:
        """A stream to what the other end calls `destination`.

        Raises LinkLost's kinds, TunnelFull. A destination that the other end lacks shows as DestinationUnknown on
        the first read or write after its answer.
        """
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        mine = sum(number % 2 == self._next % 2 for number in self._streams)
        if mine >= self._settings.max_streams or self._next > _MAX_STREAM:
            raise TunnelFull(peer=self.peer, destination=destination, bound=self._settings.max_streams)
        number, self._next = self._next, self._next + 2
        stream = self._streams[number] = TunnelStream(self, number, destination)
        self.put(FrameType.OPEN, number, destination.encode())
        await self.drain()
        return stream

    async def run(self) -> None:
        """Carry frames until the tunnel is lost; all streams are reset then.

        Raises LinkLost, LinkStalled, TunnelViolation.
        """
        watching = asyncio.create_task(self._watch())
        error: BackhaulError = LinkLost(peer=self.peer, reason="the tunnel was closed here")
        try:
            while True:
                await self._receive()
        except TunnelViolation as violation:
            _log.warning("tunnel.violation", peer=self.peer, reason=violation.message)
            error = violation
            raise
        except (OSError, asyncio.IncompleteReadError) as broken:
            ended = isinstance(broken, asyncio.IncompleteReadError)
            reason = "the peer closed it" if ended else str(broken)
            error = self._lost or LinkLost(peer=self.peer, reason=reason)
            raise error from broken
        finally:
            watching.cancel()
            await self._stop(error)

    async def close(self) -> None:
        """End the tunnel; `run` raises LinkLost."""
        self._lost = self._lost or LinkLost(peer=self.peer, reason="the tunnel was closed here")
        await close_stream(self._writer)

    def put(self, kind: FrameType, number: int, payload: bytes = b"") -> None:
        """Write one frame (streams and the tunnel itself only)."""
        if self._lost is None:
            self._writer.write(_FRAME.pack(kind, number, len(payload)) + payload)

    async def drain(self) -> None:
        """Wait while much is unsent. A tunnel that breaks meanwhile shows by the stream's reset."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    def forget(self, number: int) -> None:
        """The stream is over; late frames of it are ignored."""
        self._streams.pop(number, None)

    async def _receive(self) -> None:
        kind, number, length = _FRAME.unpack(await self._reader.readexactly(_FRAME.size))
        if length > MAX_DATA:
            raise TunnelViolation(peer=self.peer, reason=f"a frame of {length} bytes")
        payload = await self._reader.readexactly(length)
        self._heard_ns = self._clock.monotonic_ns()
        transport = self._writer.transport
        if not transport.is_closing() and transport.get_write_buffer_size() > UNSENT_LIMIT:
            raise TunnelViolation(peer=self.peer, reason="it sends and does not read")
        if kind == FrameType.OPEN:
            self._opened(number, payload)
        elif kind == FrameType.PING:
            self.put(FrameType.PONG, 0)
        elif kind != FrameType.PONG:
            self._pass_to_stream(kind, number, payload)

    def _pass_to_stream(self, kind: int, number: int, payload: bytes) -> None:
        stream = self._streams.get(number)
        if stream is None:
            ours = number % 2 == self._next % 2
            if number == 0 or number > (self._next - 2 if ours else self._newest_theirs):
                raise TunnelViolation(peer=self.peer, reason=f"a frame of stream {number}, which was never opened")
        elif kind == FrameType.DATA and payload:
            stream.took(payload)
        elif kind == FrameType.CREDIT and len(payload) == _CREDIT.size:
            stream.credited(_CREDIT.unpack(payload)[0])
        elif kind == FrameType.END:
            stream.ended()
        elif kind == FrameType.RESET:
            stream.broke(self._their_reset(stream, payload.decode(errors="replace")[:MAX_REASON]))
        else:
            raise TunnelViolation(peer=self.peer, reason=f"a frame of type {kind} and {len(payload)} bytes")

    def _their_reset(self, stream: TunnelStream, reason: str) -> StreamReset:
        if reason == _UNKNOWN:
            return DestinationUnknown(peer=self.peer, destination=stream.destination)
        if reason == _FULL:
            return TunnelFull(peer=self.peer, destination=stream.destination, bound="its own bound")
        return StreamReset(peer=self.peer, destination=stream.destination, reason=reason)

    def _opened(self, number: int, word: bytes) -> None:
        if number % 2 == self._next % 2 or number <= self._newest_theirs or not WORD.fullmatch(word):
            raise TunnelViolation(peer=self.peer, reason=f"it opened stream {number} to {word[:40]!r}")
        self._newest_theirs = number
        serve = self._destinations.get(word.decode())
        if serve is None:
            _log.warning("tunnel.destination_unknown", peer=self.peer, destination=word.decode())
            self.put(FrameType.RESET, number, _UNKNOWN.encode())
        elif len(self._serving) >= self._settings.max_streams:
            self.put(FrameType.RESET, number, _FULL.encode())
        else:
            stream = self._streams[number] = TunnelStream(self, number, word.decode())
            task = asyncio.create_task(self._serve(serve, stream))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, serve: Destination, stream: TunnelStream) -> None:
        try:
            await serve(stream)
            await stream.end()
            stream.reset("the destination has finished")
        except (BackhaulError, OSError) as error:
            stream.reset(str(error))
            _log.info("tunnel.stream_ended", peer=self.peer, destination=stream.destination, reason=str(error))
        except Exception:
            _log.exception("tunnel.destination_failed", peer=self.peer, destination=stream.destination)
            stream.reset("the destination failed")

    async def _watch(self) -> None:
        idle_s = self._settings.idle_s
        while True:
            await asyncio.sleep(idle_s / 4)
            if self._clock.monotonic_ns() - self._heard_ns >= idle_s * 1e9:
                self._lost = LinkStalled(peer=self.peer, idle_s=idle_s)
                cut(self._writer.transport)
                return
            self.put(FrameType.PING, 0)

    async def _stop(self, error: BackhaulError) -> None:
        self._lost = self._lost or error
        for stream in list(self._streams.values()):
            stream.broke(StreamReset(peer=self.peer, destination=stream.destination, reason=str(self._lost)))
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        cut(self._writer.transport)
