"""A TCP proxy that does to a connection what bad networks do, at a counted byte; for every package's tests.

    async with FaultProxy(port, [Fault("up", 1000, "reset")]) as proxy:
        ... connect to proxy.port ...
        await proxy.happened()       # proves that the fault took place

`up` is from whoever connects to the proxy towards the target, `down` the other way. Bytes are counted per direction
over all connections. Runs on the test's event loop, on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

Direction = Literal["up", "down"]
Kind = Literal["stall", "reset", "half-close", "flip"]

READ: Final = 64 * 1024
RECORDED: Final = 8 * 1024 * 1024
"""Bytes kept per direction for tests that look at what crossed the wire."""


@dataclass(frozen=True)
class Fault:
    """When `at` bytes have passed in `direction`:

    stall       passes nothing more in either direction, and keeps the sockets open
    reset       ends both sides with a TCP reset
    half-close  ends `direction` as if its sender had closed; the other goes on
    flip        changes the lowest bit of the next byte
    """

    direction: Direction
    at: int
    kind: Kind


class FaultProxy:
    """Forwards connections to `127.0.0.1:port`. `split`: at most so many bytes at a time; `delay_s` before each."""

    def __init__(
        self, port: int, faults: Iterable[Fault] = (), *, split: int | None = None, delay_s: float = 0.0
    ) -> None:
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self.recorded: dict[Direction, bytearray] = {"up": bytearray(), "down": bytearray()}
        self.connections = 0
        self._target = port
        self._pending = sorted(faults, key=lambda fault: fault.at)
        self._split = split or READ
        self._delay_s = delay_s
        self._fault_seen = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        """Where to connect."""
        return int(self._server.sockets[0].getsockname()[1])

    async def happened(self) -> None:
        """Returns when every fault that was asked for took place."""
        await self._fault_seen.wait()

    def stall(self) -> None:
        """Pass nothing until `resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        """Pass bytes again."""
        self._flowing.set()

    def reset(self) -> None:
        """End every connection with a TCP reset."""
        for writer in self._writers:
            _reset(writer)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        self._writers.add(far_writer)
        for end in (writer, far_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start(reader, far_writer, writer, "up")
        self._start(far_reader, writer, far_writer, "down")

    def _start(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        direction: Direction,
    ) -> None:
        task = asyncio.create_task(self._pump(reader, writer, back, direction))
        self._tasks.add(task)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        direction: Direction,
    ) -> None:
        try:
            while data := await reader.read(READ):
                rest = memoryview(bytearray(data))
                while len(rest):
                    if not await self._faults_due(direction, rest, writer, back):
                        return
                    size = min(self._split, len(rest), self._until_next(direction))
                    await self._pass(direction, rest[:size], writer)
                    rest = rest[size:]
                if not await self._faults_due(direction, rest, writer, back):
                    return
            await self._flowing.wait()  # a stalled way tells nobody that an end is gone
            writer.write_eof()
        except OSError:
            await self._flowing.wait()
            _reset(back)
            _reset(writer)

    async def _pass(self, direction: Direction, data: memoryview, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        await asyncio.sleep(self._delay_s)
        writer.write(bytes(data))
        await writer.drain()
        self.passed[direction] += len(data)
        if len(self.recorded[direction]) < RECORDED:
            self.recorded[direction] += data

    def _until_next(self, direction: Direction) -> int:
        waiting = [fault.at for fault in self._pending if fault.direction == direction]
        return max(1, waiting[0] - self.passed[direction]) if waiting else READ

    async def _faults_due(
        self, direction: Direction, rest: memoryview, writer: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> bool:
        """Whether the direction goes on."""
        for fault in list(self._pending):
            if fault.direction != direction or fault.at > self.passed[direction]:
                continue
            if fault.kind == "flip":
                if not len(rest):
                    continue
                rest[0] ^= 1
            self._pending.remove(fault)
            if not self._pending:
                self._fault_seen.set()
            if fault.kind == "stall":
                self.stall()
            elif fault.kind == "reset":
                _reset(writer)
                _reset(back)
                return False
            elif fault.kind == "half-close":
                writer.write_eof()
                return False
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
