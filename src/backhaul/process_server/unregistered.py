"""A process server that is not registered yet: it listens for enrolment only, and waits for its registration tool.

    home ──dials, bh-enrol/1, checks the key's hash──> this port      (home dials out)
    registration tool ──local socket──> this process ──enrols──> over what home dialled, or by dialling itself

Its key is self-made and kept, so that the hash which the deployment read back from the console outlives restarts.
Invariant: nothing but enrolment is spoken on the port, nothing is believed but the passphrase's own hash of the
authority, and `run` returns only when the identity is durable: then the service starts on the same port. Event loop.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from backhaul.links.certificates import key_hash
from backhaul.links.dialer import Address, dial_enrolment
from backhaul.links.enrolment import Enrolled, enrol
from backhaul.links.errors import AuthorityMismatch, EnrolmentError
from backhaul.links.identity import IDENTITY_FILE, Identity, make_self_made
from backhaul.links.listener import ByteStream, Caller, close_stream, listen, stream_route
from backhaul.links.names import host_names
from backhaul.links.passphrase import Passphrase, parse_passphrase
from backhaul.links.rungs import probe_enrolment
from backhaul.links.tls import ALPN_ENROL, Credentials
from backhaul.process_server.errors import HomeSilent, RegisterMalformed
from backhaul.process_server.register_socket import (
    RegisterAnswer,
    RegisterOffice,
    RegisterRequest,
    WaitingStatus,
    failure,
)
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Clock, Files, Randomness
from backhaul.replication.values import Role

FIRST_KEY: Final = "first-key"
MAX_WAITING: Final = 8
"""Connections that wait for the registration tool. Home keeps one; a newer one ends the oldest, so that strangers who
fill them keep home out for one turn at most."""

MAX_PENDING: Final = 64
_KEY_LINE: Final = re.compile(r"not registered, key ([0-9a-f]{64})\b")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """What the service needs from then on. `warning`: what the operator should know; empty for nothing."""

    enrolled: Enrolled
    request: RegisterRequest
    warning: str = ""


@dataclass(frozen=True, slots=True)
class WaitingConfig:
    """`folder` holds the first key and the tool's socket; `host`, `port` are those of the service (port 0: any).

    id  under which it was deployed: for a request that names none
    """

    folder: Path
    host: str = ""
    port: int = 9443
    role: Role = Role.PROCESS_SERVER
    id: str = ""


def console_line(key: bytes) -> str:
    """The line for the server's console; `read_key_hash` finds it there."""
    return f"backhaul: not registered, key {key.hex()}; next: backhaul process-server register"


def read_key_hash(console: str) -> bytes | None:
    """The key hash that a server's console shows last (the site's console has been read); None when it shows none."""
    found = _KEY_LINE.findall(console)
    return bytes.fromhex(found[-1]) if found else None


