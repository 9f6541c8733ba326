"""The entry of a process server: recovers the spool, listens on one port, dials the targets it is told to.

`run` is called by the composition root with the ports, in a process with nothing else in it. It returns by being
cancelled; a failed sync raises SpoolSyncFailed, upon which the process must end and be started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, ConnectionSettings, accept_data, open_data
from backhaul.links.dialer import Address, Redial, dial_data, reconnecting
from backhaul.links.listener import data_route, listen
from backhaul.links.tls import ALPN_DATA, ALPN_ENROL, ALPN_TUNNEL, Credentials
from backhaul.process_server.api_relay import ApiRelay
from backhaul.process_server.enrol_relay import EnrolRelay
from backhaul.process_server.errors import FolderInUse, SettingRefused
from backhaul.process_server.health import Monitor
from backhaul.process_server.relay import Relay
from backhaul.process_server.service import Service
from backhaul.process_server.spool import Spool
from backhaul.process_server.throttle import ThrottleLimits
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.messages import Request
from backhaul.replication.ports import Clock, Files, Randomness
from backhaul.replication.units import GiB, MiB
from backhaul.replication.values import Role

SPOOL_AT_LEAST: Final = 256 * MiB
"""Smallest bound of a spool: a batch, a segment and a window of several agents fit."""

MAX_DIALLED: Final = 64
"""Targets that one process server dials."""

_SETTINGS: Final = "settings"
_LINKS: Final = ConnectionSettings(queue_bytes=2 * MiB)
"""What is received is taken at once, or held back on purpose: a frame or two per connection bound the memory."""

_ROLES: Final = frozenset({Role.AGENT, Role.MASTER_TARGET, Role.CONFIGURATION_SERVER})
_log = structlog.get_logger(__name__)


class ProcessServerConfig(msgspec.Struct, frozen=True):
    """What a process server is started with.

    name         for people; who it is, its certificate says
    folder       spool and settings; belongs to this process alone
    host, port   where it listens, for agents, targets that dial in, and the configuration server; port 0: any
    spool_bytes  bound of the spool
    """

    name: str
    folder: Path
    host: str = ""
    port: int = 9443
    spool_bytes: int = 64 * GiB

    def check(self) -> None:
        """Raises SettingRefused."""
        if self.spool_bytes < SPOOL_AT_LEAST:
            raise SettingRefused(name="spool_bytes", reason=f"it must be at least {SPOOL_AT_LEAST}")


class ProcessServerSettings(msgspec.Struct, frozen=True):
    """What the configuration server may change while it runs; kept in the folder.

    throttle  limits of free space
    dial      targets to be dialled, `host:port` (with a VPN; otherwise targets dial in)
    """

    throttle: ThrottleLimits = ThrottleLimits()
    dial: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises SettingRefused."""
        self.throttle.check()
        if len(self.dial) > MAX_DIALLED:
            raise SettingRefused(name="dial", reason=f"it names more than {MAX_DIALLED} targets")
        for address in self.dial:
            _address(address)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingRefused(name="dial", reason=f"{text!r:.100} is not host:port")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


