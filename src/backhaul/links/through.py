"""Connections through a tunnel: a socket whose other end is a tunnel's stream, and what either side does with it.

TLS needs a socket under it, so each stream gets one end of a socket pair and the bytes are carried to the other: the
same code then dials and accepts, whether a peer came by TCP or through a tunnel. Invariant: the socket ends when the
stream does, and the other way round. On the service's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from backhaul.links.forwarding import TcpDuplex, splice
from backhaul.links.listener import STREAM_LIMIT, ByteStream, Listener
from backhaul.links.tls import SHUTDOWN_S
from backhaul.links.tunnel import Destination, TunnelStream

_carrying: set[asyncio.Task[None]] = set()
"""asyncio itself holds tasks weakly."""


def socket_to(stream: TunnelStream) -> tuple[socket.socket, asyncio.Task[None]]:
    """A connected socket that leads to the stream, and the task that carries its bytes; it ends when both are over."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    task = asyncio.create_task(_carry(stream, far), name=f"carry {stream.destination}")
    _carrying.add(task)
    task.add_done_callback(_carrying.discard)
    return near, task


async def _carry(stream: TunnelStream, far: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=far, limit=STREAM_LIMIT)
    end = TcpDuplex(reader, writer)
    try:
        await splice(stream, end)
    finally:
        end.close()
        stream.reset("the connection has finished")


def into(listener: Listener, origin: str) -> Destination:
    """A destination that is a listener of this process: TLS inside the stream ends there, as if it were dialled.

    `origin` names the other end of the tunnel; the listener counts what comes through under it.
    """

    async def serve(stream: TunnelStream) -> None:
        near, carrying = socket_to(stream)
        try:
            await listener.take(near, f"{origin}:0")
            await carrying
        finally:
            carrying.cancel()
            await asyncio.gather(carrying, return_exceptions=True)

    return serve


@contextlib.asynccontextmanager
async def plain_stream(stream: TunnelStream) -> AsyncIterator[ByteStream]:
    """The stream as a reader and a writer, for what speaks without TLS of its own (enrolment).

    What was written is still carried at the end, for `SHUTDOWN_S` at most.
    """
    near, carrying = socket_to(stream)
    reader, writer = await asyncio.open_connection(sock=near, limit=STREAM_LIMIT)
    try:
        yield reader, writer
    finally:
        writer.close()
        await asyncio.wait({carrying}, timeout=SHUTDOWN_S)
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)
