"""The registration tool's way to the server that waits: a Unix socket in its folder, which only its owner can reach.

One request per connection: 4 bytes length and MessagePack, answered in the same form. The passphrase crosses this
socket and nothing else: no argument, no file, no log. Invariant: malformed or oversized requests cost their connection
only. `RegisterOffice` runs on the waiting process' event loop, `ask_register` in the tool's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from backhaul.links.cutting import cut
from backhaul.process_server.errors import RegisterFailed, RegisterMalformed, RegisterUnavailable
from backhaul.replication.errors import UNDECODABLE, BackhaulError
from backhaul.replication.units import KiB

SOCKET: Final = "register.sock"
MAX_MESSAGE: Final = 16 * KiB
LIMIT_S: Final = 300.0
"""Longest wait for home to dial; the operator is watching."""

READ_S: Final = 10.0
_LENGTH: Final = struct.Struct("!I")
_MODE: Final = 0o177


class RegisterRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the operator says.

    host, port      of the configuration server: dialled where `direct`, else kept, and compared with its certificate
    passphrase      connection passphrase or one-time token
    id, name        of this server; the id goes into its certificate; empty: the one it was deployed under
    direct          this server dials (same network, or a VPN); else it waits for home to dial
    dns, addresses  names for the certificate
    limit_s         how long home may take to dial
    """

    host: str
    port: int
    passphrase: str
    id: str
    name: str
    direct: bool
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    limit_s: float = 60.0

    def check(self) -> None:
        """Raises RegisterMalformed."""
        if not 0 < self.port < 65536:
            raise RegisterMalformed(reason=f"the port {self.port} is none")
        if not self.host:
            raise RegisterMalformed(reason="the configuration server must be given")
        if not 0 < self.limit_s <= LIMIT_S:
            raise RegisterMalformed(reason=f"limit_s must be above 0 and at most {LIMIT_S:g}")

    def without_secret(self) -> RegisterRequest:
        """For what is kept."""
        return msgspec.structs.replace(self, passphrase="")

    def __repr__(self) -> str:
        return f"RegisterRequest({self.id!r} at {self.host}:{self.port})"


class RegisterAnswer(msgspec.Struct, frozen=True):
    """`code` empty: registered. Else why not, and what to do."""

    code: str
    reason: str
    fix: str
    warning: str = ""


class WaitingStatus(msgspec.Struct, frozen=True):
    """`key_hash`: hexadecimal SHA-256 of the first key. `dialled_by`: hosts whose connections wait for the tool."""

    key_hash: str
    dialled_by: tuple[str, ...]


class _StatusRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    status: bool


def failure(error: BackhaulError) -> RegisterAnswer:
    """The answer that tells of an error."""
    return RegisterAnswer(error.code, error.message, error.advice)


class RegisterOffice:
    """The server's end."""

    def __init__(
        self,
        folder: Path,
        register: Callable[[RegisterRequest], Awaitable[RegisterAnswer]],
        status: Callable[[], WaitingStatus],
    ) -> None:
        self._folder, self._register, self._status = folder, register, status
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen. Raises OSError."""
        (self._folder / SOCKET).unlink(missing_ok=True)  # of a process that was killed
        with _short(self._folder) as path:
            before = os.umask(_MODE)
            try:
                self._server = await asyncio.start_unix_server(self._connected, path, backlog=4)
            finally:
                os.umask(before)

    async def close(self) -> None:
        """Listen no more; answers under way are still given."""
        if self._server is None:
            return
        self._server.close()
        (self._folder / SOCKET).unlink(missing_ok=True)
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=READ_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs it as a task"
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            await _write(writer, await self._answer(reader))
        except (OSError, asyncio.IncompleteReadError):
            cut(writer.transport)  # the tool has gone
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> msgspec.Struct:
        try:
            async with asyncio.timeout(READ_S):
                content = await _read(reader)
            value: dict[str, Any] = msgspec.msgpack.decode(content, type=dict[str, Any])
            if "status" in value:
                msgspec.convert(value, _StatusRequest)
                return self._status()
            request = msgspec.convert(value, RegisterRequest)
            request.check()
        except UNDECODABLE as error:
            return failure(RegisterMalformed(reason=str(error)))
        except RegisterMalformed as error:
            return failure(error)
        return await self._register(request)


async def ask_register(folder: Path, request: RegisterRequest) -> str:
    """The tool's end: register the server that waits in `folder`; a warning, or nothing.

    Raises RegisterUnavailable; RegisterFailed with the code, reason and advice of what went wrong.
    """
    answer = msgspec.msgpack.decode(await _ask(folder, request), type=RegisterAnswer)
    if answer.code:
        raise RegisterFailed(reason_code=answer.code, reason=answer.reason, reason_fix=answer.fix)
    return answer.warning


async def ask_status(folder: Path) -> WaitingStatus:
    """What the server that waits in `folder` shows. Raises RegisterUnavailable."""
    return msgspec.msgpack.decode(await _ask(folder, _StatusRequest(True)), type=WaitingStatus)


async def _ask(folder: Path, request: msgspec.Struct) -> bytes:
    try:
        with _short(folder) as path:
            reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        raise RegisterUnavailable(folder=folder, reason=error.strerror or str(error)) from error
    try:
        await _write(writer, request)
        async with asyncio.timeout(LIMIT_S + READ_S):
            return await _read(reader)
    except (OSError, asyncio.IncompleteReadError) as error:
        raise RegisterUnavailable(folder=folder, reason=f"it ended meanwhile: {error}") from error
    finally:
        cut(writer.transport)


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path by way of a descriptor: the kernel takes at most 108 bytes, and folders lie deep."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_MESSAGE:
        raise RegisterMalformed(reason=f"a message of {length} bytes")
    return await reader.readexactly(length)


async def _write(writer: asyncio.StreamWriter, value: msgspec.Struct) -> None:
    content = msgspec.msgpack.encode(value)
    writer.write(_LENGTH.pack(len(content)) + content)
    await writer.drain()