class Unregistered:
    """See the module. `save` makes the new identity durable; it blocks and runs in a thread."""

    def __init__(
        self,
        config: WaitingConfig,
        save: Callable[[Registered], None],
        files: Files,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self._config, self._save, self._files, self._clock = config, save, files, clock
        self._identity = _first_identity(files, config.folder / FIRST_KEY, clock, randomness)
        self._dialled: deque[tuple[ByteStream, Caller, asyncio.Event]] = deque()
        self._arrived = asyncio.Event()
        self._registering = asyncio.Lock()
        self._done: asyncio.Future[Registered] = asyncio.get_running_loop().create_future()

    @property
    def key_hash(self) -> bytes:
        """What home must be told before it dials."""
        return key_hash(self._identity.certificate)

    async def run(self, ready: Callable[[int, bytes], None] = lambda port, key: None) -> Registered:
        """Wait until registered. `ready` gets the port and the key hash once it listens.

        Raises LinkUnreachable (the port is taken), OSError (the folder).
        """
        routes = {ALPN_ENROL: stream_route(self._accepted)}
        credentials = Credentials(self._identity, self._clock)
        listener = await listen(self._config.host, self._config.port, credentials, routes, max_connections=MAX_PENDING)
        office = RegisterOffice(self._config.folder, self._register, self._status)
        try:
            await office.open()
            _log.info("server.unregistered", port=listener.port, key=self.key_hash.hex())
            ready(listener.port, self.key_hash)
            registered = await self._done
        finally:
            try:
                await office.close()
            finally:
                await listener.close()
        for name in self._files.names(self._config.folder / FIRST_KEY):
            self._files.remove(self._config.folder / FIRST_KEY / name)
        return registered

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        """Home, or a stranger: the tool finds out by the passphrase."""
        over = asyncio.Event()
        self._dialled.append(((reader, writer), caller, over))
        if len(self._dialled) > MAX_WAITING:
            self._dialled.popleft()[2].set()
        self._arrived.set()
        await over.wait()

    def _status(self) -> WaitingStatus:
        """For the tool and `doctor` on this server."""
        self._drop_ended()
        return WaitingStatus(self.key_hash.hex(), tuple(caller.host for _, caller, _ in self._dialled))

    def _drop_ended(self) -> None:
        for entry in tuple(self._dialled):
            if entry[0][1].is_closing():
                self._dialled.remove(entry)
                entry[2].set()

    # --- registering --------------------------------------------------------------------------------------------

    async def _register(self, request: RegisterRequest) -> RegisterAnswer:
        async with self._registering:
            if self._done.done():
                return RegisterAnswer("", "", "", "it is registered already")
            try:
                if not request.id and not self._config.id:
                    raise RegisterMalformed(reason="this server was not deployed under an id, so one must be given")
                passphrase = parse_passphrase(request.passphrase)
                enrolled = await (
                    self._by_dialling(request, passphrase) if request.direct else self._by_home(request, passphrase)
                )
            except BackhaulError as error:
                _log.warning("register.failed", code=error.code, reason=error.message)
                return failure(error)
            registered = Registered(enrolled, request.without_secret(), _warning(enrolled, request))
            try:
                await asyncio.to_thread(self._save, registered)
            except OSError as error:
                self._done.set_exception(error)  # what reached the disk is unknown: the process ends
                raise
            self._done.set_result(registered)
            return RegisterAnswer("", "", "", registered.warning)

    async def _by_dialling(self, request: RegisterRequest, passphrase: Passphrase) -> Enrolled:
        address = Address(request.host, request.port)
        (await probe_enrolment(address, self._clock, passphrase)).check()
        dialled = await dial_enrolment(address)
        try:
            return await self._enrol(dialled.stream, passphrase, request, str(address))
        finally:
            await close_stream(dialled.writer)

    async def _by_home(self, request: RegisterRequest, passphrase: Passphrase) -> Enrolled:
        """Over what was dialled: the newest first, the next one where it is a stranger's or broke."""
        last: BackhaulError = HomeSilent(limit_s=request.limit_s)
        try:
            async with asyncio.timeout(request.limit_s):
                while True:
                    stream, caller, over = await self._next_dialled()
                    try:
                        return await self._enrol(stream, passphrase, request, caller.host)
                    except EnrolmentError as error:
                        if type(error) is EnrolmentError:
                            _log.info("register.connection_broke", peer=caller.host, reason=error.message)
                        elif isinstance(error, AuthorityMismatch):
                            last = error
                            if not self._dialled:
                                raise
                        else:
                            raise
                    finally:
                        over.set()
        except TimeoutError:
            raise last from None

    async def _next_dialled(self) -> tuple[ByteStream, Caller, asyncio.Event]:
        while True:
            self._drop_ended()
            if self._dialled:
                return self._dialled.pop()
            self._arrived.clear()
            await self._arrived.wait()

    async def _enrol(self, stream: ByteStream, passphrase: Passphrase, request: RegisterRequest, peer: str) -> Enrolled:
        reader, writer = stream
        return await enrol(
            reader, writer, passphrase, self._config.role, request.id or self._config.id,
            clock=self._clock, peer=peer, dns=request.dns, addresses=request.addresses,
        )  # fmt: skip


def _warning(enrolled: Enrolled, request: RegisterRequest) -> str:
    """Over home's connection the name that was typed was not dialled; the certificate says whether it is one of its."""
    names = host_names(enrolled.desk.certificate_der)
    if not request.host or request.host.lower() in names:
        return ""
    return f"the configuration server's certificate does not name {request.host}; it names {', '.join(sorted(names))}"


def _first_identity(files: Files, folder: Path, clock: Clock, randomness: Randomness) -> Identity:
    """The key made at the first start; 0600, worth nothing once the server is registered."""
    files.make_folder(folder)
    if IDENTITY_FILE in files.names(folder):
        return Identity.load(files, folder)
    identity = make_self_made(clock, randomness)
    identity.save(files, folder)
    return identity
