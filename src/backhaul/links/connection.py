"""A message connection: bounded both ways, watched for silence, closed with a reason.

Invariant: bytes that are no message close this connection and nothing else; what was received whole before the
end is still delivered, then every call raises the same `LinkLost`. One task receives; any task of the same event
loop sends.

Silence is not health: each end says PING when it has sent nothing for a quarter of `idle_s`, whatever its
application does, so a peer from which nothing came for `idle_s` is stalled. While this end itself does not read
(its queue is full) it cannot judge, and does not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec
import structlog

from backhaul.links.certificates import PeerIdentity
from backhaul.links.cutting import cut
from backhaul.links.errors import LinkEnded, LinkLost, LinkStalled
from backhaul.links.framing import MessageReader, encode
from backhaul.replication.errors import BackhaulError, FrameMalformed, VersionUnsupported
from backhaul.replication.messages import (
    VERSIONS,
    Bye,
    Hello,
    Message,
    MessageType,
    Ping,
    Welcome,
    message,
    read_head,
)
from backhaul.replication.ports import Clock, RealClock
from backhaul.replication.units import KiB, MiB

WRITE_HIGH: Final = 2 * MiB
WRITE_LOW: Final = 512 * KiB
"""`send` waits while more than WRITE_HIGH bytes are unsent, until WRITE_LOW: the sender is ahead, memory bounded."""

CLOSE_S: Final = 5.0
"""A peer that does not take the last bytes within this is cut off."""

GREETING_S: Final = 10.0
"""HELLO and WELCOME are one exchange of a few bytes."""

_DROPPED: Final = memoryview(bytearray(64 * KiB))
"""Bytes that arrive behind the end go here, of all connections; nobody reads them."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """Bounds of a connection.

    idle_s          a peer from which nothing comes for so many seconds is stalled
    queue_bytes     received and not yet taken; reading pauses above it. Exceeded by at most one message's payload
    queue_messages  the same for messages without payload
    """

    idle_s: float = 20.0
    queue_bytes: int = 8 * MiB
    queue_messages: int = 4096


class Connection(asyncio.BufferedProtocol):
    """Messages to and from one peer. Made by `listener` and `dialer`, when the handshake is over."""

    def __init__(
        self, peer: PeerIdentity, settings: ConnectionSettings | None = None, clock: Clock | None = None
    ) -> None:
        self.peer = peer
        self.bytes_sent = 0
        self.bytes_received = 0
        self._settings = settings or ConnectionSettings()
        self._clock = clock or RealClock()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = MessageReader()
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._reading = True
        self._receiver: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._lost: LinkLost | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._heard_ns = self._said_ns = self._clock.monotonic_ns()

    def __repr__(self) -> str:
        return f"<Connection with {self.peer.name}{', lost' if self._lost else ''}>"

    @property
    def lost(self) -> LinkLost | None:
        """Why the connection ended; None while it is up."""
        return self._lost

    async def send(self, message: Message) -> None:
        """Send one message; waits while too much is unsent. Raises LinkLost, FrameMalformed (over the bounds)."""
        await self.send_many((message,))

    async def send_many(self, messages: Sequence[Message]) -> None:
        """Send messages in order, none of another task between them. Raises as `send` does.

        The payloads must not change until this returns. Returning promises nothing about arrival.
        """
        buffers, length = encode(messages)
        while not self._writable.is_set():  # again for each of the senders that one wake-up lets go
            await self._writable.wait()
        transport = self._up()
        transport.writelines(buffers)
        self.bytes_sent += length
        self._said_ns = self._clock.monotonic_ns()
        await self._writable.wait()

    async def receive(self) -> Message:
        """The next message. Raises LinkLost, once all that came before the end was taken."""
        while not self._queue:
            if self._lost is not None:
                raise self._lost.with_traceback(None)
            assert self._receiver is None, "one task receives"
            self._receiver = self._loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        received = self._queue.popleft()
        self._queued_bytes -= len(received.payload)
        self._resume_when_half_empty()
        return received

    async def close(self, reason: BackhaulError | None = None) -> None:
        """Tell the peer why (nothing: an ordinary stop), send what is unsent, end. A second call only waits."""
        if self._lost is None:
            self._end(LinkLost(peer=self.peer.name, reason="it was closed here"), reason)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._gone.wait()
        except TimeoutError:
            self.abort()

    def abort(self, reason: BackhaulError | None = None) -> None:
        """End at once; what is unsent is lost, what was received and not taken is dropped."""
        why = reason.message if reason else "it was cut here"
        self._fail(LinkLost(peer=self.peer.name, reason=why))
        self._queue.clear()
        self._queued_bytes = 0
        if self._transport is not None:
            cut(self._transport)

    def _up(self) -> asyncio.Transport:
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        assert self._transport is not None, "used before the handshake"
        return self._transport

    # asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over and the peer is admitted."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH, low=WRITE_LOW)
        self._arm()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where asyncio puts the next bytes."""
        return self._reader.buffer() if self._lost is None else _DROPPED

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio has put `nbytes` there."""
        if self._lost is not None:
            return
        self.bytes_received += nbytes
        self._heard_ns = self._clock.monotonic_ns()
        try:
            for received in self._reader.received(nbytes):
                self._take(received)
        except FrameMalformed as error:
            _log.warning("link.malformed", peer=self.peer.name, code=error.code, reason=error.message)
            lost = LinkLost(peer=self.peer.name, reason=error.message)
            lost.__cause__ = error
            self._end(lost, error)
        self._pause_when_full()

    def eof_received(self) -> None:
        """The peer sends no more. There is no half-open link: what is unsent would not be read either."""
        reason = "the peer closed it without a word"
        if not self.bytes_received:
            reason = "the peer closed it before it said anything: it may not accept our certificate"
        elif not self._reader.between_messages:
            reason = "it ended within a message"
        self._fail(LinkLost(peer=self.peer.name, reason=reason))
        if self._transport is not None:
            # Not from within: asyncio may be in the middle of its own shutdown.
            self._loop.call_soon(cut, self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._fail(LinkLost(peer=self.peer.name, reason=str(exc or "it was closed")))
        self._gone.set()

    def pause_writing(self) -> None:
        """More than WRITE_HIGH bytes are unsent."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Fewer than WRITE_LOW bytes are unsent."""
        self._writable.set()

    # receiving

    def _take(self, received: Message) -> None:
        if self._lost is not None:
            return
        if received.type is MessageType.PING:
            self._say(MessageType.PONG, msgspec.msgpack.encode(read_head(received, Ping)))
        elif received.type is MessageType.BYE:
            bye = read_head(received, Bye)
            self._end(LinkEnded(peer=self.peer.name, reason=bye.code or "an ordinary stop", params=bye.params), None)
        elif received.type is not MessageType.PONG:
            self._queue.append(received)
            self._queued_bytes += len(received.payload)
            self._wake()

    def _wake(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    def _pause_when_full(self) -> None:
        full = self._queued_bytes > self._settings.queue_bytes or len(self._queue) > self._settings.queue_messages
        if full and self._reading and self._lost is None:
            self._reading = False
            self._up().pause_reading()

    def _resume_when_half_empty(self) -> None:
        settings = self._settings
        if self._reading or self._lost is not None:
            return
        if self._queued_bytes <= settings.queue_bytes // 2 and len(self._queue) <= settings.queue_messages // 2:
            self._reading = True
            self._heard_ns = self._clock.monotonic_ns()
            self._up().resume_reading()

    # ending

    def _end(self, lost: LinkLost, reason: BackhaulError | None) -> None:
        """Say BYE if the peer still takes bytes, then close behind what is unsent."""
        if self._transport is None or self._lost is not None:
            return
        code, params = (reason.code, _plain(reason.params)) if reason else ("", {})
        if not isinstance(lost, LinkEnded):
            self._transport.writelines(encode([message(Bye(code, params))])[0])
        self._fail(lost)
        if not self._reading:
            self._transport.resume_reading()  # the peer's own end may lie behind what was not read
        self._loop.call_soon(self._transport.close)  # not from within a read, see eof_received

    def _fail(self, lost: LinkLost) -> None:
        if self._lost is None:
            self._lost = lost
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._writable.set()
        self._wake()

    # silence

    def _arm(self) -> None:
        self._watch = self._loop.call_later(self._settings.idle_s / 4, self._check_silence)

    def _check_silence(self) -> None:
        now, idle_ns = self._clock.monotonic_ns(), int(self._settings.idle_s * 1e9)
        if self._reading and now - self._heard_ns >= idle_ns:
            _log.warning("link.stalled", peer=self.peer.name, idle_s=self._settings.idle_s)
            self._fail(LinkStalled(peer=self.peer.name, idle_s=self._settings.idle_s))
            if self._transport is not None:
                cut(self._transport)
            return
        if now - self._said_ns >= idle_ns // 4:
            self._say(MessageType.PING, msgspec.msgpack.encode(Ping(now)))
        self._arm()

    def _say(self, kind: MessageType, head: bytes) -> None:
        """PING or PONG; left out while the peer takes nothing, so that a flood of PINGs piles nothing up."""
        if self._writable.is_set() and self._transport is not None:
            buffers, length = encode((Message(kind, head),))
            self._transport.writelines(buffers)
            self.bytes_sent += length
            self._said_ns = self._clock.monotonic_ns()


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """An error's parameters as a BYE may carry them."""
    return {name: value if isinstance(value, int | str) else str(value)[:500] for name, value in params.items()}


def farewell(reason: BackhaulError) -> bytes:
    """The BYE, as bytes, for a peer that is not admitted."""
    return b"".join(encode([message(Bye(reason.code, _plain(reason.params)))])[0])


async def open_data(connection: Connection, name: str, versions: tuple[int, ...] = VERSIONS) -> int:
    """Greet as the end that opened the link; returns the version both speak.

    Closes the connection and raises LinkLost (LinkEnded with the peer's code), VersionUnsupported or FrameMalformed.
    """
    async with _greeting(connection):
        await connection.send(message(Hello(versions, name)))
        welcome = read_head(await connection.receive(), Welcome)
        if welcome.version not in versions:
            raise VersionUnsupported(peer=connection.peer.name, theirs=(welcome.version,), ours=versions)
    return welcome.version


async def accept_data(connection: Connection, name: str, versions: tuple[int, ...] = VERSIONS) -> int:
    """Greet as the end that was dialled; returns the highest version both speak. Raises as `open_data` does."""
    async with _greeting(connection):
        hello = read_head(await connection.receive(), Hello)
        shared = set(hello.versions) & set(versions)
        if not shared:
            raise VersionUnsupported(peer=connection.peer.name, theirs=hello.versions, ours=versions)
        await connection.send(message(Welcome(max(shared), name)))
    return max(shared)


@contextlib.asynccontextmanager
async def _greeting(connection: Connection) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(GREETING_S):
            yield
    except TimeoutError as error:
        stalled = LinkStalled(peer=connection.peer.name, idle_s=GREETING_S)
        connection.abort(stalled)
        raise stalled from error
    except (FrameMalformed, VersionUnsupported) as error:
        await connection.close(error)
        raise
