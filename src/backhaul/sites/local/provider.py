"""The provider: everything of one local site, behind one entrance.

Opening it takes the site folder's lock, makes what is missing in the world (networks, volume), adopts what still runs
from before and clears away what a kill or a reboot left. `perform` is called from the API's worker threads, many at a
time. Closing leaves machines and servers running; `take_down` does not.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import structlog

from backhaul.replication.ports import Clock, Files, Randomness
from backhaul.sites.errors import NeedsRoot, NotAllowed, RequestMalformed, SiteFolderTaken
from backhaul.sites.local import mounts
from backhaul.sites.local.definition import Mode, SiteDefinition, check_definition
from backhaul.sites.local.inventory import Inventory
from backhaul.sites.local.layers import Layers
from backhaul.sites.local.ledger import Call, Ledger
from backhaul.sites.local.namespaces import NamespaceFabric
from backhaul.sites.local.networks import Addresses, AddressFabric, Fabric, Routes
from backhaul.sites.local.operations import TABLE
from backhaul.sites.local.power import Machines
from backhaul.sites.local.processes import Processes
from backhaul.sites.local.servers import Servers
from backhaul.sites.local.services import Services
from backhaul.sites.local.storage import Disks
from backhaul.sites.local.world import Step, World
from backhaul.sites.values import Principal

_log = structlog.get_logger(__name__)
_MAX_TOKEN = 200
_EXIT_AFTER_FAILED_SYNC = 70  # EX_SOFTWARE of sysexits.h


def end_process(cause: BaseException) -> None:
    """What is durable is unknown: end at once; the restart recovers from the ledger."""
    _log.critical("ledger failed", reason=str(cause))
    os._exit(_EXIT_AFTER_FAILED_SYNC)


class Provider:
    """One local site. Raises SiteFolderTaken, SiteDefinitionWrong, NeedsRoot or HostToolFailed when it cannot open."""

    def __init__(
        self,
        folder: Path,
        definition: SiteDefinition,
        *,
        files: Files,
        clock: Clock,
        randomness: Randomness,
        step: Step = lambda _: None,
    ) -> None:
        check_definition(definition)
        if definition.mode is Mode.NAMESPACES and os.geteuid() != 0:
            raise NeedsRoot(what=f"Site {definition.name}", reason="its networks are namespaces")
        files.make_folder(folder / "provider")
        self._lock = _lock(folder)
        ledger = Ledger(folder / "provider" / "ledger.sqlite", clock, end_process)
        self.world = World(folder, definition, ledger, files=files, clock=clock, randomness=randomness, step=step)
        self.fabric = _fabric(definition)
        processes = Processes(self.world)
        disks = Disks(self.world, processes)
        self._machines = Machines(self.world, self.fabric, processes, disks)
        self._servers = Servers(self.world, self.fabric, processes)
        self._services = Services(self.world, self.fabric, processes)
        self._routes = Routes(self.world, self.fabric)
        parts = (
            Inventory(self.world),
            Addresses(self.world),
            self._routes,
            disks,
            Layers(self.world, disks),
            self._machines,
            self._servers,
            self._services,
        )
        self._parts: dict[type[Any], Any] = {type(part): part for part in parts}
        try:
            self._adopt(disks)
        except BaseException:
            self.close()
            raise

    def _adopt(self, disks: Disks) -> None:
        self.world.folder.chmod(0o700)
        self.world.show(self.world.folder)
        self.fabric.prepare()
        mounts.prepare_volume(self.world)
        self._routes.restore_all()
        disks.remove_orphans()
        self._machines.clear_after_boot()
        self._servers.clear_after_boot()
        self._services.begin()

    def perform(self, caller: Principal, operation: str, token: str, arguments: bytes) -> bytes:
        """Carry out an operation of the table: JSON arguments in, JSON answer out. Raises what the contract says."""
        row = TABLE.get(operation)
        if row is None:
            raise RequestMalformed(operation=operation, reason="there is no such operation")
        if not any(role.rank >= row.floor.rank for role in caller.roles.values()):
            raise NotAllowed(
                principal=caller.name, operation=operation, subscription="(any)", needed=str(row.floor), role="less"
            )
        try:
            values = msgspec.json.decode(arguments or b"{}", type=row.arguments)
        except msgspec.DecodeError as error:
            raise RequestMalformed(operation=operation, reason=str(error)) from error
        if row.writes and not 0 < len(token) <= _MAX_TOKEN:
            raise RequestMalformed(operation=operation, reason="a writing call needs a request token")
        call = Call(caller, operation, token if row.writes else "", _digest(operation, values))
        given = {name: getattr(values, name) for name in values.__struct_fields__}
        answer = getattr(self._parts[row.part], operation)(call, **given)
        if row.writes:
            _log.info("performed", operation=operation, principal=caller.name, token=token)
        return msgspec.json.encode(answer)

    def close(self) -> None:
        """Let go of the site; what runs goes on."""
        self._services.end()
        self.world.ledger.close()
        os.close(self._lock)

    def take_down(self) -> None:
        """Stop everything, unmount, and remove the networks; the disks and the ledger stay. Then close."""
        self._services.end()
        self._services.stop_all()
        self._machines.stop_all()
        self._servers.stop_all()
        for part in self._parts.values():
            if isinstance(part, Disks):
                part.take_all_back()
        mounts.remove_volume(self.world)
        self.fabric.remove()
        self.close()


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / "provider" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SiteFolderTaken(folder=str(folder)) from error
    return descriptor


def _fabric(definition: SiteDefinition) -> Fabric:
    if definition.mode is Mode.NAMESPACES:
        return NamespaceFabric(definition)
    return AddressFabric(definition)


def _digest(operation: str, values: object) -> str:
    body = msgspec.json.encode(values, order="deterministic")
    return hashlib.sha256(operation.encode() + b"\0" + body).hexdigest()
