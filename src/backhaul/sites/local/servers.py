"""Servers that the site makes on request: the process server's virtual machine.

Creating books name, address, quota and room in one transaction, makes the disks in the storage account, and starts the
boot command; whatever fails on the way is cleaned up and nothing stays booked. A kill on the way leaves a server in
state `creating`, which the same call completes and a deletion removes. Called from worker threads under `server/NAME`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from backhaul.disks.raw_file import create_raw_file
from backhaul.sites.errors import InUse, ServerRejected, TooManyAttempts
from backhaul.sites.local import mounts
from backhaul.sites.local.definition import AddressRecord, DiskRecord, GroupRecord, MachineRecord, ServerRecord
from backhaul.sites.local.ledger import Call, Transaction
from backhaul.sites.local.networks import Fabric, give_back, network_of, take
from backhaul.sites.local.processes import Processes, ProcessSpec
from backhaul.sites.local.server_findings import groups, problems, size_of, spool_bytes
from backhaul.sites.local.storage import publish
from backhaul.sites.local.tools import run
from backhaul.sites.local.world import World
from backhaul.sites.server_rules import password_matches
from backhaul.sites.values import Finding, Metadata, PowerState, ResourceGroup, Server, ServerRequest, SiteRole

_MAX_FAILURES = 5
_FAILURES_WINDOW_S = 60
"""Five wrong passwords a minute: a person may mistype, a guesser gets nowhere against rules of 12 characters."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DISKS = ("os", "spool")


