"""The counting proxy: what it counts is what passed, and what it holds is never delivered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backhaul.demo.proxy import CountingProxy

HOST = "127.0.0.1"


class Far:
    """A server that keeps what it is sent and answers each piece with one byte."""

    def __init__(self) -> None:
        self.received = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65536):
                self.received += piece
                writer.write(b"!")
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def far_end() -> AsyncIterator[tuple[Far, int]]:
    far = Far()
    server = await asyncio.start_server(far.serve, HOST, 0)
    try:
        yield far, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def test_it_counts_what_passes_in_each_direction() -> None:
    async with far_end() as (far, port):
        proxy = CountingProxy((HOST, port))
        await proxy.start(HOST, 0)
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"x" * 1000)
        assert await reader.readexactly(1) == b"!"
        writer.close()
        await writer.wait_closed()
        await proxy.stop()
        assert far.received == b"x" * 1000
        assert (proxy.counted.from_clients, proxy.counted.to_clients, proxy.counted.lost) == (1000, 1, 0)


async def test_what_is_held_is_counted_and_never_arrives() -> None:
    held = asyncio.Event()
    async with far_end() as (far, port):
        proxy = CountingProxy((HOST, port), hold_at=1500, on_hold=held.set)
        await proxy.start(HOST, 0)
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"a" * 1000)
        await reader.readexactly(1)
        writer.write(b"b" * 1000)
        await held.wait()
        assert proxy.holds
        writer.write(b"c" * 500)
        while proxy.counted.lost < 1500:  # noqa: ASYNC110 - the proxy has no event for each piece
            await asyncio.sleep(0)
        assert far.received == b"a" * 1000
        await proxy.let_go()
        assert await reader.read() == b"", "a held connection ends"
        writer.close()
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"d" * 1500)
        await reader.readexactly(1)
        writer.close()
        await writer.wait_closed()
        await proxy.stop()
        assert far.received == b"a" * 1000 + b"d" * 1500
        assert proxy.counted.lost == 1500
        assert proxy.counted.from_clients == 4000


async def test_an_end_that_is_not_there_closes_the_connection() -> None:
    proxy = CountingProxy((HOST, 1))
    await proxy.start(HOST, 0)
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await proxy.stop()