class _Settings:
    """The settings in force, and one dialling task per address."""

    def __init__(self, relay: Relay, files: Files, folder: Path, dial: Callable[[Address], asyncio.Task[None]]) -> None:
        self._relay = relay
        self._files = files
        self._path = folder / _SETTINGS
        self._dial = dial
        self._dialling: dict[str, asyncio.Task[None]] = {}

    def load(self) -> None:
        """Put the stored settings in force. Raises SettingRefused when the file is damaged."""
        if self._path.name not in self._files.names(self._path.parent):
            return
        try:
            self._apply(msgspec.msgpack.decode(self._files.read(self._path), type=ProcessServerSettings))
        except UNDECODABLE as error:
            raise SettingRefused(name=str(self._path), reason=str(error)) from error

    def configure(self, request: Request) -> dict[str, Any]:
        """Check, store, then put in force; the answer repeats them. Small and rare: it blocks for one sync.

        Raises SettingRefused; the old settings then stay.
        """
        try:
            settings = msgspec.convert(request.params, ProcessServerSettings)
        except msgspec.ValidationError as error:
            raise SettingRefused(name="settings", reason=str(error)) from error
        settings.check()
        try:
            self._files.replace(self._path, msgspec.msgpack.encode(settings))
        except OSError as error:
            raise SettingRefused(name="settings", reason=f"they cannot be stored: {error.strerror}") from error
        self._apply(settings)
        answer: dict[str, Any] = msgspec.to_builtins(settings)
        return answer

    def _apply(self, settings: ProcessServerSettings) -> None:
        self._relay.throttle.limits = settings.throttle
        for address in self._dialling.keys() - set(settings.dial):
            self._dialling.pop(address).cancel()
        for address in settings.dial:
            if address not in self._dialling:
                self._dialling[address] = self._dial(_address(address))

    async def stop(self) -> None:
        """Dial no more."""
        for task in self._dialling.values():
            task.cancel()
        await asyncio.gather(*self._dialling.values(), return_exceptions=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes in one spool would destroy it. The lock ends with the process, however that ends."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUse(folder=folder) from error
        yield
    finally:
        os.close(descriptor)


async def run(
    config: ProcessServerConfig,
    credentials: Credentials,
    files: Files,
    clock: Clock,
    randomness: Randomness,
    ready: Callable[[int], None] = lambda port: None,
    api: ApiRelay | None = None,
) -> None:
    """Serve until cancelled; `ready` is called with the port once it listens. `api`: given by a caller that uses home's
    tunnel itself (`links.reaching.HomeTunnelWay`).

    Raises SettingRefused, FolderInUse, LinkUnreachable (the port is taken), OSError (the spool cannot be read), and
    SpoolSyncFailed, after which nothing may be written: end the process.
    """
    config.check()
    files.make_folder(config.folder)
    with _locked(config.folder):
        spool = Spool(files, config.folder / "spool", config.spool_bytes, clock, randomness)
        report = await asyncio.to_thread(spool.recover)
        for damage in report.damages:
            _log.error("spool.damaged", code=damage.code, reason=damage.message)
        for item, number in report.lost.items():
            _log.error("spool.lost", item=item, from_number=number)
        relay = Relay(config.name, ThrottleLimits(), report.items)
        monitor = Monitor(relay, clock, report.items, [damage.message for damage in report.damages])
        api = api or ApiRelay(clock)
        await _serve(config, credentials, files, clock, randomness, ready, relay, spool, monitor, api)


async def _serve(
    config: ProcessServerConfig,
    credentials: Credentials,
    files: Files,
    clock: Clock,
    randomness: Randomness,
    ready: Callable[[int], None],
    relay: Relay,
    spool: Spool,
    monitor: Monitor,
    api: ApiRelay,
) -> None:
    async def accepted(connection: Connection) -> None:
        await accept_data(connection, config.name)
        await service.serve(connection)

    async def connect(address: Address) -> Connection:
        connection = await dial_data(address, credentials, Expect(Role.MASTER_TARGET), clock=clock, settings=_LINKS)
        await open_data(connection, config.name)
        return connection

    async def dialled(connection: Connection) -> None:
        try:
            await service.serve(connection)
        finally:
            await connection.close()

    def dial(address: Address) -> asyncio.Task[None]:
        return asyncio.create_task(reconnecting(lambda: (address,), connect, dialled, Redial(clock, randomness)))

    settings = _Settings(relay, files, config.folder, dial)
    service = Service(relay, spool, monitor, settings.configure)
    clean = False
    try:
        settings.load()
        route = data_route(accepted, clock=clock, roles=_ROLES, settings=_LINKS)
        newcomers = EnrolRelay(lambda: api.home, clock)
        routes = {ALPN_DATA: route, ALPN_TUNNEL: api.route(), ALPN_ENROL: newcomers.route()}
        listener = await listen(config.host, config.port, credentials, routes)
        try:
            _log.info("process_server.listening", port=listener.port)
            ready(listener.port)
            await service.run()
        except asyncio.CancelledError:
            clean = True
            raise
        finally:
            await listener.close()
    finally:
        await settings.stop()
        await service.stop(clean=clean)