class Servers:
    """All servers of one site."""

    def __init__(self, world: World, fabric: Fabric, processes: Processes) -> None:
        self._world = world
        self._fabric = fabric
        self._processes = processes

    def servers(self, call: Call) -> tuple[Server, ...]:
        """Those in subscriptions that the caller may read, half-made ones included."""
        with self._world.ledger.transaction() as tx:
            records = tx.all(ServerRecord)
        return tuple(self._shown(record) for record in records if call.sees(record.subscription))

    def resource_groups(self, call: Call) -> tuple[ResourceGroup, ...]:
        """Those in subscriptions that the caller may read."""
        with self._world.ledger.transaction() as tx:
            known = sorted(groups(tx, self._world.definition))
        return tuple(ResourceGroup(*group) for group in known if call.sees(group[0]))

    def create_resource_group(self, call: Call, subscription: str, name: str, region: str) -> ResourceGroup:
        """Make a resource group; one that is there already, in the same region, is no error."""
        call.require(SiteRole.CONTRIBUTOR, subscription)
        answer = ResourceGroup(subscription, name, region)

        def work() -> ResourceGroup:
            with self._world.ledger.transaction() as tx:
                there = {group[:2]: group[2] for group in groups(tx, self._world.definition)}.get((subscription, name))
                if there not in (None, region):
                    raise InUse(what=f"Resource group {name}", reason=f"it is in region {there}")
                if there is None:
                    tx.put(GroupRecord(f"{subscription}/{name}", subscription, name, region))
                self._world.finish(tx, call, f"resource-group/{subscription}/{name}", answer, effect=there is None)
            return answer

        return self._world.once(call, ResourceGroup, work, f"subscription/{subscription}")

    def server_findings(self, call: Call, request: ServerRequest) -> tuple[Finding, ...]:
        """What speaks against creating it now."""
        with self._world.ledger.transaction() as tx:
            errors = list(problems(tx, self._world.definition, call, request))
        return tuple(Finding(error.code, error.message, error.advice) for error in errors)

    def create_server(self, call: Call, request: ServerRequest) -> Server:
        """Make the server and start it."""
        call.require(SiteRole.CONTRIBUTOR, request.subscription)

        def work() -> Server:
            record = self._book(call, request)
            self._world.step("server booked")
            try:
                self._make_disks(record)
                self._world.files.make_folder(self._folder(record))
                self._world.show(self._folder(record))
                self._world.publish(self._folder(record) / "custom-data", request.custom_data.encode())
                self._start(record)
            except Exception:
                self._take_down(record)
                with self._world.ledger.transaction() as tx:
                    tx.remove(ServerRecord, record.key)
                    give_back(tx, record.network, record.address)
                    tx.abandon(call)
                raise
            ready = msgspec.structs.replace(record, state="ready")
            answer = self._shown(ready)
            with self._world.ledger.transaction() as tx:
                tx.put(ready)
                self._world.finish(tx, call, f"server/{record.key}", answer)
            return answer

        return self._world.once(call, Server, work, f"server/{request.name}")

    def _book(self, call: Call, request: ServerRequest) -> ServerRecord:
        definition = self._world.definition
        with self._world.ledger.transaction() as tx:
            mine = tx.get(ServerRecord, request.name)
            if mine is not None and mine.id == self._world.identity(call) and mine.state == "creating":
                return mine
            errors = list(problems(tx, definition, call, request))
            if errors:
                listed = "; ".join(f"{error.code}: {error.message}" for error in errors)
                raise ServerRejected(name=request.name, findings=listed, codes=[error.code for error in errors])
            size, network = size_of(definition, request.size), network_of(definition, request.network)
            assert size is not None, "a finding names an unknown size"
            assert network is not None, "a finding names an unknown network"
            address = take(tx, call, network, request.subnet, request.address, f"server:{request.name}").address
            record = ServerRecord(
                key=request.name,
                id=self._world.identity(call),
                subscription=request.subscription,
                resource_group=request.resource_group,
                region=request.region,
                network=request.network,
                subnet=request.subnet,
                address=address,
                user=request.user,
                password=request.password,
                account=request.account,
                size=request.size,
                cores=size.cores,
                os_disk_bytes=size.os_disk_bytes,
                spool_disk_bytes=spool_bytes(request, size),
                command=request.command,
                tags=request.tags,
            )
            tx.put(record)
            tx.begin(call)
        return record

    def delete_server(self, call: Call, server: str) -> None:
        """Give everything back: process, address, disks, quota."""
        record = self._world.ledger_get(ServerRecord, server)
        if record is not None:
            call.require(SiteRole.CONTRIBUTOR, record.subscription)

        def work() -> None:
            with self._world.ledger.transaction() as tx:
                record = tx.get(ServerRecord, server)
                if record is not None:
                    _check_empty_handed(tx, server)
                    tx.begin(call)
                    tx.put(msgspec.structs.replace(record, state="deleting"))
            self._world.step("deletion begun")
            if record is not None:
                self._take_down(record)
            self._world.step("taken down")
            with self._world.ledger.transaction() as tx:
                if record is not None:
                    tx.remove(ServerRecord, server)
                    tx.remove(AddressRecord, f"{record.network}/{record.address}")
                self._world.finish(tx, call, f"server/{server}", None, effect=record is not None)

        self._world.once(call, None, work, f"server/{server}")

    def start_server(self, call: Call, server: str) -> Server:
        """Start a server that is off; one that runs goes on undisturbed."""
        return self._switch(call, server, PowerState.RUNNING)

    def stop_server(self, call: Call, server: str) -> Server:
        """Pull the server's plug."""
        return self._switch(call, server, PowerState.OFF)

    def _switch(self, call: Call, server: str, wanted: PowerState) -> Server:
        call.require(SiteRole.OPERATOR, self._world.read(ServerRecord, server, "server").subscription)

        def work() -> Server:
            record = self._world.read(ServerRecord, server, "server")
            if record.state != "ready":
                raise InUse(what=f"Server {server}", reason=f"it is {record.state}")
            changes = (self._processes.state(_name(record)) is PowerState.OFF) is (wanted is not PowerState.OFF)
            with self._world.ledger.transaction() as tx:
                begun = tx.begun(call)
                if changes:
                    tx.begin(call)
            if changes and wanted is PowerState.OFF:
                self._stop(record)
            elif changes:
                self._start_or_clear(call, record)
            answer = self._shown(record)
            with self._world.ledger.transaction() as tx:
                self._world.finish(tx, call, f"server/{server}", answer, effect=changes or begun)
            return answer

        return self._world.once(call, Server, work, f"server/{server}")

    def authenticate(self, call: Call, server: str, user: str, password: str) -> bool:
        """Whether this is the administrator; five wrong tries a minute, then none."""
        record = self._world.read(ServerRecord, server, "server")
        call.require(SiteRole.READER, record.subscription)
        with self._world.holding(f"server/{server}"):
            record = self._world.read(ServerRecord, server, "server")
            now = self._world.clock.wall_ns()
            age_s = (now - record.failures_since_ns) / 1e9
            fresh = 0 <= age_s < _FAILURES_WINDOW_S
            if fresh and record.failures >= _MAX_FAILURES:
                raise TooManyAttempts(server=server, wait_s=int(_FAILURES_WINDOW_S - age_s) + 1)
            right = password_matches(password, record.password) and user == record.user
            failures = 0 if right else (record.failures if fresh else 0) + 1
            since = record.failures_since_ns if fresh else now
            with self._world.ledger.transaction() as tx:
                tx.put(msgspec.structs.replace(record, failures=failures, failures_since_ns=since))
            return right

    def console(self, call: Call, holder: str) -> str:
        """The end of what a machine or server printed; the caller must be able to see it."""
        kind, _, name = holder.partition(":")
        record: ServerRecord | MachineRecord
        if kind == "server":
            record = self._world.read(ServerRecord, name, "server")
        else:
            record = self._world.read(MachineRecord, name, "machine")
        call.require(SiteRole.READER, record.subscription)
        return self._processes.console(holder)

    def stop_all(self) -> None:
        """Stop every server and unmount its disks, before the site is taken down."""
        with self._world.ledger.transaction() as tx:
            records = tx.all(ServerRecord)
        for record in records:
            self._stop(record)

    def clear_after_boot(self) -> None:
        """At start: servers that are off have no disk mounted and no address bound; they start when told to."""
        with self._world.ledger.transaction() as tx:
            records = tx.all(ServerRecord)
        for record in records:
            if self._processes.state(_name(record)) is PowerState.OFF:
                self._stop(record)

    def _make_disks(self, record: ServerRecord) -> None:
        home = self._disk_folder(record)
        self._world.files.make_folder(home)
        for folder in (home.parent, home):
            self._world.show(folder)
        for disk, size in zip(_DISKS, (record.os_disk_bytes, record.spool_disk_bytes), strict=True):
            image = home / f"{disk}.img"
            if not image.exists():
                partial = home / f"{disk}.img.partial"
                self._world.files.remove(partial)
                create_raw_file(partial, size)
                if self._world.user is not None:
                    run("mkfs.ext4", "-q", "-F", "-m", "0", str(partial))  # no room kept for root: full is full
                publish(self._world, partial, image)
            self._world.step(f"{disk} disk made")

    def _start_or_clear(self, call: Call, record: ServerRecord) -> None:
        try:
            self._start(record)
        except Exception:
            self._stop(record)
            with self._world.ledger.transaction() as tx:
                tx.abandon(call)
            raise

    def _start(self, record: ServerRecord) -> None:
        for disk in _DISKS:
            folder = self._disk_folder(record) / disk
            if self._world.user is not None:
                mounts.mount(self._world, self._disk_folder(record) / f"{disk}.img", folder)
            self._world.files.make_folder(folder)
        self._fabric.bind(record.network, record.address)
        self._world.publish(self._folder(record) / "metadata.json", msgspec.json.encode(self._metadata(record)))
        environment = {
            "PATH": _PATH,
            "BACKHAUL_SERVER_NAME": record.key,
            "BACKHAUL_ADDRESS": record.address,
            "BACKHAUL_METADATA": str(self._folder(record) / "metadata.json"),
            "BACKHAUL_CUSTOM_DATA": str(self._folder(record) / "custom-data"),
            "BACKHAUL_DATA": str(self._disk_folder(record) / "os"),
            "BACKHAUL_SPOOL": str(self._disk_folder(record) / "spool"),
            "BACKHAUL_SPOOL_BYTES": str(record.spool_disk_bytes),
            "BACKHAUL_CORES": str(record.cores),
        }
        spec = ProcessSpec(
            name=_name(record),
            command=record.command,
            environment=environment,
            folder=self._disk_folder(record) / "os",
            network=record.network,
            namespace=self._fabric.namespace(record.network),
            address=record.address,
        )
        self._processes.start(spec)

    def _stop(self, record: ServerRecord) -> None:
        self._processes.kill(_name(record))
        self._world.step("server killed")
        for disk in _DISKS:
            folder = self._disk_folder(record) / disk
            if self._world.user is not None:
                mounts.unmount(self._world, self._disk_folder(record) / f"{disk}.img", folder)
        self._fabric.unbind(record.network, record.address)

    def _take_down(self, record: ServerRecord) -> None:
        self._stop(record)
        self._processes.forget(_name(record))
        for folder in (self._disk_folder(record), self._folder(record)):
            if folder.exists():
                shutil.rmtree(folder)

    def _shown(self, record: ServerRecord) -> Server:
        kept = {name: getattr(record, name) for name in Server.__struct_fields__ if name not in ("name", "power")}
        return Server(name=record.key, power=self._processes.state(_name(record)), **kept)

    def _metadata(self, record: ServerRecord) -> Metadata:
        site = self._world.definition.name
        return Metadata(record.id, record.key, site, record.network, record.subnet, record.address, record.tags)

    def _folder(self, record: ServerRecord) -> Path:
        return self._world.volume / "servers" / record.id

    def _disk_folder(self, record: ServerRecord) -> Path:
        return self._world.volume / "accounts" / record.account / "servers" / record.id


def _name(record: ServerRecord) -> str:
    return f"server:{record.key}"


def _check_empty_handed(tx: Transaction, server: str) -> None:
    disks = [disk.key for disk in tx.all(DiskRecord) if disk.holder == f"server:{server}"]
    if disks:
        raise InUse(what=f"Server {server}", reason=f"disk {disks[0]} is attached to it")
