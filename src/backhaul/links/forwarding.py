"""What lies at the ends of a tunnel's streams: a fixed TCP address, another tunnel, or a loopback port.

Invariant: where a stream goes is decided here by the end that accepts it, from its own settings. Bytes pass as they
are: TLS inside them ends where they end. Each side's end of direction and its breaking are passed on. On the
service's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from backhaul.links.cutting import cut
from backhaul.links.errors import LinkLost, LinkUnreachable
from backhaul.links.listener import STREAM_LIMIT
from backhaul.links.tunnel import MAX_DATA, MAX_STREAMS, Destination, Tunnel, TunnelStream
from backhaul.replication.errors import BackhaulError

CONNECT_S: Final = 15.0

_log = structlog.get_logger(__name__)


class Duplex(Protocol):
    """Bytes both ways. `read` gives none at the end; each may raise BackhaulError or OSError."""

    async def read(self, size: int = MAX_DATA) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def end(self) -> None: ...
    def reset(self, reason: str) -> None: ...


class TcpDuplex:
    """A plain TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, size: int = MAX_DATA) -> bytes:
        return await self._reader.read(size)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        self._writer.write_eof()

    def reset(self, reason: str) -> None:
        cut(self._writer.transport)

    def close(self) -> None:
        """Both directions were ended or broken; what is unsent is still sent."""
        self._writer.close()


async def splice(one: Duplex, other: Duplex) -> None:
    """Pass bytes both ways until both directions have ended; when one breaks, both ends are reset."""
    pumps = [asyncio.ensure_future(_pump(one, other)), asyncio.ensure_future(_pump(other, one))]
    try:
        await asyncio.gather(*pumps)
    except (BackhaulError, OSError) as error:
        one.reset(str(error))
        other.reset(str(error))
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: Duplex, sink: Duplex) -> None:
    while data := await source.read():
        await sink.write(data)
    await sink.end()


def forward_to(host: str, port: int) -> Destination:
    """A destination that is a TCP server near the accepting end."""

    async def serve(stream: TunnelStream) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(host, port, limit=STREAM_LIMIT)
        except (OSError, TimeoutError) as error:
            raise LinkUnreachable(peer=stream.destination, reason=str(error)) from error
        near = TcpDuplex(reader, writer)
        try:
            await splice(stream, near)
        finally:
            near.close()

    return serve


def relay_to(tunnel: Callable[[], Tunnel | None], destination: str) -> Destination:
    """A destination that lies behind another tunnel, the one that is up at the time: what a process server does with
    the API that its agents ask for.
    """

    async def serve(stream: TunnelStream) -> None:
        onward = await _open(tunnel, destination)
        try:
            await splice(stream, onward)
        finally:
            onward.reset("the relay has finished")

    return serve


async def _open(tunnel: Callable[[], Tunnel | None], destination: str) -> TunnelStream:
    present = tunnel()
    if present is None:
        raise LinkLost(peer=destination, reason="no tunnel to it is up")
    return await present.open(destination)


class LocalForward:
    """A loopback port whose connections go through the tunnel; made by `forward_local`."""

    def __init__(self, tunnel: Callable[[], Tunnel | None], destination: str) -> None:
        self._tunnel = tunnel
        self._destination = destination
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where to connect, on 127.0.0.1."""
        assert self._server is not None, "made by forward_local"
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, port: int) -> None:
        """Listen on `port` (0: any). Raises LinkUnreachable when it is taken."""
        try:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=STREAM_LIMIT)
        except OSError as error:
            raise LinkUnreachable(peer=f"127.0.0.1:{port}", reason=str(error)) from error

    async def close(self) -> None:
        """Listen no more and end the connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs it as a task"
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        near = TcpDuplex(reader, writer)
        try:
            if len(self._serving) > MAX_STREAMS:
                raise LinkUnreachable(peer=self._destination, reason=f"{MAX_STREAMS} connections are open already")
            stream = await _open(self._tunnel, self._destination)
            try:
                await splice(near, stream)
            finally:
                stream.reset("the connection has finished")
        except BackhaulError as error:
            _log.info("forward.failed", destination=self._destination, reason=str(error))
            near.reset(str(error))
        finally:
            near.close()


async def forward_local(tunnel: Callable[[], Tunnel | None], destination: str, *, port: int = 0) -> LocalForward:
    """Make `destination` reachable on a port of 127.0.0.1, through the tunnel that is up at the time."""
    forward = LocalForward(tunnel, destination)
    await forward.start(port)
    return forward
