"""The process server and the master target that come with a configuration server, as the classic product has them.

Each is a process in a session of its own with a lock on its folder, so it outlives this server and replication goes
on. Invariant: a folder's process is adopted where it runs and started where it does not, never both: the lock decides,
and a second one ends by itself. Runs as one task; starting and reading files in worker threads.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from backhaul.configuration_server.errors import VaultError
from backhaul.configuration_server.member import MemberFolder, Registration
from backhaul.configuration_server.occupancy import Running, running_in
from backhaul.configuration_server.registry import Registry
from backhaul.configuration_server.service_config import FILE, ServiceConfig, save_service
from backhaul.configuration_server.vault import Vault, advertised_addresses
from backhaul.links.dialer import Address
from backhaul.replication.values import Role

LOOK_S: Final = 1.0
FIRST_WAIT_S: Final = 1.0
MOST_WAIT_S: Final = 60.0
"""A service that ends at once is started again ever more slowly."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """One of the two. `command`: the verb of the command line that runs it."""

    role: Role
    command: str
    folder: Path
    config: ServiceConfig


class BuiltInServers:
    """Keeps both running."""

    def __init__(self, vault: Vault, registry: Registry, api: Address, listen_host: str) -> None:
        """`api`: where they reach this server. `listen_host`: where this server listens; agents reach the process
        server there too. The master target dials out, so it is reached from this machine only.
        """
        self._vault, self._registry, self._api, self._listen_host = vault, registry, api, listen_host
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def servers(self) -> tuple[BuiltIn, ...]:
        """What this server starts."""
        settings, data_dir = self._vault.settings, self._vault.data_dir
        spool, target = data_dir / "process-server", data_dir / "master-target"
        relay = ServiceConfig(
            "built-in-ps",
            self._listen_host,
            settings.process_server_port,
            settings.addresses or advertised_addresses(self._listen_host),
            spool_bytes=settings.spool_bytes,
        )
        return (
            BuiltIn(Role.PROCESS_SERVER, "process-server", spool, relay),
            BuiltIn(
                Role.MASTER_TARGET,
                "master-target",
                target,
                ServiceConfig("built-in-mt", "127.0.0.1", settings.master_target_port),
            ),
        )

    async def run(self) -> None:
        """Keep them running until cancelled; they go on then."""
        await asyncio.gather(*(self._keep(server) for server in self.servers()))

    async def _keep(self, server: BuiltIn) -> None:
        wait_s = FIRST_WAIT_S
        await asyncio.to_thread(self.prepare, server)
        while True:
            running = await asyncio.to_thread(self.ensure, server)
            if running is None:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, MOST_WAIT_S)
            else:
                wait_s = FIRST_WAIT_S
                await asyncio.sleep(LOOK_S)

    def prepare(self, server: BuiltIn) -> None:
        """Register the server where its folder holds no registration, without a passphrase being typed."""
        files = self._vault.files
        folder = MemberFolder(server.folder, files, self._vault.world.randomness, server.command)
        if FILE not in files.names(server.folder):
            save_service(files, server.folder, server.config)
        api = str(self._api)
        if folder.is_registered:
            registration, identity = folder.load()
            if registration.configuration_server == api:
                return
            server_id = registration.id
        else:
            server_id = f"{server.config.name}-{self._vault.world.randomness.token(4).hex()}"
            identity = self._registry.own_member(server.role, server_id, server.config.name)
        folder.save(Registration(api, self._vault.record.id, server.role, server_id, server.config.name), identity)

    def ensure(self, server: BuiltIn) -> Running | None:
        """The running process: adopted, or started now; None right after a start, until it has the folder."""
        child = self._children.get(server.folder)
        ended = child.poll() if child is not None else None
        running = running_in(self._vault.files, server.folder)
        if running is not None:
            if child is None or running.pid != child.pid:
                _log.debug("built_in.adopted", server=server.command, pid=running.pid)
            return running
        if child is not None and ended is None:
            return None  # it is still starting
        if ended is not None:
            _log.warning("built_in.ended", server=server.command, status=ended)
        self._children[server.folder] = self._start(server)
        return None

    def _start(self, server: BuiltIn) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "backhaul", server.command, "run", "--data-dir", str(server.folder)]
        descriptor = os.open(server.folder / "service.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True
            )
        except OSError as error:
            raise VaultError(folder=server.folder, reason=f"its service cannot be started: {error}") from error
        finally:
            os.close(descriptor)
        _log.info("built_in.started", server=server.command, pid=child.pid)
        return child
