"""The client's end of HTTP/1.1 on any byte stream: one request after the other. Event loop only.

A library that dials by itself would send the request before anybody could look at the server's certificate; here the
stream was dialled, and its peer checked, before. The same serves streams through a tunnel.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11

from backhaul.links.cutting import cut
from backhaul.replication.units import KiB, MiB

MAX_ANSWER: Final = 8 * MiB
"""An assignment of a thousand items is below one."""

_READ: Final = 64 * KiB


class HttpChannel:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host
        self._state = h11.Connection(h11.CLIENT)

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow."""
        return self._state.our_state is h11.DONE and self._state.their_state is h11.DONE

    async def exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises OSError, EOFError, h11.ProtocolError."""
        if self.is_reusable:
            self._state.start_next_cycle()
        headers = [("host", self._host), ("content-length", str(len(body))), ("content-type", "application/json")]
        sent = self._state.send(h11.Request(method=method, target=path, headers=headers)) or b""
        if body:
            sent += self._state.send(h11.Data(body)) or b""
        self._writer.write(sent + (self._state.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()
        return await self._answer()

    async def _answer(self) -> tuple[int, bytes]:
        status, content = 0, bytearray()
        while True:
            event = self._state.next_event()
            if event is h11.NEED_DATA:
                self._state.receive_data(await self._reader.read(_READ))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
                if len(content) > MAX_ANSWER:
                    raise h11.RemoteProtocolError(f"the answer is larger than {MAX_ANSWER} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(content)
            elif isinstance(event, h11.ConnectionClosed):
                raise EOFError("the server ended the connection before its answer")

    def abort(self) -> None:
        """End the connection."""
        cut(self._writer.transport)
