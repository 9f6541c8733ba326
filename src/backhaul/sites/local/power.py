"""Machines of a local site: their definition, identity, metadata and power.

A machine's guest is a process that the site starts at power on and that outlives the provider. Whether it runs is read
from the kernel each time, never from a record. Called from worker threads under `machine/ID`.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import msgspec

from backhaul.sites.contract import PowerOff
from backhaul.sites.errors import (
    CommandMissing,
    InUse,
    NameTaken,
    NeedsRoot,
    NetworkUnknown,
    PowerNotConfirmed,
    RequestMalformed,
    StartFailed,
)
from backhaul.sites.local import mounts
from backhaul.sites.local.definition import AddressRecord, DiskRecord, MachineRecord
from backhaul.sites.local.ledger import Call, Transaction
from backhaul.sites.local.networks import Fabric, network_of, take
from backhaul.sites.local.processes import Processes, ProcessSpec
from backhaul.sites.local.storage import Disks, hand_out, take_back
from backhaul.sites.local.world import World, found
from backhaul.sites.values import Machine, MachineDisk, MachineRequest, Metadata, PowerState, SiteRole

_MAX_GRACE_S = 300.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machines:
    """All machines of one site."""

    def __init__(self, world: World, fabric: Fabric, processes: Processes, disks: Disks) -> None:
        self._world = world
        self._fabric = fabric
        self._processes = processes
        self._disks = disks

    def machines(self, call: Call) -> tuple[Machine, ...]:
        """Those in subscriptions that the caller may read, with their power as it is now."""
        with self._world.ledger.transaction() as tx:
            records = tx.all(MachineRecord)
        return tuple(self._shown(record) for record in records if call.sees(record.subscription))

    def create_machine(self, call: Call, request: MachineRequest) -> Machine:
        """Define a machine and attach its disks to it."""
        call.require(SiteRole.OPERATOR, request.subscription)
        key = _machine_id(request) or self._world.identity(call)
        if not request.command:
            raise CommandMissing(what=f"Machine {request.name}")
        if any(disk.mount for disk in request.disks) and not self._world.namespaces:
            raise NeedsRoot(what=f"Machine {request.name}", reason="its disks are to be mounted")
        if any(not _plain(disk.mount) for disk in request.disks):
            raise RequestMalformed(operation="create_machine", reason="a mount is named by letters, digits and hyphens")

        def work() -> Machine:
            with self._world.ledger.transaction() as tx:
                record = self._define(tx, call, key, request)
                answer = self._shown(record)
                self._world.finish(tx, call, f"machine/{key}", answer)
            self._write_metadata(record)
            return answer

        resources = [f"disk/{disk.disk}" for disk in request.disks]
        return self._world.once(call, Machine, work, f"machine/{key}", *resources)

    def _define(self, tx: Transaction, call: Call, key: str, request: MachineRequest) -> MachineRecord:
        network = network_of(self._world.definition, request.network)
        if network is None or network.subscription != request.subscription:
            raise NetworkUnknown(subscription=request.subscription, network=request.network)
        if any(request.name == other.name or key == other.key for other in tx.all(MachineRecord)):
            raise NameTaken(what="machine", name=request.name)
        if len({disk.disk for disk in request.disks}) != len(request.disks):
            raise RequestMalformed(operation="create_machine", reason="a disk is named twice")
        holder = f"machine:{key}"
        for part in request.disks:
            disk = found(tx.get(DiskRecord, part.disk), "disk", part.disk)
            if disk.holder not in ("", holder):
                raise InUse(what=f"Disk {part.disk}", reason=f"{disk.holder} has it attached")
            tx.put(msgspec.structs.replace(disk, holder=holder))
        record = MachineRecord(
            key=key,
            name=request.name,
            subscription=request.subscription,
            network=request.network,
            subnet=request.subnet,
            address=take(tx, call, network, request.subnet, request.address, holder).address,
            command=request.command,
            disks=request.disks,
            tags=request.tags,
        )
        tx.put(record)
        return record

    def delete_machine(self, call: Call, machine: str) -> None:
        """Forget a machine that is off; its disks are detached and stay."""
        record = self._world.ledger_get(MachineRecord, machine)
        if record is not None:
            call.require(SiteRole.OPERATOR, record.subscription)

        def work() -> None:
            record = self._world.ledger_get(MachineRecord, machine)
            if record is not None:
                if self._processes.state(_name(record)) is not PowerState.OFF:
                    raise InUse(what=f"Machine {machine}", reason="it runs")
                self._clear_away(record)
                self._processes.forget(_name(record))
                shutil.rmtree(self._folder(record))
            with self._world.ledger.transaction() as tx:
                if record is not None:
                    tx.remove(MachineRecord, machine)
                    tx.remove(AddressRecord, f"{record.network}/{record.address}")
                    for disk in tx.all(DiskRecord):
                        if disk.holder == _name(record):
                            tx.put(msgspec.structs.replace(disk, holder=""))
                self._world.finish(tx, call, f"machine/{machine}", None, effect=record is not None)

        disks = [f"disk/{disk.disk}" for disk in record.disks] if record is not None else []
        self._world.once(call, None, work, f"machine/{machine}", *disks)

    def power_on(self, call: Call, machine: str) -> Machine:
        """Start the guest; one that runs goes on undisturbed."""
        call.require(SiteRole.OPERATOR, self._record(machine).subscription)

        def work() -> Machine:
            record = self._record(machine)
            was = self._processes.state(_name(record))
            if was is PowerState.OFF:
                with self._world.ledger.transaction() as tx:
                    tx.begin(call)
                try:
                    self._start(record)
                except Exception:
                    self._clear_away(record)
                    with self._world.ledger.transaction() as tx:
                        tx.abandon(call)
                    raise
            return self._answer(call, record, effect=was is PowerState.OFF or self._begun_here(call))

        return self._world.once(call, Machine, work, f"machine/{machine}")

    def power_off(self, call: Call, machine: str, how: PowerOff = PowerOff.HARD, grace_s: float = 30.0) -> Machine:
        """Stop the guest and see it gone; hard leaves the bytes of its disks as they are."""
        call.require(SiteRole.OPERATOR, self._record(machine).subscription)

        def work() -> Machine:
            record = self._record(machine)
            was = self._processes.state(_name(record))
            with self._world.ledger.transaction() as tx:
                begun = tx.begun(call)
                if was is not PowerState.OFF:
                    tx.begin(call)
            self._world.step("before power off")
            if how is PowerOff.GRACEFUL and not self._processes.terminate(_name(record), min(grace_s, _MAX_GRACE_S)):
                with self._world.ledger.transaction() as tx:
                    tx.abandon(call)
                raise PowerNotConfirmed(machine=f"Machine {record.name}", reason=f"it did not end within {grace_s} s")
            if how is PowerOff.GRACEFUL:
                self._processes.kill(_name(record))  # what the guest's first process left behind ends with it
            else:
                self._pull_plug(record)
            self._clear_away(record)
            self._world.step("after power off")
            return self._answer(call, record, effect=begun or was is not PowerState.OFF)

        return self._world.once(call, Machine, work, f"machine/{machine}")

    def power_state(self, call: Call, machine: str) -> PowerState:
        """Read back from the kernel."""
        record = self._record(machine)
        call.require(SiteRole.READER, record.subscription)
        return self._processes.state(_name(record))

    def hang(self, call: Call, machine: str) -> Machine:
        """Stop the guest's processes where they are."""
        return self._signal(call, machine, PowerState.RUNNING)

    def resume(self, call: Call, machine: str) -> Machine:
        """Let them go on."""
        return self._signal(call, machine, PowerState.HUNG)

    def _signal(self, call: Call, machine: str, needed: PowerState) -> Machine:
        call.require(SiteRole.OPERATOR, self._record(machine).subscription)

        def work() -> Machine:
            record = self._record(machine)
            was = self._processes.state(_name(record))
            if was is PowerState.OFF:
                raise InUse(what=f"Machine {machine}", reason="it is off")
            with self._world.ledger.transaction() as tx:
                begun = tx.begun(call)
                if was is needed:
                    tx.begin(call)
            if needed is PowerState.RUNNING:
                self._processes.hang(_name(record))
            else:
                self._processes.go_on(_name(record))
            return self._answer(call, record, effect=begun or was is needed)

        return self._world.once(call, Machine, work, f"machine/{machine}")

    def metadata(self, call: Call, machine: str) -> Metadata:
        """What the machine reads of itself."""
        record = self._record(machine)
        call.require(SiteRole.READER, record.subscription)
        return self._metadata(record)

    def set_tags(self, call: Call, machine: str, tags: dict[str, str]) -> Metadata:
        """Replace the tags; the file changes all at once."""
        call.require(SiteRole.OPERATOR, self._record(machine).subscription)

        def work() -> Metadata:
            old = self._record(machine)
            record = msgspec.structs.replace(old, tags=tags)
            self._write_metadata(record)
            self._world.step("metadata written")
            with self._world.ledger.transaction() as tx:
                tx.put(record)
                self._world.finish(tx, call, f"machine/{machine}", self._metadata(record), effect=record != old)
            return self._metadata(record)

        return self._world.once(call, Metadata, work, f"machine/{machine}")

    def clear_after_boot(self) -> None:
        """At start: metadata as the ledger says; machines that are off have no disk mounted and no address bound."""
        with self._world.ledger.transaction() as tx:
            records = tx.all(MachineRecord)
        for record in records:
            self._write_metadata(record)
            if self._processes.state(_name(record)) is PowerState.OFF:
                self._pull_plug(record)
                self._clear_away(record)

    def stop_all(self) -> None:
        """Pull every plug, before the site is taken down."""
        with self._world.ledger.transaction() as tx:
            records = tx.all(MachineRecord)
        for record in records:
            self._pull_plug(record)
            self._clear_away(record)

    def _start(self, record: MachineRecord) -> None:
        self._write_metadata(record)
        described = []
        for index, part in enumerate(record.disks):
            disk = self._world.read(DiskRecord, part.disk, "disk")
            if disk.holder != _name(record):
                raise StartFailed(what=f"Machine {record.name}", reason=f"its disk {part.disk} is not attached to it")
            path = hand_out(self._world, self._disks.image(disk))
            folder = self._mount_folder(record, part)
            if part.mount:
                mounts.mount(self._world, self._disks.image(disk), folder)
            mounted = str(folder) if part.mount else ""
            described.append(
                {"index": index, "id": disk.key, "name": disk.name, "size": disk.size, "path": path, "mount": mounted}
            )
        self._fabric.bind(record.network, record.address)
        environment = {
            "PATH": _PATH,
            "BACKHAUL_MACHINE_ID": record.key,
            "BACKHAUL_METADATA": str(self._metadata_path(record)),
            "BACKHAUL_ADDRESS": record.address,
            "BACKHAUL_DISKS": msgspec.json.encode(described).decode(),
        }
        spec = ProcessSpec(
            name=_name(record),
            command=record.command,
            environment=environment,
            folder=self._work_folder(record),
            network=record.network,
            namespace=self._fabric.namespace(record.network),
            address=record.address,
        )
        self._processes.start(spec)

    def _pull_plug(self, record: MachineRecord) -> None:
        """Kill, stop the file systems, and only then wait: what sleeps in a frozen one dies when it thaws."""
        self._processes.signal_kill(_name(record))
        self._world.step("killed")
        for part in record.disks:
            if part.mount:
                mounts.stop_writing(self._mount_folder(record, part))
        self._world.step("file systems stopped")
        self._processes.kill(_name(record))

    def _clear_away(self, record: MachineRecord) -> None:
        """Unmount, let go of the disks, give the address back to the network. The guest is gone."""
        for part in record.disks:
            disk = self._world.ledger_get(DiskRecord, part.disk)
            if disk is None or disk.holder != _name(record):
                continue
            if part.mount:
                mounts.unmount(self._world, self._disks.image(disk), self._mount_folder(record, part))
            take_back(self._world, self._disks.image(disk))
        self._fabric.unbind(record.network, record.address)

    def _answer(self, call: Call, record: MachineRecord, *, effect: bool) -> Machine:
        answer = self._shown(record)
        with self._world.ledger.transaction() as tx:
            self._world.finish(tx, call, f"machine/{record.key}", answer, effect=effect)
        return answer

    def _begun_here(self, call: Call) -> bool:
        with self._world.ledger.transaction() as tx:
            return tx.begun(call)

    def _record(self, machine: str) -> MachineRecord:
        return self._world.read(MachineRecord, machine, "machine")

    def _shown(self, record: MachineRecord) -> Machine:
        return Machine(
            id=record.key,
            name=record.name,
            subscription=record.subscription,
            network=record.network,
            subnet=record.subnet,
            address=record.address,
            disks=record.disks,
            tags=record.tags,
            power=self._processes.state(_name(record)),
            command=record.command,
        )

    def _folder(self, record: MachineRecord) -> Path:
        return self._world.volume / "machines" / record.key

    def _work_folder(self, record: MachineRecord) -> Path:
        return self._folder(record) / "work"

    def _mount_folder(self, record: MachineRecord, part: MachineDisk) -> Path:
        return self._folder(record) / "mnt" / part.mount

    def _metadata_path(self, record: MachineRecord) -> Path:
        return self._folder(record) / "metadata.json"

    def _metadata(self, record: MachineRecord) -> Metadata:
        site = self._world.definition.name
        return Metadata(record.key, record.name, site, record.network, record.subnet, record.address, record.tags)

    def _write_metadata(self, record: MachineRecord) -> None:
        for folder in (self._folder(record), self._folder(record) / "mnt"):
            self._world.files.make_folder(folder)
            self._world.show(folder)
        self._world.files.make_folder(self._work_folder(record))
        self._world.own(self._work_folder(record))
        self._world.publish(self._metadata_path(record), msgspec.json.encode(self._metadata(record)))


def _name(record: MachineRecord) -> str:
    return f"machine:{record.key}"


def _plain(name: str) -> bool:
    return len(name) <= 32 and all(c.isascii() and (c.isalnum() or c == "-") for c in name)


def _machine_id(request: MachineRequest) -> str:
    if not request.machine_id:
        return ""
    try:
        return str(uuid.UUID(request.machine_id))
    except ValueError as error:
        raise RequestMalformed(operation="create_machine", reason="the machine id is not a UUID") from error
