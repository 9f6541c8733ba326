"""A TCP proxy that counts: it stands in the way of a reprotect and is no part of the product.

It passes bytes on in both directions and counts them. At a given count of bytes from clients (`hold_at`, which may be
set while it runs) it *holds*: what clients send from then on is counted and thrown away, as by a network whose far end
has died, so none of it can have arrived and all of it must be sent again. The demo then kills the process server and
lets the proxy go on: connections that were held are closed, new ones pass. One event loop; `Counted` is read and
`let_go` called by any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

PIECE: Final = 64 * 1024
_BACKLOG: Final = 64


@dataclass
class Counted:
    """Bytes since the start. `lost`: sent by clients while the proxy held, so sent again by them."""

    from_clients: int = 0
    to_clients: int = 0
    lost: int = 0
    connections: int = 0


class CountingProxy:
    """Listens on one address and passes everything on to another."""

    def __init__(self, target: tuple[str, int], hold_at: int = 0, on_hold: Callable[[], None] = lambda: None) -> None:
        """`hold_at`: bytes from clients; 0: never. `on_hold` is called once then, on the event loop: return at once."""
        self.counted = Counted()
        self.hold_at = hold_at
        self._target = target
        self._on_hold = on_hold
        self._holding = threading.Event()
        self._held_once = False
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError when the address is taken."""
        self._server = await asyncio.start_server(self._accept, host, port, backlog=_BACKLOG)

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        await self._drop_connections()
        if self._server is not None:
            await self._server.wait_closed()

    async def let_go(self) -> None:
        """Hold no more: what was held ends, whoever comes anew is passed on."""
        self._holding.clear()
        await self._drop_connections()

    @property
    def holds(self) -> bool:
        """Whether it holds at the moment."""
        return self._holding.is_set()

    async def _drop_connections(self) -> None:
        tasks = [task for task in self._connections if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._pass(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # an end went away: closing the other one, below, is what a wire would do
        except asyncio.CancelledError:
            pass  # dropped on purpose; the server's own callback has nothing to do with it
        finally:
            self._connections.discard(task)
            await _close(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._holding.is_set():
            return
        self.counted.connections += 1
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            up = asyncio.ensure_future(self._up(reader, far_writer))
            down = asyncio.ensure_future(self._down(far_reader, writer))
            try:
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in (up, down):
                    one.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        finally:
            await _close(far_writer)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE):
            if self.hold_at and not self._held_once and self.counted.from_clients + len(piece) > self.hold_at:
                self._held_once = True
                self._holding.set()
                self._on_hold()
            self.counted.from_clients += len(piece)
            if self._holding.is_set():
                self.counted.lost += len(piece)
                continue
            writer.write(piece)
            await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE):
            self.counted.to_clients += len(piece)
            writer.write(piece)
            await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
